"""The memory of one process, measured: what it shares, what is its own, and its peak."""

from __future__ import annotations

import math
import mmap
import os
import re
import time
from pathlib import Path

import psutil

from prefork.wire.messages import Memory, Usage

_WALK_SECONDS = 0.5  # between two walks of a worker through its own page tables: 10 to 20 ms each


_STATUS = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB", re.MULTILINE)


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
