"""The files that weights are shared in, where a system has no files without a name: none stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefork.platform_matrix.systems import SYSTEM as SYSTEM_HERE
from prefork.weights.arena import Arena
from prefork.wire.memory_file import MemoryFile, remove_abandoned_memory
from tests.prefork.command import PREFORK, copy_sample, run
from tests.systems import SYSTEM


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As on macOS and Windows. The folder that such files are in."""
    monkeypatch.setattr(SYSTEM_HERE, "has_nameless_files", False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _end_one() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_files_of_processes_that_have_ended_are_removed_and_no_others(on_disk: Path) -> None:
    left = on_disk / f"prefork-arena-{_end_one()}-x"
    recycled = on_disk / f"prefork-arena-{os.getpid()}-older"
    theirs, other = on_disk / f"prefork-arena-{os.getppid()}-y", on_disk / "prefork-arena-mine"
    for file in (left, recycled, theirs, other):
        file.write_bytes(b"weights")
    os.utime(recycled, (1e9, 1e9))  # before this process was there
    memory = MemoryFile()
    remove_abandoned_memory()
    assert sorted(path.name for path in on_disk.iterdir()) == sorted([theirs.name, other.name, Path(memory.path).name])
    memory.close()
    assert not Path(memory.path).exists()


@pytest.mark.usefixtures("on_disk")
def test_a_file_that_somebody_has_cleaned_up_is_closed_like_any_other() -> None:
    """macOS does with what nobody has opened for days."""
    memory = MemoryFile()
    Path(memory.path).unlink()
    memory.close()


def test_weights_that_are_inherited_need_no_file(on_disk: Path) -> None:
    model = torch.nn.Linear(64, 64)
    expected = model(torch.ones(64)).tolist()
    arena = Arena.pack({"score": model})
    arena.seal()
    assert not list(on_disk.iterdir()) and not _list_deleted(on_disk)
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        torch.set_num_threads(1)
        os.write(writing, b"equal" if model(torch.ones(64)).tolist() == expected else b"other")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 5) == b"equal"
    os.close(reading)
    os.close(writing)


def _list_deleted(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200 << 20))
    memory = MemoryFile()
    with pytest.raises(ValueError, match=r"take 0.00 GB on the disk of .*, where 0.21 GB are free; .*TMPDIR"):
        Arena.pack({"score": torch.nn.Linear(4, 4)}, memory.path)
    assert Path(memory.path).stat().st_size == 0
    memory.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        command = [*PREFORK, *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="another system is made of what Linux has")
@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_a_run_that_was_killed_leaves_no_file_to_the_next(
    strategy: str, tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """However that runs: forked workers need no such file."""
    copy_sample(tmp_path / "in", "child15")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment: dict[str, Any] = {SYSTEM: "darwin", "TMPDIR": str(temporary)}
    options = ("--force-cpu", "--workers", 1, "--strategy")
    process = started("align", tmp_path / "in", tmp_path / "killed", *options, "spawn", **environment)
    deadline = time.monotonic() + 60
    while not (found := [file for file in temporary.glob("prefork-arena-*") if file.stat().st_size]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert found[0].exists()
    done = run("align", tmp_path / "in", tmp_path / "out", *options, strategy, **environment)
    assert done.returncode == 0, done.stderr
    assert not list(temporary.glob("prefork-arena-*"))
