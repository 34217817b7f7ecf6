"""Interrupted in every way there is, the same command goes on, and what comes out is what would have come out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from prefork.engines.ctc.aligner import EMBEDDED
from tests.prefork.command import copy_sample, find_children, read_outputs, run, start, wait_until_gone, write_script

pytestmark = pytest.mark.usefixtures("script_engine")
SCRIPT = ["--engine", "script", "--format", "json", "--json", "--workers", "2"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve inputs of about a second each."""
    for number in range(12):
        write_script(tmp_path / "in", f"job{number:02}", *["sleep"] * 15, f"say {'x' * number}")
    return tmp_path / "in"


def _wait_for(process: subprocess.Popen[str], event: str) -> str:
    """The next line that the command prints of some event."""
    assert process.stdout is not None
    for line in process.stdout:
        if f'"event": "{event}"' in line:
            return line
    raise AssertionError(f"it ended without {event!r}")


def _family(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in find_children(process.pid, recursive=True)]


def _summary(output: str) -> dict[str, object]:
    summary: dict[str, object] = json.loads(output.splitlines()[-1])
    return summary


def test_ctrl_c_ends_in_order_and_the_same_command_goes_on(corpus: Path, tmp_path: Path) -> None:
    with start("align", corpus, tmp_path / "out", *SCRIPT) as process:
        _wait_for(process, "done")
        family = _family(process)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
    assert process.returncode == 130
    summary = _summary(output)
    assert isinstance(summary["unfinished"], int) and summary["unfinished"] > 0
    assert not wait_until_gone(family, 0)
    whole = read_outputs(tmp_path / "out")
    assert len(whole) == summary["done"]
    rest = _summary(run("align", corpus, tmp_path / "out", *SCRIPT).stdout)
    assert (rest["skipped"], rest["done"]) == (len(whole), 12 - len(whole))


