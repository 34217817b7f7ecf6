"""A damaged journal: kept beside, rebuilt from what the outputs prove; what is in doubt is not done."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefork.engines.base import InputError, Job, Output
from prefork.outputs import OutputFolder
from prefork.run.journal import Journal
from tests.prefork.command import run, write_script

SETTINGS = {"stages": [{"engine": "ctc", "prefork": "0.2.0", "model.safetensors": "a" * 64}]}
JOBS = 150  # some pages of them
FAILED = 7  # every so many-th job was set aside
AGAIN = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs, and outputs of them with their journal."""
    root = tmp_path_factory.mktemp("written")
    (root / "in").mkdir()
    folder = OutputFolder(root / "out")
    journal = Journal(folder)
    for number in range(JOBS):
        (root / "in" / f"{number:03}.cha").write_text(f"transcript {number}")
        job = make_job(root, number)
        if number % FAILED:
            journal.record(job, SETTINGS, (folder.write(PurePath(f"{number:03}.json"), f"output {number}"),))
        else:
            journal.record(job, SETTINGS, error="worker 0: killed")
    journal.close()
    return root


def make_job(root: Path, number: int) -> Job:
    name = f"{number:03}"
    return Job(f"{name}.cha", root / "in" / f"{name}.cha", None, (Output("json", Path(f"{name}.json")),)).note_files()


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Iterator[Path]:
    """The same outputs and inputs, the journal a copy."""
    shutil.copytree(written / "out", tmp_path / "out", symlinks=True)
    (tmp_path / "in").symlink_to(written / "in")
    yield tmp_path


def find_journal(root: Path) -> Path:
    return root / "out" / ".prefork" / "journal.sqlite"


def list_done(root: Path) -> tuple[set[int], Journal]:
    """The jobs that are done after the journal was opened as it is."""
    journal = Journal(OutputFolder(root / "out"))
    try:
        jobs = [make_job(root, number) for number in range(JOBS)]
        for job in jobs:
            journal.explain(job, {"stages": [{"engine": "ctc", "prefork": "0.3.0"}]})
        return {number for number, job in enumerate(jobs) if journal.is_done(job, SETTINGS)}, journal
    finally:
        journal.close()


DONE = {number for number in range(JOBS) if number % FAILED}


def overwrite(journal: Path, place: float, content: bytes) -> None:
    data = bytearray(journal.read_bytes())
    first = int(place * len(data))
    data[first : first + len(content)] = content
    journal.write_bytes(data)


def test_a_journal_that_is_whole_is_left_alone(root: Path) -> None:
    done, journal = list_done(root)
    assert done == DONE and journal.recovery is None
    assert [path.name for path in find_journal(root).parent.iterdir()] == ["journal.sqlite"]


@pytest.mark.parametrize("page", range(13))
def test_of_a_journal_with_a_torn_page_the_rest_stays_done(root: Path, page: int) -> None:
    """The first page is the head of the file, the second that of the table: without them nothing can be read."""
    journal = find_journal(root)
    size = journal.stat().st_size
    assert size >= 13 * 4096
    overwrite(journal, page * 4096 / size, b"\xa5" * 4096)
    damaged = journal.read_bytes()
    done, opened = list_done(root)
    assert done <= DONE
    assert opened.recovery is not None and opened.recovery.path.read_bytes() == damaged
    assert len(done) == opened.recovery.proven
    assert not done if page < 2 else len(done) >= len(DONE) - 12
    again, journal_again = list_done(root)
    assert again == done and journal_again.recovery is None


@AGAIN
@given(
    edits=st.lists(st.tuples(st.floats(0, 0.9999), st.binary(min_size=1, max_size=64)), min_size=1, max_size=6),
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@example(edits=[(0.0, b"this is no database")], length=1.0)
@example(edits=[(0.0, b"S")], length=0.0001)
@example(edits=[(0.0, b"S")], length=0.5)
@example(edits=[(0.0546875, b"\x80")], length=1.0)  # SQLite quotes it in its message
def test_whatever_is_written_over_a_journal_nothing_counts_as_done_that_is_not(
    written: Path, tmp_path: Path, edits: list[tuple[float, bytes]], length: float
) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    shutil.copytree(written / "out", tmp_path / "out")
    (tmp_path / "in").unlink(missing_ok=True)
    (tmp_path / "in").symlink_to(written / "in")
    journal = find_journal(tmp_path)
    for place, content in edits:
        overwrite(journal, place, content)
    journal.write_bytes(journal.read_bytes()[: int(length * journal.stat().st_size)])
    done, _ = list_done(tmp_path)
    assert done <= DONE


def _set(column: str, value: object) -> Callable[[sqlite3.Connection], object]:
    return lambda database: database.execute(f"UPDATE jobs SET {column} = ? WHERE id = '001.cha'", (value,))


FILE = {"path": "001.json", "size": 8, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "change",
    [
        _set("files", "{"),
        _set("files", "[]"),
        _set("files", "[" * 5000),
        _set("files", "null"),
        _set("files", "[7]"),
        _set("files", json.dumps([{"path": "001.json"}])),
        _set("files", json.dumps([{**FILE, "path": "../../etc/passwd"}])),
        _set("files", json.dumps([{**FILE, "path": "/etc/passwd"}])),
        _set("files", json.dumps([{**FILE, "path": "a\0b"}])),
        _set("files", json.dumps([{**FILE, "path": "x" * 5000}])),
        _set("files", json.dumps([{**FILE, "size": "8"}])),
        _set("files", json.dumps([{**FILE, "path": 7}])),
        _set("files", b"\xff\xfe"),
        _set("files", 7),
        _set("inputs", "["),
        _set("inputs", b"\xff"),
        _set("fingerprint", "{"),
        _set("fingerprint", "[1]"),
        _set("fingerprint", json.dumps({"stages": 7})),
        _set("fingerprint", json.dumps({"stages": [7]})),
        _set("fingerprint", '{"stages": [{"engine": ' + "[" * 900 + "]" * 900 + "}]}"),
    ],
)
def test_a_row_that_is_in_doubt_is_not_done_and_the_others_are(
    root: Path, change: Callable[[sqlite3.Connection], object]
) -> None:
    with closing(sqlite3.connect(find_journal(root))) as database, database:
        change(database)
    done, journal = list_done(root)
    assert done == DONE - {1} and journal.recovery is None


def test_a_row_that_was_set_aside_is_not_done_because_its_error_is_gone(root: Path) -> None:
    with closing(sqlite3.connect(find_journal(root))) as database, database:
        database.execute("UPDATE jobs SET error = NULL")
    assert list_done(root)[0] == DONE


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE jobs (id INTEGER, title TEXT); INSERT INTO jobs VALUES (1, 'x')",
        "CREATE TABLE jobs (id TEXT PRIMARY KEY, inputs, fingerprint, files, error, finished, more)",
        "CREATE TABLE messages (id INTEGER)",
        "CREATE VIEW jobs AS SELECT 1 AS id",
        "PRAGMA user_version = 99",
    ],
)
def test_what_another_program_has_written_is_kept_beside(root: Path, script: str) -> None:
    find_journal(root).unlink()
    with closing(sqlite3.connect(find_journal(root))) as database:
        database.executescript(script)
    done, journal = list_done(root)
    assert not done and journal.recovery is not None and journal.recovery.proven == 0
    assert journal.recovery.path.stat().st_size
    assert "every output is computed again" in journal.recovery.describe()


