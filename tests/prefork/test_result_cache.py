"""Nothing is computed twice, and nobody can tell from the outputs."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import wave
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prefork.cache.folder import find_file
from prefork.cache.store import Kind, count_entries, remove
from prefork.engines.audio.reader import read_audio
from tests.prefork.command import SAMPLES, copy_sample, read_outputs, run
from tests.prefork.test_morphotag import write_talk
from tests.prefork.test_transcribe import speakers, whisper  # noqa: F401  fixtures

ALL = "chat,textgrid,srt,vtt,ctm,rttm,json"


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that results are kept in; nothing is yet."""
    monkeypatch.setenv("PREFORK_CACHE", "use")
    remove(find_file())
    return find_file()


def compute(*arguments: object, code: int = 0, **environment: str) -> dict[str, Any]:
    """The summary of a run."""
    done = run(*arguments, "--json", "--workers", 2, timeout=170, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**summary, "notes": [e["text"] for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "note"]}


def write_long_talk(folder: Path, count: int = 80) -> Path:
    lines = [f"*CHI:\tI saw {n} dogs and {n + 1} cats on the way home ." for n in range(count)]
    return write_talk(folder, "long", *lines)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """The folder of a child's recording, some of whose utterances have no times."""
    copy_sample(tmp_path / "in", "child15")
    return tmp_path / "in"


COMMANDS = {
    "ctc": ["align", "--format", ALL],
    "whisper-aligner": ["align", "--engine", "whisper", "--model", "WHISPER", "--format", ALL],
    "match": ["align", "--utr", "whisper", "--utr-model", "WHISPER", "--format", ALL],
    "whisper": [
        "transcribe",
        "--model",
        "WHISPER",
        "--diarize-model",
        "SPEAKERS",
        "--residency",
        "stage",
        "--format",
        ALL,
    ],
    "diarize": ["diarize", "--model", "SPEAKERS", "--format", ALL],
    "stanza": ["morphotag", "--format", "chat,conllu,json"],
}

