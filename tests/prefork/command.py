"""The command as a user runs it, and folders for it to work on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from prefork.engines.base import Job
from tests.environment import LAUNCHER

SAMPLES = Path(__file__).resolve().parents[2] / "prefork" / "samples"
PREFORK = [sys.executable, "-c", "from prefork.cli.app import main; main()"]


def run(*arguments: object, timeout: float = 90, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, without a terminal."""
    return subprocess.run(
        [*PREFORK, *map(os.fspath, map(_text, arguments))],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """Starts it, for somebody to disturb it."""
    return subprocess.Popen(
        [*PREFORK, *map(_text, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_apart(function: Callable[[Path], None], folder: Path) -> None:
    """A test in a process of its own: what this one has in memory, other tests' libraries and models, would count."""
    module = f"tests.prefork.{function.__module__.rpartition('.')[2]}"
    code = f"import sys, pathlib; from {module} import {function.__name__} as function; "
    command = [sys.executable, "-c", f"{code}function(pathlib.Path(sys.argv[1]))", os.fspath(folder)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr


def _text(argument: object) -> str:
    return os.fsdecode(argument) if isinstance(argument, os.PathLike | bytes) else str(argument)


def wait_until_gone(pids: Iterable[int], seconds: float) -> list[int]:
    """Those that still run after so long. A zombie is gone: it waits for init alone, which takes its time."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def find_children(pid: int, recursive: bool = False) -> list[psutil.Process]:
    """As psutil, zombies too; launchers of the tests left out, and what ends meanwhile."""
    return [child for child in psutil.Process(pid).children(recursive) if _is_own(child)]


def _is_own(child: psutil.Process) -> bool:
    try:
        return bool(child.cmdline()[:1] != [LAUNCHER])
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False


def write_wav(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(os.fspath(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * round(16_000 * seconds)))


def write_script(folder: Path, name: str, *lines: str) -> Path:
    """An input of the script engine, with a recording."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines))
    write_wav(path.with_suffix(".wav"), 0.1 * len(lines))
    return path


def write_job(folder: Path, name: str, *lines: str) -> Job:
    """A job of the script engine that needs no recording: a second for each line."""
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines))
    return Job(path.name, path, seconds=float(len(lines)))


def copy_sample(folder: Path, sample: str, name: str | None = None) -> Path:
    """A real recording with its transcript, under a name of our choice; the transcript."""
    folder.mkdir(parents=True, exist_ok=True)
    name = name or sample
    shutil.copy(SAMPLES / f"{sample}.flac", folder / f"{name}.flac")
    text = (SAMPLES / f"{sample}.cha").read_bytes()
    path = folder / f"{name}.cha"
    path.write_bytes(text.replace(f"@Media:\t{sample}, audio\n".encode(), b""))
    return path


def read_outputs(folder: Path) -> dict[str, bytes]:
    """Every file that a run has written, by its path; the journal and the logs left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {".prefork", "performance_logs"} & set(path.relative_to(folder).parts)
    }
