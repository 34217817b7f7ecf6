"""Shards: every job in one of them, the same whoever divides; what is done is known to all."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.base import InputError, Job
from prefork.run.corpus import Corpus
from prefork.run.journal import is_locked
from prefork.run.problems import Problem
from prefork.run.shards import Shard, choose, divide, find_shard
from prefork.run.status import RunStatus, read_folder
from tests.prefork.command import read_outputs, run, start, write_script
from tests.prefork.data_sets import write_rows

SCRIPT = ["--engine", "script", "--format", "json", "--workers", "1"]
SLURM = {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "10"}
LENGTHS = st.lists(st.floats(0, 1e5), max_size=60)


def _make_corpus(lengths: list[float]) -> Corpus:
    jobs = tuple(Job(f"{number}.cha", Path(f"{number}.cha"), seconds=s) for number, s in enumerate(lengths))
    return Corpus(jobs, tuple(Problem(f"bad{n}", "why") for n in range(5)), (Problem("unused", "why"),))


@given(LENGTHS, st.integers(1, 12))
def test_shards_are_a_partition_and_none_is_longer_than_another_by_more_than_a_job(
    lengths: list[float], count: int
) -> None:
    corpus = _make_corpus(lengths)
    shards = [choose(corpus, Shard(number, count), lambda job: job.seconds) for number in range(1, count + 1)]
    assert sorted(job.id for shard in shards for job in shard.jobs) == sorted(job.id for job in corpus.jobs)
    assert sorted(p.id for shard in shards for p in shard.problems) == [p.id for p in corpus.problems]
    assert [n.id for shard in shards for n in shard.notices] == ["unused"]
    totals = [sum(job.seconds for job in shard.jobs) for shard in shards]
    assert max(totals) - min(totals) <= max(lengths, default=0.0) + 1e-6 * sum(lengths)


@given(LENGTHS, st.integers(1, 12), st.randoms())
def test_the_order_in_which_files_are_found_changes_no_shard(lengths: list[float], count: int, random: object) -> None:
    corpus = _make_corpus(lengths)
    jobs = list(corpus.jobs)
    random.shuffle(jobs)  # type: ignore[attr-defined]
    mixed = Corpus(tuple(jobs))
    for number in range(1, count + 1):
        chosen = [choose(c, Shard(number, count), lambda job: job.seconds).jobs for c in (corpus, mixed)]
        assert chosen[0] == chosen[1]


def test_jobs_of_no_length_are_divided_by_number() -> None:
    assert sorted(divide([0.0] * 9, 3)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("3/8", {}, Shard(3, 8)),
        ("3/8", SLURM, Shard(3, 8)),
        ("auto", SLURM, Shard(5, 10)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "1"}, Shard(4, 10)),
        ("auto/10", SLURM, Shard(5, 10)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "2"}, Shard(1, 2)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "3"}, Shard(4, 4)),
        ("auto/4", {"PARALLEL_SEQ": "4"}, Shard(4, 4)),
    ],
)
def test_a_shard_is_found_where_an_array_says_it(text: str, environment: dict[str, str], shard: Shard) -> None:
    assert find_shard(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "reason"),
    [
        ("", {}, "takes I/N"),
        ("3", {}, "takes I/N"),
        ("0/3", {}, "from 1 to N"),
        ("4/3", {}, "from 1 to N"),
        ("1/0", {}, "from 1 to N"),
        ("-1/3", {}, "takes I/N"),
        ("1/3/5", {}, "takes I/N"),
        ("²/3", {}, "takes I/N"),
        ("1/999999", {}, "up to 100,000"),
        ("auto", {}, "finds no array"),
        ("auto", {**SLURM, "PARALLEL_SEQ": "1"}, "finds two arrays"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "Kubernetes does not say it; give auto/N"),
        ("auto", {"PARALLEL_SEQ": "3"}, "GNU parallel does not say it; give auto/N"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "4"}, "is not one of 4 numbers from 0 on"),
        ("auto/9", SLURM, "SLURM_ARRAY_TASK_COUNT is 10"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "1"}, "number the tasks"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "18"}, "without gaps"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "x"}, "which is no number"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, "SLURM_ARRAY_TASK_MIN is not set"),
    ],
)
def test_what_is_no_shard_is_refused_with_the_remedy(text: str, environment: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        find_shard(text, environment)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number in range(7):
        write_script(tmp_path / "in", f"job{number}", *["sleep"] * number, f"say {'x' * number}")
    return tmp_path / "in"


def _status(target: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(run("status", target, "--json").stdout)
    return found


@pytest.mark.usefixtures("script_engine")
def test_shards_make_what_one_run_makes_and_status_knows_of_all(corpus: Path, tmp_path: Path) -> None:
    write_script(tmp_path / "in", "bad", "fail")
    (tmp_path / "in" / "alone.cha").write_text("@Begin\n@End\n")
    one, out = tmp_path / "one", tmp_path / "out"
    assert run("align", corpus, one, *SCRIPT).returncode == 1
    codes = [run("align", corpus, out, *SCRIPT, "--shard", "1/3").returncode]
    begun = _status(out)
    assert begun["jobs"] == 9 and begun["left"] == 9 - int(begun["done"]) - int(begun["failed"])  # type: ignore[call-overload]
    shown = run("status", out)
    assert shown.returncode == 1 and "2 of 3" in shown.stdout and "not begun" in shown.stdout
    for index in "12":
        array = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3"}
        codes.append(run("align", corpus, out, *SCRIPT, "--shard", "auto", timeout=90, **array).returncode)
    assert sorted(codes) in ([0, 0, 1], [0, 1, 1])
    assert read_outputs(out) == read_outputs(one)
    ended = _status(out)
    assert (ended["done"], ended["failed"], ended["left"]) == (7, 2, 0)
    failures = {id: why for shard in ended["runs"] for id, why in shard["failures"].items()}  # type: ignore[attr-defined]
    assert set(failures) == {"bad.txt", "alone.cha"}
    assert "failed  bad.txt" in run("status", out).stdout


@pytest.mark.usefixtures("script_engine")
def test_what_another_division_has_done_is_done(corpus: Path, tmp_path: Path) -> None:
    """Other numbers of shards, none, and files that were added, by which others go to other shards."""
    out = tmp_path / "out"
    for number in (1, 2):
        assert run("align", corpus, out, *SCRIPT, "--shard", f"{number}/2").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    write_script(corpus, "added", *["sleep"] * 3, "say hello")
    for number in (1, 2):
        assert run("align", corpus, out, *SCRIPT, "--shard", f"{number}/2").returncode == 0
    for number in (1, 2, 3):
        assert run("align", corpus, out, *SCRIPT, "--shard", f"{number}/3").returncode == 0
    assert run("align", corpus, out, *SCRIPT).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with closing(sqlite3.connect(out / ".prefork" / "journal.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (8,)


@pytest.mark.usefixtures("script_engine")
def test_runs_that_divide_otherwise_do_not_write_at_the_same_time(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_script(corpus, "long", *["sleep"] * 400)
    with start("align", corpus, out, *SCRIPT, "--json", "--shard", "1/2") as process:
        _wait_until_locked(out / ".prefork" / "journal-1-of-2.sqlite", process)
        for division in (["--shard", "1/3"], []):
            refused = run("align", corpus, out, *SCRIPT, *division)
            assert refused.returncode == 2
            assert "divides its files otherwise (journal-1-of-2.sqlite); wait for it" in refused.stderr
        refused = run("align", corpus, out, *SCRIPT, "--shard", "1/2")
        assert refused.returncode == 2 and "another run is writing there" in refused.stderr
        assert run("align", corpus, out, *SCRIPT, "--shard", "2/2").returncode == 0
        states = {shown.status.number: shown.state for shown in read_folder(out).runs}
        assert states == {1: "running", 2: "done"}
        process.send_signal(signal.SIGKILL)
    killed, other = read_folder(out).runs
    assert (killed.state, other.state) == ("stopped", "done")
    assert killed.status.left > 0


def _set_version(journal: Path) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("PRAGMA user_version = 77")


def _overwrite(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[:4096] + b"\xa5" * 4096)


def _make_folder(journal: Path) -> None:
    journal.unlink()
    journal.mkdir()


@pytest.mark.usefixtures("script_engine")
def test_a_damaged_journal_costs_only_itself(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        assert run("align", corpus, out, *SCRIPT, "--shard", f"{number}/2").returncode == 0
    assert run("status", out).returncode == 0
    journal = out / ".prefork" / "journal-1-of-2.sqlite"
    whole = journal.read_bytes()
    damages: list[tuple[Callable[[Path], object], str]] = [
        (_set_version, "is of another prefork: version 77"),
        (_overwrite, "malformed"),
        (lambda path: path.write_text("this is no database, and says so at length"), "not a database"),
        (Path.unlink, "unable to open database file"),
        (_make_folder, "disk I/O error"),
    ]
    for damage, reason in damages:
        if not journal.is_dir():
            journal.write_bytes(whole)
        damage(journal)
        shown = run("status", out)
        assert shown.returncode == 1 and "2 of 2 done 4 0 0" in " ".join(shown.stdout.split())
        assert f"{journal}: cannot be read" in shown.stdout and reason in shown.stdout, shown.stdout
        assert "repeat the command that wrote it" in shown.stdout
        runs: Any = _status(out)["runs"]
        first, second = runs
        assert (first["state"], second["state"]) == ("unreadable", "done")
        assert reason in first["problem"] and "problem" not in second
    written = out / ".prefork" / "status-2-of-2.json"
    known = written.read_bytes()
    written.write_bytes(known[:40])
    shown = run("status", out)
    assert shown.returncode == 1 and f"{written}: cannot be read" in shown.stdout
    runs = _status(out)["runs"]
    assert [one["state"] for one in runs] == ["unreadable", "unreadable"]
    written.write_bytes(known)
    assert run("align", corpus, out, *SCRIPT, "--shard", "1/3").returncode == 0
    journal.rmdir()
    journal.write_bytes(whole)
    _overwrite(journal)
    assert run("align", corpus, out, *SCRIPT, "--shard", "1/2").returncode == 0
    assert run("status", out).returncode == 0


def _wait_until_locked(journal: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not is_locked(journal):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_folder_that_no_run_has_written_into_has_no_status(tmp_path: Path) -> None:
    for folder, reason in ((tmp_path / "none", "no such folder"), (tmp_path, "no run has begun there")):
        shown = run("status", folder)
        assert (shown.returncode, shown.stdout) == (2, "") and reason in shown.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"command": 3}', "{" * 10_000])
def test_a_damaged_status_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ".prefork").mkdir()
    (tmp_path / ".prefork" / "status.json").write_text(text)
    assert run("status", tmp_path).returncode == 2


@pytest.mark.parametrize(("number", "count"), [(0, 3), (4, 3), (-1, 3), (1, 1_000_000_000)])
def test_a_status_of_a_shard_that_cannot_be_counts_as_none(tmp_path: Path, number: int, count: int) -> None:
    (tmp_path / ".prefork").mkdir()
    status = asdict(RunStatus("align", "host", 0.0, 0.0, number, count))
    (tmp_path / ".prefork" / "status.json").write_text(json.dumps(status))
    with pytest.raises(InputError, match="no run has begun there"):
        read_folder(tmp_path)


@pytest.mark.usefixtures("script_engine")
def test_files_of_a_data_set_are_divided_by_their_rows(tmp_path: Path) -> None:
    for number, rows in enumerate((5, 2, 2)):
        write_rows(tmp_path / f"in/{number}.parquet", [f"say {'x' * n}" for n in range(1, rows + 1)])
    one, out, options = tmp_path / "one", tmp_path / "out", [*SCRIPT[:2], "--workers", "1", "--format", "parquet"]
    assert run("align", tmp_path / "in", one, *options).returncode == 0
    assert run("align", tmp_path / "in", out, *options, "--shard", "1/2").returncode == 0
    assert set(read_outputs(out)) == {"0.parquet"}
    begun = _status(out)
    assert (begun["done"], begun["left"], begun["jobs"]) == (5, 4, 9)
    assert run("align", tmp_path / "in", out, *options, "--shard", "2/2").returncode == 0
    assert read_outputs(out) == read_outputs(one)
    assert _status(out)["done"] == 9
    assert run("align", tmp_path / "in", out, *options, "--shard", "2/2").returncode == 0
    assert _status(out)["done"] == 9


def test_a_limit_of_rows_is_refused_with_shards(tmp_path: Path) -> None:
    wanted = run("align", tmp_path, tmp_path / "out", "--format", "parquet", "--limit", "3", "--shard", "1/2")
    assert wanted.returncode == 2 and "leave it out with --shard" in " ".join(wanted.stderr.split())