SLOW = ("whisper-aligner", "match", "whisper")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in COMMANDS])
def test_outputs_are_the_same_bytes_with_and_without(
    name: str, pair: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    given = COMMANDS[name]
    models: dict[str, object] = {
        word: request.getfixturevalue(word.lower()) for word in ("WHISPER", "SPEAKERS") if word in given
    }
    command, *options = [models.get(word, word) for word in given]
    if name == "stanza":
        write_long_talk(pair)
    without = compute(command, pair, tmp_path / "0", *options, "--cache", "off")
    assert not find_file().exists()
    first = compute(command, pair, tmp_path / "1", *options)
    again = compute(command, pair, tmp_path / "2", *options)
    moved = shutil.copytree(pair, tmp_path / "elsewhere")
    third = compute(command, moved, tmp_path / "3", *options)
    outputs = read_outputs(tmp_path / "0")
    assert len(outputs) == without["done"] * len(str(options[-1]).split(",")), sorted(outputs)
    assert outputs == read_outputs(tmp_path / "1") == read_outputs(tmp_path / "2") == read_outputs(tmp_path / "3")
    assert (first["kept_files"], first["kept_segments"]) == (0, 0) and first["segments"] > 0
    for found in (again, third):
        assert found["kept_files"] == found["done"] == without["done"]
        assert found["strategy"] == "" and found["load_seconds"] == 0  # no model, and no process that could have one
        assert found["saved_seconds"] > 0 and found["warnings"] == without["warnings"]
        assert found["recovery"] == without["recovery"] and found["words"] == without["words"]
    changed = [note for note in first["notes"] if str(find_file()) in note]
    assert len(changed) == 1 and "--cache off" in changed[0] and again["notes"] == third["notes"] == []


def test_of_a_changed_transcript_the_changed_segment_alone_is_computed(tmp_path: Path) -> None:
    source = copy_sample(tmp_path / "in", "adult00")
    text = source.read_text()
    compute("align", source.parent, tmp_path / "0")
    words = re.findall(r"^\*\w+:\t(.*?) \.", text, re.MULTILINE)
    assert len(words) > 3
    source.write_text(text.replace(words[2], words[2].replace(" ", " the ", 1), 1))
    found = compute("align", source.parent, tmp_path / "1")
    assert found["segments"] - found["kept_segments"] == 1 and found["segments"] > 3
    compute("align", source.parent, tmp_path / "2", "--cache", "off")
    assert read_outputs(tmp_path / "1") == read_outputs(tmp_path / "2")


def test_what_stands_behind_an_insertion_is_not_computed_again(tmp_path: Path) -> None:
    source = write_long_talk(tmp_path / "in", 200)
    text = source.read_text()
    first = compute("morphotag", source.parent, tmp_path / "0")
    line = "*CHI:\tI saw 20 dogs and 21 cats on the way home ."
    source.write_text(text.replace(line, f"*MOT:\twhat did you see ?\n{line.replace('dogs', 'big dogs')}"))
    found = compute("morphotag", source.parent, tmp_path / "1")
    assert first["segments"] > 8 and found["segments"] - found["kept_segments"] <= 2
    compute("morphotag", source.parent, tmp_path / "2", "--cache", "off")
    assert read_outputs(tmp_path / "1") == read_outputs(tmp_path / "2")


def test_the_same_sound_in_another_file_is_prepared_and_not_computed(pair: Path, tmp_path: Path) -> None:
    first = compute("align", pair, tmp_path / "0")
    samples = read_audio(pair / "child15.flac", 0.0, 1000.0)
    (pair / "child15.flac").unlink()
    with wave.open(str(pair / "child15.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((samples * 32768).astype("<i2").tobytes())
    found = compute("align", pair, tmp_path / "1")
    assert found["kept_files"] == 0 and found["kept_segments"] == found["segments"] == first["segments"]
    assert read_outputs(tmp_path / "0") == read_outputs(tmp_path / "1")


def test_other_settings_find_nothing(pair: Path, tmp_path: Path) -> None:
    compute("align", pair, tmp_path / "0")
    assert compute("align", pair, tmp_path / "1", "--threads", 2)["kept_segments"] == 0  # they add up otherwise
    found = compute("align", pair, tmp_path / "2", "--max-segment", 3)
    assert found["kept_files"] == 0 and found["kept_segments"] < found["segments"]


def test_refresh_and_redo_compute_and_off_leaves_no_trace(pair: Path, tmp_path: Path, results: Path) -> None:
    assert compute("align", pair, tmp_path / "0", PREFORK_CACHE="off")["kept_files"] == 0
    assert compute("align", pair, tmp_path / "0", "--redo", "--cache", "off")["kept_files"] == 0
    assert not results.exists()
    compute("align", pair, tmp_path / "1")
    assert compute("align", pair, tmp_path / "2", "--cache", "refresh")["segments"] > 0
    again = compute("align", pair, tmp_path / "2", "--redo")
    assert (again["done"], again["kept_files"], again["kept_segments"]) == (1, 0, 0)
    idle = compute("align", pair, tmp_path / "2")
    assert (idle["skipped"], idle["kept_files"]) == (1, 0)
    assert compute("align", pair, tmp_path / "3", PREFORK_CACHE="use")["kept_files"] == 1


def test_a_damaged_file_costs_time_alone(pair: Path, tmp_path: Path, results: Path) -> None:
    compute("align", pair, tmp_path / "0")
    for end in ("-wal", "-shm"):
        results.with_name(results.name + end).unlink(missing_ok=True)
    results.write_bytes(results.read_bytes()[:5000])
    found = compute("align", pair, tmp_path / "1")
    assert (found["done"], found["kept_files"]) == (1, 0)
    assert len(found["notes"]) == 1 and "prefork cache clear" in found["notes"][0]
    assert read_outputs(tmp_path / "0") == read_outputs(tmp_path / "1")


def test_two_runs_at_once_share_what_they_compute(tmp_path: Path) -> None:
    write_long_talk(tmp_path / "in")
    from tests.prefork.command import start

    running = [start("morphotag", tmp_path / "in", tmp_path / str(n), "--workers", 1) for n in range(2)]
    for process in running:
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0 and "goes on without" not in output, output
    assert compute("morphotag", tmp_path / "in", tmp_path / "2", "--workers", 1)["done"] == 1
    assert read_outputs(tmp_path / "0") == read_outputs(tmp_path / "1") == read_outputs(tmp_path / "2")


def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run("cache", *arguments)


def test_what_is_kept_is_shown_verified_and_removed(pair: Path, tmp_path: Path, results: Path) -> None:
    assert ask("stats").stdout == "nothing is kept\n" and ask("verify").returncode == 2
    compute("align", pair, tmp_path / "0")
    assert ask("path").stdout == f"{results}\n"
    shown = json.loads(ask("stats", "--json").stdout)
    assert shown["path"] == str(results) and shown["entries"]["document"]["number"] == 1
    assert re.search(r"^files +1 .* MB  computed in 0:\d\d, oldest 0 days$", ask("stats").stdout, re.MULTILINE)
    same = ask("verify")
    assert same.returncode == 0 and same.stdout == f"same       {pair / 'child15.cha'}\n", same.stdout + same.stderr
    swap_documents(results, b"name too", b"name two")
    other = ask("verify")
    assert other.returncode == 1 and other.stdout.startswith("DIFFERENT "), other.stdout + other.stderr
    text = (pair / "child15.cha").read_text()
    (pair / "child15.cha").write_text(text.replace("too", "to"))
    gone = ask("verify")
    assert gone.returncode == 2 and gone.stdout.startswith("stale "), gone.stdout + gone.stderr
    assert " MB removed" in ask("clear").stdout and not results.exists()
    assert ask("clear").stdout == "0.0 MB removed\n"


def swap_documents(results: Path, old: bytes, new: bytes) -> None:
    """As if something else had been computed."""
    from prefork.cache.store import _deflate, _inflate

    with closing(sqlite3.connect(results)) as connection, connection:
        for key, value in connection.execute("SELECT key, value FROM entries WHERE kind = ?", (Kind.DOCUMENT,)):
            changed = _inflate(value).replace(old, new)
            assert changed != _inflate(value)
            connection.execute("UPDATE entries SET value = ? WHERE key = ?", (_deflate(changed), key))


def test_the_size_that_the_user_wants_is_kept_to(tmp_path: Path, results: Path) -> None:
    write_long_talk(tmp_path / "in", 400)
    compute("morphotag", tmp_path / "in", tmp_path / "0", "--cache-limit", "20kB")
    assert sum(count.size for count in count_entries(results)) <= 20_000
    for wrong in (["--cache-limit", "50%"], ["--cache-keep", "0"], ["--cache", "yes"]):
        refused = run("morphotag", tmp_path / "in", tmp_path / "1", *wrong)
        assert refused.returncode == 2 and wrong[0] in refused.stderr, refused.stderr
    assert "PREFORK_CACHE" in run("align", SAMPLES, tmp_path / "1", PREFORK_CACHE="yes").stderr
