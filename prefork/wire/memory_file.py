"""Memory that several processes map: files without a name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass


def open_memory() -> int:
    """A descriptor of a file without a name: memory that is accounted once, however many processes map it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("prefork-arena", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class MemoryFile:
    """Memory that other processes of this user can open by `path`, as long as this object is not closed."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = open_memory()
            self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self._fd, self.path = tempfile.mkstemp(prefix="prefork-arena-")

    def close(self) -> None:
        os.close(self._fd)
        if not hasattr(os, "memfd_create"):
            with contextlib.suppress(PermissionError):  # Windows: a process that is still ending maps it
                os.unlink(self.path)  # noqa: PTH108


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. dtype: its name in torch. offset: bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


Layout = Sequence[Place]
