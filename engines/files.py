"""Files as they were: what tells that one has been edited, or that another has taken its place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class FileState:
    """A file at some time.

    changed: when its content, and when anything about it did; nanoseconds. Whoever replaces a file can set the first,
    and nobody the second.
    """

    path: str
    size: int
    changed: tuple[int, int]
    inode: int

    @classmethod
    def note(cls, path: Path) -> Self:
        """As it is now. Raises OSError."""
        return cls.describe(path, path.stat())

    @classmethod
    def describe(cls, path: Path, status: os.stat_result) -> Self:
        return cls(os.fspath(path), status.st_size, (status.st_mtime_ns, status.st_ctime_ns), status.st_ino)

    def is_current(self) -> bool:
        """Whether it still is what it was. Reads nothing of it."""
        path = Path(self.path)
        try:
            return self.describe(path, path.stat()) == self
        except OSError:  # it is gone, or nobody can tell
            return False
