"""What prefork's processes ask of the operating system: parents, file descriptors, memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WALK_SECONDS = 0.5  # between two walks of a worker through its own page tables: 10 to 20 ms each
_VICTIM = 500  # added to a thousandth of memory that the kernel counts when it looks for a victim, -1000 to 1000
_STATUS = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process uses, in bytes. pss: its share of what it shares included. uss: its own alone."""

    pss: int
    uss: int


def measure_memory(pid: int) -> Memory | None:
    """None if the process is gone, or not ours to look at."""
    try:
        info = psutil.Process(pid).memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return Memory(getattr(info, "pss", info.uss), info.uss)


class MemoryProbe:
    """Measures one process again and again, cheaply.

    What is a process's own is known exactly only after a walk through its page tables: 8 to 20 ms for one that has
    torch loaded. In between, on Linux, what has changed since is read off two counters.
    """

    def __init__(self, pid: int, patience: float = math.inf) -> None:
        """patience: seconds that an exact measurement counts for, unless one is asked for."""
        self.pid = pid
        self._patience = patience
        self._walked = -math.inf
        self._exact: Memory | None = None
        self._anonymous = 0  # bytes of private mappings when it was exact

    def read(self, exact: bool = False) -> Memory | None:
        """None if the process is gone."""
        anonymous = _count_anonymous(self.pid)
        now = time.monotonic()
        if exact or self._exact is None or anonymous is None or now - self._walked > self._patience:
            self._exact, self._walked, self._anonymous = measure_memory(self.pid), now, anonymous or 0
            return self._exact
        more = anonymous - self._anonymous
        return Memory(max(0, self._exact.pss + more), max(0, self._exact.uss + more))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker took for a task, and what it has after it. peak: bytes of its own at the most, None where nobody
    can say; taken: the same, less what it had before."""

    memory: Memory
    peak: int | None
    taken: int | None


class PeakProbe:
    """This process's own memory at its highest since `reset`.

    The kernel keeps the highest resident size and lets us set it back (Linux). What has been given back since then
    was this process's own, as long as it maps no more of what is shared: own at the peak = own now + (highest resident
    size - resident size now).
    """

    def __init__(self) -> None:
        self._probe = MemoryProbe(os.getpid(), _WALK_SECONDS)
        self._before = 0
        self._counts = False  # from the last reset on, and not from the process's beginning

    def reset(self) -> None:
        memory = self._probe.read()
        self._before = memory.uss if memory else 0
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._counts = True
        except OSError:  # not Linux, or a sandbox without it: nobody can say then
            self._counts = False

    def read(self) -> Usage | None:
        memory = self._probe.read()
        if memory is None:
            return None
        status = {name: 1024 * int(size) for name, size in _STATUS.findall(_read("/proc/self/status"))}
        if len(status) < 2 or not self._counts:
            return Usage(memory, None, None)
        peak = memory.uss + status["VmHWM"] - status["VmRSS"]
        return Usage(memory, peak, max(0, peak - self._before))


def measure_address_space(pid: int) -> int:
    """Bytes that a process has mapped, which is what RLIMIT_AS limits; 0 if it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[0]) * mmap.PAGESIZE if fields else 0


def _count_anonymous(pid: int) -> int | None:
    """Bytes resident in private mappings, those shared with a parent since a fork included; None if unknown."""
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE if len(fields) > 2 else None


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:  # no such process any more, or no /proc
        return ""


def prefer_as_victim() -> None:
    """If the kernel has to end somebody for want of memory, let it be this process: it can be replaced."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/oom_score_adj").write_text(str(_VICTIM))


def release_free_memory() -> None:
    """Gives the kernel what malloc holds back of memory that has been freed; glibc alone knows how.

    After every segment, a wav2vec2 of 95 M peaks at 220 MB instead of 271 (the embedded model at 52 instead of 58),
    always the same for the same length (0.99 to 1.01 of a line through the lengths instead of 0.94 to 1.25), and is
    not slower (20.0 and 20.6 s instead of 20.4 and 21.1). A fixed M_MMAP_THRESHOLD of 1 MB gains no more, and is.
    """
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


def count_descriptors() -> int:
    """File descriptors that a process of this user may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if most == resource.RLIM_INFINITY else most


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
