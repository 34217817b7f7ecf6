"""What the operating system refuses, or somebody takes away, is told in one line with what to do, and is no success."""

from __future__ import annotations

import resource
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefork.wording import describe_os_error
from tests.prefork.command import PREFORK, copy_sample, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and limits are Linux's")


@pytest.mark.parametrize("arguments", [["matrix"], ["align"], ["align", "--json"]], ids=" ".join)
def test_a_full_stdout_is_named(arguments: list[str], tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child14")
    folders = [str(tmp_path / "in"), str(tmp_path / "out")] if arguments[0] == "align" else []
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PREFORK, arguments[0], *folders, *arguments[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "prefork: stdout cannot be written: No space left on device; make room there\n"


@pytest.mark.exec  # a launcher has all streams
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["plain", "json"])
def test_a_closed_stdout_costs_no_output(arguments: list[str], tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child14")
    command = shlex.join([*PREFORK, "align", str(tmp_path / "in"), str(tmp_path / "out"), *arguments])
    done = subprocess.run(["sh", "-c", f"{command} >&-"], stderr=subprocess.PIPE, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "child14.cha").is_file()


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child14")
    done = subprocess.run(
        [*PREFORK, "align", str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2
    assert "File too large; allow larger files (`ulimit -f unlimited`)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["the folder", "an output"])
def test_outputs_that_are_removed_in_the_run_are_not_done(what: str, tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child14")
    copy_sample(tmp_path / "in", "adult00")
    out = tmp_path / "out"
    process = start("align", tmp_path / "in", out, "--workers", "1")

    def remove() -> None:
        while process.poll() is None:
            for output in out.glob("*.cha"):
                if output.stat().st_size:
                    (out.rename(tmp_path / "away") if what == "the folder" else output.unlink())
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=remove)
    thread.start()
    said, _ = process.communicate(timeout=90)
    thread.join()
    assert process.returncode == 2
    assert "of its outputs were removed while this run wrote; start again" in said


def test_every_refusal_is_one_line_with_its_name() -> None:
    error = OSError(28, "No space left on device", "/data/a\nb")
    assert describe_os_error(error) == "/data/a\\nb: No space left on device; make room there"
    assert describe_os_error(OSError("odd")) == "odd"