@pytest.mark.slow
def test_sigterm_is_an_orderly_end_too(corpus: Path, tmp_path: Path) -> None:
    with start("align", corpus, tmp_path / "out", *SCRIPT) as process:
        _wait_for(process, "done")
        process.terminate()
        process.communicate(timeout=6)
    assert process.returncode == 143


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "endless", "hang")
    with start("align", tmp_path / "in", tmp_path / "out", *SCRIPT) as process:
        time.sleep(5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _wait_for(process, "note")
        assert re.search(r"under way: worker \d is at endless\.txt", _wait_for(process, "note"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=6)
        assert time.monotonic() - started < 2
    assert process.returncode == 130


def test_ctrl_c_while_the_models_are_loading_ends_soon(corpus: Path, tmp_path: Path) -> None:
    with start("align", corpus, tmp_path / "out", *SCRIPT) as process:
        while not (children := find_children(process.pid)):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGSTOP)  # the zygote, which takes too little time otherwise
        time.sleep(1.0)
        family = _family(process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=5)
    assert process.returncode == 130
    assert re.search(r"under way: the zygote loads the models \(\d s; at most 1800 s\)", output), output
    assert not wait_until_gone(family, 0)


def test_killed_workers_zygote_and_supervisor_lose_no_output(corpus: Path, tmp_path: Path) -> None:
    assert run("align", corpus, tmp_path / "calm", *SCRIPT).returncode == 0
    with start("align", corpus, tmp_path / "hunted", *SCRIPT) as process:
        for _ in range(2):
            _wait_for(process, "done")
            zygote = find_children(process.pid)[0]
            os.kill(zygote.children()[0].pid, signal.SIGKILL)
        os.kill(zygote.pid, signal.SIGKILL)
        _wait_for(process, "done")
        family = _family(process)
        process.kill()
    assert not wait_until_gone(family, 2)
    done = run("align", corpus, tmp_path / "hunted", *SCRIPT)
    assert done.returncode == 0, done.stdout
    assert _summary(done.stdout)["skipped"] != 0
    assert read_outputs(tmp_path / "hunted") == read_outputs(tmp_path / "calm")


@pytest.mark.slow
def test_what_is_done_stays_done_until_something_it_depends_on_changes(tmp_path: Path) -> None:
    for number in range(3):
        write_script(tmp_path / "in", f"job{number}", "say x")
    out = tmp_path / "out"

    def again(*options: str) -> list[object]:
        done = run("align", tmp_path / "in", out, *SCRIPT, *options)
        assert done.returncode == 0, done.stdout
        return [_summary(done.stdout)[name] for name in ("done", "skipped")]

    assert again() == [3, 0]
    before = read_outputs(out)
    assert again() == [0, 3]
    (out / "job0.json").write_text((out / "job0.json").read_text()[:20])
    write_script(tmp_path / "in", "job1", "say longer")
    assert again() == [2, 1]
    assert read_outputs(out)["job0.json"] == before["job0.json"]
    assert again("--redo") == [3, 0]


@pytest.mark.slow
def test_one_byte_in_the_middle_of_the_model_has_everything_made_again(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    shutil.copytree(EMBEDDED, tmp_path / "model")
    command = ("align", tmp_path / "in", tmp_path / "out", "--model", tmp_path / "model", "--json", "--workers", 1)
    assert _summary(run(*command).stdout)["done"] == 1
    assert _summary(run(*command).stdout)["skipped"] == 1
    with (tmp_path / "model" / "model.safetensors").open("r+b") as weights:
        middle = os.fstat(weights.fileno()).st_size // 2  # in a number of the weights
        weights.seek(middle)
        byte = weights.read(1)[0]
        weights.seek(middle)
        weights.write(bytes([byte ^ 1]))
    again = run(*command)
    assert _summary(again.stdout)["done"] == 1
    assert "1 file will be made again: model.safetensors has changed" in again.stdout


@pytest.mark.slow
def test_a_job_that_was_set_aside_is_tried_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    write_script(tmp_path / "in", "fails", "raise")
    assert run("align", tmp_path / "in", tmp_path / "out", *SCRIPT).returncode == 1
    write_script(tmp_path / "in", "fails", f"raise {marker}")
    marker.touch()
    assert run("align", tmp_path / "in", tmp_path / "out", *SCRIPT).returncode == 0


@pytest.mark.slow
def test_two_runs_into_one_folder_do_not_meet(corpus: Path, tmp_path: Path) -> None:
    with start("align", corpus, tmp_path / "out", *SCRIPT) as process:
        _wait_for(process, "done")
        second = run("align", corpus, tmp_path / "out", *SCRIPT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert second.returncode == 2
    assert "another run is writing there" in second.stderr


@pytest.mark.slow
def test_a_torn_journal_is_kept_and_everything_made_again(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "job", "say x")
    run("align", tmp_path / "in", tmp_path / "out", *SCRIPT)
    journal = tmp_path / "out" / ".prefork" / "journal.sqlite"
    journal.write_bytes(journal.read_bytes()[:5000])
    done = run("align", tmp_path / "in", tmp_path / "out", *SCRIPT)
    assert done.returncode == 0, done.stderr
    assert _summary(done.stdout)["done"] == 1
    assert list(journal.parent.glob("journal-unreadable-*.sqlite"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_costs_the_jobs_that_it_cannot_hold_and_room_brings_them_back(tmp_path: Path) -> None:
    for number in range(4):
        write_script(tmp_path / "in", f"job{number}", *[f"say {'x' * 900}"] * 40)
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", out], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        done = run("align", tmp_path / "in", out, *SCRIPT)
        assert done.returncode == 1
        failed = _summary(done.stdout)["failed"]
        assert isinstance(failed, dict) and failed
        assert all("No space left on device; make room" in reason for reason in failed.values())
        subprocess.run(["mount", "-o", "remount,size=10m", out], check=True)
        done = run("align", tmp_path / "in", out, *SCRIPT)
        assert done.returncode == 0, done.stdout
        assert _summary(done.stdout)["done"] == len(failed)
    finally:
        subprocess.run(["umount", out], check=False)


@pytest.mark.slow
def test_real_recordings_come_out_the_same_with_one_worker_and_with_two(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    copy_sample(tmp_path / "in", "adult07")
    for workers in (1, 2):
        done = run("align", tmp_path / "in", tmp_path / f"out{workers}", "--workers", workers, "--format", "json,chat")
        assert done.returncode == 0, done.stdout
    assert read_outputs(tmp_path / "out1") == read_outputs(tmp_path / "out2")
    assert len(read_outputs(tmp_path / "out1")) == 4
