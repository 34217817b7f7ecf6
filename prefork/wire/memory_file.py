"""Memory that several processes map: files without a name, and, where the system has none of these, files with one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from prefork.platform_matrix.systems import SYSTEM

_PREFIX = "prefork-arena-"
_NAMED = re.compile(rf"{_PREFIX}(\d+)-")
_SPARE = 256 << 20  # bytes of a disk that are left to others
_WAVERING = 2.0  # seconds by which a file's time and a process's may disagree


def open_memory() -> int:
    """A descriptor of a file without a name: memory that is accounted once, however many processes map it."""
    if SYSTEM.has_nameless_files:
        return SYSTEM.open_nameless("prefork-arena")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class MemoryFile:
    """Memory that other processes of this user can open by `path`, as long as this object is not closed.

    Where it has to be a file on a disk, its name says whose it is: see `remove_abandoned`.
    """

    def __init__(self) -> None:
        if SYSTEM.has_nameless_files:
            self._fd = open_memory()
            self.path = SYSTEM.name_nameless(self._fd)
        else:
            self._fd, self.path = tempfile.mkstemp(prefix=f"{_PREFIX}{os.getpid()}-")

    def close(self) -> None:
        os.close(self._fd)
        if not SYSTEM.has_nameless_files:
            # Windows: a process that is still ending maps it. macOS: who cleans up temporary files was here.
            with contextlib.suppress(PermissionError, FileNotFoundError):
                os.unlink(self.path)  # noqa: PTH108


def find_want(path: str, size: int) -> str:
    """Why a file on a disk cannot take so many bytes, in words; empty if it can. What is mapped and finds no room ends
    the process that writes to it."""
    folder = Path(path).parent
    free = 0 if SYSTEM.has_nameless_files else shutil.disk_usage(folder).free
    if SYSTEM.has_nameless_files or free - _SPARE >= size:
        return ""
    return (
        f"the weights, which the workers share in a file, take {size / 1e9:.2f} GB on the disk of {folder}, where "
        f"{free / 1e9:.2f} GB are free; make room there, or set {SYSTEM.temporary} to a folder "
        "on another disk"
    )


def remove_abandoned() -> None:
    """Removes the files of processes that have ended without a chance to. By whoever starts processes, whether it will
    make such a file or not."""
    if SYSTEM.has_nameless_files:
        return
    for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        found = _NAMED.match(file.name)
        with contextlib.suppress(OSError):  # somebody else has removed it, is about to end, or does not let us
            if found and _is_over(int(found[1]), file.stat().st_mtime):
                file.unlink()


def _is_over(pid: int, written: float) -> bool:
    """Whether the process has ended that wrote a file then; its number may be another's by now."""
    try:
        return bool(psutil.Process(pid).create_time() > written + _WAVERING)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. dtype: its name in torch. offset: bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


Layout = Sequence[Place]
