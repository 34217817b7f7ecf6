"""Memory that several processes map: files without a name, and, where the system has none of these, files with one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.temporary import TemporaryFile, remove_abandoned

_KIND = "arena"
_SPARE = 256 << 20  # bytes of a disk that are left to others


def open_memory() -> int:
    """A descriptor of a file without a name: memory that is accounted once, however many processes map it."""
    if SYSTEM.has_nameless_files:
        return SYSTEM.open_nameless("prefork-arena")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class MemoryFile:
    """Memory that other processes of this user can open by `path`, as long as this object is not closed.

    Where it has to be a file on a disk, its name says whose it is: see `remove_abandoned_memory`.
    """

    def __init__(self) -> None:
        self._file: TemporaryFile | None = None
        if SYSTEM.has_nameless_files:
            self._fd = open_memory()
            self.path = SYSTEM.name_nameless(self._fd)
        else:
            self._file = TemporaryFile(_KIND)
            self.path = self._file.path

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            os.close(self._fd)


def remove_abandoned_memory() -> None:
    """Removes the files of processes that have ended without a chance to. By whoever starts processes, whether it will
    make such a file or not."""
    if not SYSTEM.has_nameless_files:
        remove_abandoned(_KIND)


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. dtype: its name in torch. offset: bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


Layout = Sequence[Place]
