"""`prefork samples`: all of them or none, and nothing that is there is changed."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefork.cli.samples import SAMPLES, copy_samples
from prefork.engines.base import InputError
from tests.prefork.command import PREFORK, run

NAMES = sorted(path.name for path in SAMPLES.iterdir())


def _list(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_recordings_transcripts_and_licence_are_copied_and_the_next_command_is_said(tmp_path: Path) -> None:
    target = tmp_path / "my first" / "try"
    done = run("samples", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert _list(target) == {path.name: path.read_bytes() for path in SAMPLES.iterdir()}
    assert {"README.md", "adult00.cha", "adult00.flac"} <= set(NAMES)
    assert shlex.split(done.stdout.splitlines()[-1]) == ["next:", "prefork", "align", str(target), "aligned"]


def _look_at(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_samples_that_are_there_stay_as_they_are_and_those_that_are_not_are_added(tmp_path: Path) -> None:
    copy_samples(tmp_path)
    before = _look_at(tmp_path / "adult00.cha")
    (tmp_path / "child15.cha").unlink()
    (tmp_path / "mine.txt").write_text("mine")
    assert copy_samples(tmp_path) == [tmp_path / "child15.cha"]
    assert copy_samples(tmp_path) == []
    assert _look_at(tmp_path / "adult00.cha") == before
    assert sorted(_list(tmp_path)) == sorted([*NAMES, "mine.txt"])


@pytest.mark.parametrize("kind", ["other bytes", "folder", "link that leads nowhere"])
def test_nothing_is_copied_where_something_else_has_the_name_of_one(tmp_path: Path, kind: str) -> None:
    taken = tmp_path / NAMES[-1]  # the last one: those before it are not copied either
    if kind == "folder":
        taken.mkdir()
    elif kind == "other bytes":
        taken.write_bytes((SAMPLES / taken.name).read_bytes() + b"x")
    else:
        taken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError) as caught:
        copy_samples(tmp_path)
    assert str(caught.value).startswith(f"{taken}: already exists and differs from the sample; move it away")
    assert os.listdir(tmp_path) == [taken.name]


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("samples", tmp_path / "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"prefork: {tmp_path}/file: is a file; give the name of a folder\n"
    with pytest.raises(InputError, match=r"Not a directory; .* give another folder"):
        copy_samples(tmp_path / "file" / "below")
    assert _list(tmp_path) == {"file": b"mine"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc, where nobody may make a folder")
def test_a_place_that_takes_no_folder_is_named_with_the_reason() -> None:
    done = run("samples", "/proc/samples")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("prefork: /proc/samples: the samples cannot be copied there: No such file")


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"loop: the samples cannot be copied there: .*; make room"):
        copy_samples(tmp_path / "loop")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied; make room or make it writable"):
        copy_samples(tmp_path / "samples")


@pytest.mark.parametrize("place", ["samples", "engines/mine", "platform_matrix"])
def test_prefork_s_own_folders_take_none(place: str) -> None:
    folder = SAMPLES.parent / place.partition("/")[0]
    before = sorted(os.listdir(folder))
    with pytest.raises(InputError, match="is inside prefork itself; give another folder"):
        copy_samples(SAMPLES.parent / place)
    assert sorted(os.listdir(folder)) == before


def test_a_disk_that_is_full_half_way_is_left_as_it_was(tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in SAMPLES.iterdir())

    def allow_no_such_file() -> None:  # the kernel refuses to write on, as on a full disk; the first files fit
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    done = subprocess.run(
        [*PREFORK, "samples", tmp_path / "a" / "b"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=allow_no_such_file,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "the samples cannot be copied there: File too large; make room" in done.stderr
    assert os.listdir(tmp_path) == []
