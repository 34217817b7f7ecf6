"""The file that results are kept in: limits, two runs at once, kill -9, and everything that can be wrong with it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from prefork.cache.folder import Unusable, find_file
from prefork.cache.store import VERSION, Entry, Kind, Limits, Reader, Store, count_entries, remove

DAY = 86400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "results.sqlite"


def key(number: int) -> bytes:
    return b"%032d" % number


def fill(path: Path, numbers: range, size: int = 100, limits: Limits | None = None) -> list[str]:
    """What was said meanwhile."""
    said: list[str] = []
    store = Store(path, limits or Limits(), said.append)
    store.put(*(Entry(key(number), Kind.PIECE, os.urandom(size), 1.5) for number in numbers))
    store.close()
    return said


def find(path: Path, number: int) -> bytes | None:
    reader = Reader(path)
    found = reader.find(key(number))
    reader.close()
    return found.value if found is not None else None


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_what_was_put_is_found_by_another_process_and_by_nobody_else(path: Path) -> None:
    store = Store(path, Limits(), pytest.fail)
    store.put(Entry(key(1), Kind.PIECE, b"value", 2.5))
    store.close()
    code = (
        "import sys; from tests.prefork.test_cache_store import *; print([find(Path(sys.argv[1]), n) for n in (1, 2)])"
    )
    command = [sys.executable, "-c", code, str(path)]
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "[b'value', None]\n"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    (count,) = count_entries(path)
    assert (count.kind, count.number, count.seconds) == (Kind.PIECE, 1, 2.5)


def test_what_was_used_longest_ago_goes_first(path: Path) -> None:
    fill(path, range(10), 10_000)
    change(path, "UPDATE entries SET used = used - 1000 + rowid")
    store = Store(path, Limits(), pytest.fail)
    store.use(key(0))
    store.close()
    fill(path, range(10, 11), 10_000, Limits(size=60_000))
    left = [number for number in range(11) if find(path, number) is not None]
    assert 0 in left and 10 in left and left[1:] == list(range(left[1], 11)) and len(left) == 5
    assert path.stat().st_size < 100_000  # the disk has it back


def test_what_is_too_old_goes(path: Path) -> None:
    fill(path, range(2))
    change(path, f"UPDATE entries SET made = made - {91 * DAY} WHERE rowid = 1")
    fill(path, range(0))
    assert find(path, 0) is None and find(path, 1) is not None


def test_a_clock_that_was_set_back_keeps_nothing_for_ever(path: Path) -> None:
    fill(path, range(1))
    change(path, f"UPDATE entries SET made = made + {400 * DAY}, used = used + {400 * DAY}")
    fill(path, range(1, 2))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT max(made), max(used) FROM entries").fetchone() <= (time.time(), time.time())
    assert find(path, 0) is not None


def test_two_runs_write_at_once_and_lose_nothing(path: Path) -> None:
    said: list[str] = []
    stores = [Store(path, Limits(), said.append) for _ in range(2)]
    for number in range(0, 400, 2):
        for place, store in enumerate(stores):
            store.put(Entry(key(number + place), Kind.PIECE, b"x" * number))
    for store in stores:
        store.close()
    assert said == [] and all(find(path, number) is not None for number in range(400))


def test_kill_9_costs_the_last_entries_at_most(path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from prefork.cache.store import *
store = Store(Path(sys.argv[1]), Limits(), print)
for number in range(1_000_000):
    store.put(Entry(b"%032d" % number, Kind.PIECE, os.urandom(2000)))
    if number == 500:
        time.sleep(0.6)
        print("written", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert fill(path, range(2_000_000, 2_000_001)) == []
    assert find(path, 400) is not None and find(path, 2_000_000) is not None


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:] = os.urandom(len(data) - 100)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_text(path: Path) -> None:
    path.write_text("no database " * 1000)


def set_newer_version(path: Path) -> None:
    change(path, f"PRAGMA user_version = {VERSION + 1}")


def change_table(path: Path) -> None:
    change(path, "ALTER TABLE entries RENAME COLUMN value TO other")


@pytest.mark.parametrize("damage", [corrupt, truncate, replace_by_text, set_newer_version, change_table])
def test_a_damaged_file_is_said_once_and_costs_nobody_anything(damage: Callable[[Path], None], path: Path) -> None:
    fill(path, range(300), 2000)
    damage(path)
    before = path.read_bytes()
    said: list[str] = []
    try:
        store = Store(path, Limits(), said.append)
    except Unusable as error:
        said.append(str(error))
    else:
        reader = store.open_reader()
        store.put(*(Entry(key(number), Kind.PIECE, b"x" * 3000) for number in range(300)))
        found = [reader.find(key(number)) for number in range(300)]
        assert None in found
        store.close()
        reader.close()
    assert len(said) == 1 and "prefork cache clear" in said[0], said
    if damage is set_newer_version:
        assert path.read_bytes() == before  # the newer prefork will want it
    assert remove(path) > 0
    assert fill(path, range(1)) == [] and find(path, 0) is not None


def test_an_entry_that_is_not_what_was_written_is_not_there(path: Path) -> None:
    fill(path, range(1))
    change(path, "UPDATE entries SET value = substr(value, 1, 8) || x'789c4b04000062006200'")
    assert find(path, 0) is None


def test_a_locked_file_is_waited_for_and_then_done_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, range(1))
    monkeypatch.setattr("prefork.cache.store._PATIENCE", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        store = Store(path, Limits(), (said := list[str]()).append)
        other.execute("BEGIN IMMEDIATE")
        store.put(Entry(key(1), Kind.PIECE, b"x"))
        reader = store.open_reader()
        assert reader.find(key(0)) is not None  # it can be read all the same
        store.close()
        reader.close()
        other.execute("ROLLBACK")
    assert len(said) == 1 and "locked" in said[0] and "--cache off" in said[0]


def test_a_full_disk_is_said_once_and_what_was_kept_stays(path: Path) -> None:
    fill(path, range(1))
    store = Store(path, Limits(), (said := list[str]()).append)
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite says of it what it says of a full disk
    for number in range(1, 50):
        store.put(Entry(key(number), Kind.PIECE, os.urandom(10_000)))
    store.close()
    assert len(said) == 1 and "the disk is full" in said[0] and "--cache-limit" in said[0]
    assert find(path, 0) is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_with_the_remedy(path: Path) -> None:
    path.parent.mkdir(mode=0o500)
    with pytest.raises(Unusable, match="make it writable"):
        Store(path, Limits(), pytest.fail)


def test_a_read_only_file_is_refused_with_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, range(1))
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **more: real(name.replace("mode=rw", "mode=ro"), **more))
    with pytest.raises(Unusable, match="make it writable, or give --cache off"):
        Store(path, Limits(), pytest.fail)


def test_a_folder_that_is_no_folder_or_somebody_else_s_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = path.parents[1] / "elsewhere"
    elsewhere.mkdir()
    path.parent.symlink_to(elsewhere)
    with pytest.raises(Unusable, match="not a folder of this user's"):
        Store(path, Limits(), pytest.fail)
    path.parent.unlink()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(Unusable, match="not a folder of this user's"):
        Store(path, Limits(), pytest.fail)


def test_others_are_shut_out_of_a_folder_that_was_open(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    fill(path, range(1))
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_home_folder_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda _: Path("relative"))
    with pytest.raises(Unusable, match="XDG_CACHE_HOME"):
        find_file()
