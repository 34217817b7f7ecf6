"""Files and folders for a while, with names that say whose they are: what a process leaves that was killed, a later one
of the same user removes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

import psutil

from prefork.platform_matrix.systems import SYSTEM

_NAMED = re.compile(r"prefork-[a-z]+-(\d+)-")
_WAVERING = 2.0  # seconds by which a file's time and a process's may disagree


class TemporaryFile:
    """An empty file, as long as it is not closed. kind: lower-case letters. fd: open for reading and writing."""

    def __init__(self, kind: str) -> None:
        self.fd, self.path = tempfile.mkstemp(prefix=_name(kind))
        self._lock = _hold(self.path)

    def close(self) -> None:
        os.close(self.fd)
        # Windows: a process that is still ending maps it. macOS: who cleans up temporary files was here.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108
        _release(self._lock)


class TemporaryFolder:
    """A folder that this user alone can enter, as long as it is not closed. kind: lower-case letters."""

    def __init__(self, kind: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_name(kind)))
        self._lock = _hold(self.path)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        _release(self._lock)


def remove_abandoned(kind: str) -> None:
    """Removes the files and folders of this kind of this user's processes that have ended without a chance to. No link
    is followed, and nothing is touched that another process has locked: of one in another container the number says
    nothing."""
    for path in Path(tempfile.gettempdir()).glob(f"prefork-{kind}-*"):
        found = _NAMED.match(path.name)
        with contextlib.suppress(OSError):  # somebody else has removed it, is about to end, has it, or does not let us
            status = path.lstat()
            if found is None or stat.S_ISLNK(status.st_mode) or SYSTEM.is_other_user(status):
                continue
            if not _is_over(int(found[1]), status.st_mtime):
                continue
            lock = SYSTEM.hold(path)
            try:
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                _release(lock)


def _name(kind: str) -> str:
    return f"prefork-{kind}-{os.getpid()}-"


def _hold(path: str | Path) -> int:
    """-1 on a file system without locks too: its number says then whether the process is there."""
    try:
        return SYSTEM.hold(Path(path))
    except OSError:
        return -1


def _release(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


def _is_over(pid: int, written: float) -> bool:
    """Whether the process has ended that wrote a file then; its number may be another's by now."""
    try:
        return bool(psutil.Process(pid).create_time() > written + _WAVERING)
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