def test_two_damaged_journals_of_one_second_are_both_kept(root: Path) -> None:
    for text in (b"one" * 200, b"two" * 200):
        find_journal(root).write_bytes(text)
        list_done(root)
    kept = find_journal(root).parent.glob("journal-unreadable-*.sqlite")
    assert sorted(path.read_bytes()[:3] for path in kept) == [b"one", b"two"]


def test_what_is_left_of_an_old_transaction_is_not_written_into_the_new_journal(root: Path) -> None:
    journal = find_journal(root)
    journal.write_bytes(b"no database" * 500)
    beside = journal.with_name("journal.sqlite-journal")
    beside.write_bytes(b"old" * 500)
    _, opened = list_done(root)
    assert opened.recovery is not None and not beside.exists()


def test_an_index_that_does_not_fit_its_table_costs_no_run(root: Path) -> None:
    """What quick_check does not look at shows when a row is written."""
    with closing(sqlite3.connect(find_journal(root))) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        (other,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
        database.execute("UPDATE sqlite_master SET rootpage = ? WHERE type = 'index'", (other,))
    notes: list[str] = []
    journal = Journal(OutputFolder(root / "out"), notes.append)
    for number in range(JOBS):
        journal.is_done(make_job(root, number), SETTINGS)
    new = [replace(make_job(root, 0), id=f"new {number}") for number in range(3)]
    file = OutputFolder(root / "out").write(PurePath("new.json"), "output")
    with journal.together():
        for job in new:
            journal.record(job, SETTINGS, (file,))
    assert len(notes) == 1 and "was damaged" in notes[0]
    assert all(journal.explain(job, {"stages": []}) for job in new)  # it has them all
    journal.close()


def test_the_journal_of_another_prefork_is_not_called_damaged(root: Path) -> None:
    journal = root / "out" / ".prefork" / "journal.sqlite"
    with closing(sqlite3.connect(journal)) as database:
        database.execute("PRAGMA user_version = 7")
    notes: list[str] = []
    Journal(OutputFolder(root / "out"), notes.append).close()
    assert len(notes) == 1 and notes[0].startswith(
        "the journal is of another prefork (version 7; this one has 1) and is"
    )


def test_what_stands_where_the_journal_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / ".prefork").write_text("")
    with pytest.raises(
        InputError, match=r"\.prefork: is no folder; the journal belongs there: remove it, or give another OUT"
    ):
        Journal(OutputFolder(tmp_path))


def test_a_job_whose_outputs_are_not_those_that_it_names_is_not_done(root: Path) -> None:
    """Not even if they are whole: they may be another job's."""
    job = make_job(root, 1)
    journal = Journal(OutputFolder(root / "out"))
    assert not journal.is_done(replace(job, outputs=(Output("json", Path("002.json")),)), SETTINGS)
    with closing(journal._connection):
        files = json.dumps([{"path": "002.json", "size": 8, "sha256": "0" * 64}])
        journal._connection.execute("UPDATE jobs SET files = ? WHERE id = '001.cha'", (files,))
        assert not journal.is_done(job, SETTINGS)


@pytest.mark.slow
@pytest.mark.usefixtures("script_engine")
def test_a_run_goes_on_with_what_a_damaged_journal_still_proves(tmp_path: Path) -> None:
    for number in range(40):
        write_script(tmp_path / "in", f"job{number:02}", "say x")
    command = ("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--format", "json", "--workers", "1")
    assert run(*command).returncode == 0
    journal = tmp_path / "out" / ".prefork" / "journal.sqlite"
    size = journal.stat().st_size
    overwrite(journal, (size - 4096) / size, bytes(4096))
    done = run(*command, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["done"] + summary["skipped"] == 40 and summary["skipped"] > 20
    assert "the journal was damaged" in done.stdout
    summary = json.loads(run(*command, "--json").stdout.splitlines()[-1])
    assert (summary["done"], summary["skipped"]) == (0, 40)
