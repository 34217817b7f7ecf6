"""The cache: never in the way, whatever is in its file, on its disk, or writing there at the same time."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork.platform_matrix.cache import Cache

FULL = Path("/dev/full")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the cache's files lie; not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "prefork"


def _fill(folder: Path, content: str | bytes) -> Path:
    folder.mkdir()
    file = folder / "some.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_what_is_stored_is_there_for_the_next_one(folder: Path) -> None:
    entry = {"numbers": [1, 2.5, None, True], "name": "größer \ud800"}
    Cache("below/some.json", 3).store("key", entry)
    assert Cache("below/some.json", 3).load("key") == entry
    assert Cache("below/some.json", 3).load("another") is None
    assert Cache("some.json", 3).load("key") is None
    assert [path.name for path in (folder / "below").iterdir()] == ["some.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"key": {"points": [[1, 2], [3',
        b"\xff\xfe\x00\x80",
        b"[1, 2]",
        b"null",
        b'"key"',
        b"17",
        b'{"key": ' + b"9" * 5000 + b"}",
        b'{"other": ' + b"[" * 100_000,
    ],
    ids=["empty", "torn", "binary", "a list", "null", "a string", "a number", "too long a number", "too deep"],
)
def test_a_file_that_makes_no_sense_is_as_good_as_none_and_is_written_anew(folder: Path, content: bytes) -> None:
    _fill(folder, content)
    cache = Cache("some.json", 3)
    assert cache.load("key") is None
    cache.store("key", 1)
    assert cache.load("key") == 1


@pytest.mark.parametrize("depth", [500, 990, 20_000])
def test_entries_of_others_that_are_nested_deeply_raise_nothing(folder: Path, depth: int) -> None:
    _fill(folder, '{"other": ' + "[" * depth + "]" * depth + "}")
    cache = Cache("some.json", 3)
    cache.load("key")
    cache.store("key", 1)
    assert cache.load("key") in (1, None)  # what can be read need not be writable again
    assert len(list(folder.iterdir())) == 1


def test_the_oldest_entries_go_and_one_that_is_stored_again_is_new(folder: Path) -> None:
    cache = Cache("some.json", 3)
    for key in ("a", "b", "c", "a", "d"):
        cache.store(key, key.upper())
    assert {key: cache.load(key) for key in "abcd"} == {"a": "A", "b": None, "c": "C", "d": "D"}
    cache.store("d", "new")
    assert [cache.load(key) for key in "acd"] == ["A", "C", "new"]


def test_a_cache_that_has_become_smaller_keeps_the_newest(folder: Path) -> None:
    for number in range(9):
        Cache("some.json", 9).store(str(number), number)
    Cache("some.json", 2).store("new", 9)
    assert list(json.loads((folder / "some.json").read_text())) == ["8", "new"]


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_cache(folder: Path) -> None:
    folder.write_text("in the way")
    cache = Cache("below/some.json", 3)
    cache.store("key", 1)
    assert cache.load("key") is None
    assert folder.read_text() == "in the way"


def test_a_file_that_cannot_be_replaced_costs_nothing_and_leaves_nothing(folder: Path) -> None:
    (folder / "some.json" / "a-folder").mkdir(parents=True)
    cache = Cache("some.json", 3)
    cache.store("key", 1)
    assert cache.load("key") is None
    assert [path.name for path in folder.iterdir()] == ["some.json"]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_file_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("some.json", 3)
    cache.store("key", "old")

    def fill(dir: Path) -> tuple[int, str]:
        (name := dir / "new").touch()
        return os.open(FULL, os.O_WRONLY), str(name)

    monkeypatch.setattr("tempfile.mkstemp", fill)
    cache.store("key", "x" * 100_000)
    assert cache.load("key") == "old"
    assert [path.name for path in folder.iterdir()] == ["some.json"]


def test_an_entry_that_is_no_json_leaves_the_file_as_it_was(folder: Path) -> None:
    cache = Cache("some.json", 3)
    cache.store("key", "old")
    entry: Any = {"half": [1, 2, object()]}
    with pytest.raises(TypeError):
        cache.store("key", entry)
    assert cache.load("key") == "old"
    assert len(list(folder.iterdir())) == 1


def test_two_processes_that_store_at_once_leave_a_whole_file(folder: Path) -> None:
    code = (
        "import sys; from prefork.platform_matrix.cache import Cache\n"
        "cache, me = Cache('some.json', 50), sys.argv[1]\n"
        "sys.stdin.readline()\n"
        "for number in range(60):\n"
        "    cache.store(f'{me}{number % 20}', [me] * 500)\n"
        "    for other in 'ab':\n"
        "        found = cache.load(f'{other}{number % 20}')\n"
        "        assert found in (None, [other] * 500), found\n"
        "print('whole')"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for writer in writers:  # both have begun, or are about to, when they are told to go on
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=60)[0] for writer in writers] == ["whole\n", "whole\n"]
    content = json.loads((folder / "some.json").read_text())
    assert 0 < len(content) <= 50
    assert all(entry == [key[0]] * 500 for key, entry in content.items())
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("home", [None, "relative"])
def test_without_a_home_folder_nothing_is_kept_and_nothing_written_elsewhere(
    home: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def find(_: object) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", find)
    monkeypatch.chdir(tmp_path)
    cache = Cache("some.json", 3)
    cache.store("key", 1)
    assert cache.load("key") is None
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_in_the_place_of_the_cache_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "prefork").mkdir()
    os.mkfifo(tmp_path / "prefork" / "a.json")
    cache = Cache("a.json", 5)
    assert cache.load("x") is None
    cache.store("x", 1)
    assert cache.load("x") == 1
