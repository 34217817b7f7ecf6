"""What is edited while a run reads it gets no output that counts as done."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork import InputError, Job, LoadError
from prefork.engines.files import FileState
from prefork.pool.jobs import JobResult
from prefork.pool.pipeline import Stage
from prefork.run.request import RunRequest
from prefork.run.runner import run
from prefork.run.summary import Report, Summary
from tests.prefork.command import read_outputs, write_script

Edit = Callable[[Path], None]


def write_in_place(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def write_in_place_and_turn_back_the_clock(path: Path) -> None:
    status = path.stat()
    write_in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_another_of_the_same_size_and_time(path: Path) -> None:
    other = path.with_suffix(".new")
    shutil.copy2(path, other)
    write_in_place_and_turn_back_the_clock(other)
    other.replace(path)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\nsay more")


def remove(path: Path) -> None:
    path.unlink()


EDITS: tuple[Edit, ...] = (
    write_in_place,
    write_in_place_and_turn_back_the_clock,
    replace_by_another_of_the_same_size_and_time,
    append,
    remove,
)


class Meddler(Report):
    """Edits as soon as the first job is done, while the others run or wait. Keeps the summary."""

    def __init__(self, edit: Callable[[], None]) -> None:
        self._edit: Callable[[], None] | None = edit
        self.summary: Summary | None = None

    def finish_job(self, result: JobResult, reason: str | None) -> None:
        edit, self._edit = self._edit, None
        if edit is not None:
            edit()

    def end(self, summary: Summary) -> None:
        self.summary = summary


def _run(folder: Path, edit: Callable[[], None] = lambda: None, **options: object) -> tuple[int, Summary]:
    pipeline = (Stage("script"), Stage("relay", options)) if options else (Stage("script"),)
    report = Meddler(edit)
    code = run(
        RunRequest(folder / "in", folder / "out", "align", pipeline, formats=("json",), workers=1), lambda: report
    )
    assert report.summary is not None
    return code, report.summary


@pytest.mark.usefixtures("script_engine")
@pytest.mark.parametrize("suffix", [".txt", ".wav"])
def test_an_input_that_is_edited_while_its_job_runs_is_not_done(tmp_path: Path, suffix: str) -> None:
    write_script(tmp_path / "in", "first", *["say x"] * 9)  # the longest begins
    for edit in EDITS:
        write_script(tmp_path / "in", edit.__name__, "sleep", "say x")
    write_script(tmp_path / "in", "calm", "sleep", "say x")
    time.sleep(0.05)  # so that an edit has another time, whatever the clock of the file system

    def meddle() -> None:
        for edit in EDITS:
            edit(tmp_path / "in" / f"{edit.__name__}{suffix}")

    code, summary = _run(tmp_path, meddle)
    assert code == 1
    assert set(summary.failed) == {f"{edit.__name__}.txt" for edit in EDITS}
    for id, reason in summary.failed.items():
        assert "has changed since this run began, so nothing was written; run it again" in reason or "remove" in id
    assert set(read_outputs(tmp_path / "out")) == {"first.json", "calm.json"}

    write_script(tmp_path / "in", "remove", "say y")
    code, summary = _run(tmp_path)
    assert (summary.skipped, summary.done) == (2, len(EDITS)), summary.failed
    assert code == 0


@pytest.mark.usefixtures("script_engine")
@pytest.mark.parametrize("edit", [write_in_place, replace_by_another_of_the_same_size_and_time, remove])
def test_a_model_that_is_edited_in_the_run_ends_it_and_what_follows_is_not_done(tmp_path: Path, edit: Edit) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(1000))
    write_script(tmp_path / "in", "first", *["say x"] * 9)
    for number in range(3):
        write_script(tmp_path / "in", f"job{number}", "sleep", "say x")
    time.sleep(0.05)
    with pytest.raises(LoadError, match=r"weights\.bin: has changed since this run began; start again"):
        _run(tmp_path, lambda: edit(weights), file=str(weights))
    weights.write_bytes(bytes(1001))
    code, summary = _run(tmp_path, file=str(weights))
    assert (code, summary.skipped, summary.done) == (0, 0, 4)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.binary(max_size=200), after=st.binary(max_size=200), keep_time=st.booleans(), replace=st.booleans())
def test_a_file_that_was_written_to_is_not_what_it_was(
    tmp_path: Path, before: bytes, after: bytes, keep_time: bool, replace: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(before)
    job = Job("a", path).note_files()
    job.check_files()
    status = path.stat()
    time.sleep(0.012)  # a tick of the kernel's clock, by which file systems date
    written = path.with_suffix(".new") if replace else path
    written.write_bytes(after)
    if keep_time:
        os.utime(written, ns=(status.st_atime_ns, status.st_mtime_ns))
    written.replace(path)
    assert not job.states[0].is_current()
    with pytest.raises(InputError, match=r"a\.txt: has changed"):
        job.check_files()
    assert FileState.note(path).is_current()
