"""What prefork's processes ask of the operating system: parents, file descriptors, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process uses, in bytes. pss: its share of what it shares included. uss: its own alone."""

    pss: int
    uss: int


def measure_memory(pid: int) -> Memory | None:
    """None if the process is gone."""
    try:
        info = psutil.Process(pid).memory_full_info()
    except psutil.NoSuchProcess:
        return None
    return Memory(getattr(info, "pss", info.uss), info.uss)


def release_free_memory() -> None:
    """Gives the kernel what malloc holds back of memory that has been freed; glibc alone knows how."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def die_with_parent(parent: int) -> None:
    """Ends this process when its parent ends, however that happens.

    On Linux the kernel sees to it. Elsewhere the process ends when it next looks at its channel.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def close_inherited(keep: set[int]) -> None:
    """Closes every file descriptor above stderr that is not to be kept."""
    directory = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    for name in os.listdir(directory):
        fd = int(name)
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                os.close(fd)


def restore_signals() -> None:
    """Default signal handling; a write to a closed pipe stays an exception, as everywhere in Python."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


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
