"""What a run prints where there is no terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prefork.cli.report import PlainReport, draw, list_rows
from prefork.engines.base import Job
from prefork.pool.jobs import JobResult
from prefork.run.summary import MachineStatus, Progress, Summary

SUMMARY = Summary(
    0, 0, {}, 0, {}, {}, 0.0, 0, 0, 1.0, 0.5, "fork", 1, 1, True, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, "out"
)  # fmt: skip


def make_result(number: int, *warnings: str) -> JobResult:
    job = Job(f"{number:04}.lab", Path("a.lab"), Path("a.wav"), seconds=2.0, warnings=warnings)
    return JobResult(job)


def print_run(total: int, *warned: int, seconds: float = 0.0, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a run in which each file takes so many seconds, without the table."""
    clock, done = [100.0], [0]
    monkeypatch.setattr("prefork.cli.report.time.monotonic", lambda: clock[0])
    output = io.StringIO()
    plain = PlainReport(Console(file=output, width=100))
    plain.begin(lambda: Progress([], 0.0, 0.0, done[0], total))
    warnings: dict[str, list[str]] = {}
    for number in range(total):
        clock[0] += seconds
        done[0] += 1
        texts = ["low"] if number in warned else []
        plain.finish_job(make_result(number, *texts), None)
        warnings |= {f"{number:04}.lab": texts} if texts else {}
    plain.end(replace(SUMMARY, done=total, warnings=warnings))
    lines = output.getvalue().splitlines()
    return [line for line in lines if line.startswith(("done", "failed", "warning")) or " files, " in line]


def test_a_few_files_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = print_run(3, 1, monkeypatch=monkeypatch)
    assert lines == [
        "done    0000.lab  0:02",
        "done    0001.lab  0:02  1 warning",
        "done    0002.lab  0:02",
        "warning 0001.lab: low",
    ]


def test_of_thousands_there_is_a_line_every_ten_seconds_and_for_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = print_run(2000, 7, seconds=0.25, monkeypatch=monkeypatch)
    assert lines[0] == "done    0007.lab  0:02  1 warning"
    assert lines[1] == "40/2000 files, 0:00 of 0:00"
    assert len(lines) == 1 + 50 + 1


def test_the_same_warning_of_many_files_stands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = print_run(2000, *range(0, 2000, 2), monkeypatch=monkeypatch)
    assert lines[-1] == "warning 1000 files (0000.lab, 0002.lab, 0004.lab, ...): low"


MACHINES = (
    MachineStatus("first", "fork, cpu", workers=4, busy=3, memory=900_000_000, files=7, seconds=120.0),
    MachineStatus("second\n", "refused"),
)


def test_the_live_view_of_a_cluster_has_a_line_for_each_machine() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(draw(Progress([], 120.0, 600.0, 7, 40, machines=MACHINES), 60.0))
    console.print(draw(Progress([], 120.0, 600.0, 7, 40, machines=MACHINES[:1] * 1000), 60.0))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines[0] == "first fork, cpu 3 of 4 workers busy 7 files 900 MB 2.0 s/s"
    assert lines[1] == r"second\n refused 0 files"
    assert lines[2].endswith("7/40 files 2:00 of 10:00 4:00 left")
    assert "and 980 more" in lines
    assert len(lines) == 3 + 20 + 2


def test_the_summary_of_a_cluster_has_a_line_for_each_machine() -> None:
    summary = replace(SUMMARY, done=7, audio_seconds=120.0, workers=4, total=10**9, machines=MACHINES)
    rows = list_rows(summary)
    assert ("machine", "first: 4 workers, 7 files, 2:00") in rows
    assert ("refused", r"second\n: 0 workers, 0 files, 0:00") in rows
    assert ("memory", "1000 MB on the machine that took most, shared pages counted once") in rows
    many = list_rows(replace(summary, machines=MACHINES[:1] * 30))
    assert [value for name, value in many if name == "machines"] == ["10 more"]
