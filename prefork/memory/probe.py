"""The memory of one process, measured: what it shares, what is its own, and its peak."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace

import psutil

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.messages import Memory, Usage

_WALK_SECONDS = 0.5  # between two walks of a worker through its own page tables: 10 to 20 ms each


def measure_memory(pid: int) -> Memory | None:
    """None if the process is gone, or not ours to look at."""
    try:
        info = psutil.Process(pid).memory_full_info()
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # on macOS, all but this one
        counted = SYSTEM.count_own(pid)
        return None if counted is None else Memory(counted, counted)
    return Memory(getattr(info, "pss", info.uss), info.uss)


def measure_self(mapped: int) -> Memory | None:
    """This process, as long as nobody shares what it has. mapped: bytes of memory that others are to map, and that the
    process's own do not contain where the system does not know how many share a page."""
    memory = measure_memory(os.getpid())
    return memory if memory is None or SYSTEM.knows_shares else replace(memory, pss=memory.uss + mapped)


class MemoryProbe:
    """Measures one process again and again, cheaply.

    What is a process's own is known exactly only after a walk through its page tables: 8 to 20 ms for one that has
    torch loaded. In between, on Linux and macOS, what has changed since is read off counters. Where only the process
    itself may walk there (macOS), it says what it has found, and `take` takes it.
    """

    def __init__(self, pid: int, patience: float = math.inf) -> None:
        """patience: seconds that an exact measurement counts for, unless one is asked for."""
        self.pid = pid
        self._patience = patience
        self._walked = -math.inf
        self._exact: Memory | None = None
        self._counted = 0  # bytes when it was exact
        self._is_told = False

    def read(self, exact: bool = False) -> Memory | None:
        """None if the process is gone."""
        counted = SYSTEM.count_own(self.pid)
        now = time.monotonic()
        is_stale = exact or now - self._walked > self._patience
        if self._exact is None or counted is None or (is_stale and not self._is_told):
            self._exact, self._walked, self._counted = measure_memory(self.pid), now, counted or 0
            return self._exact
        more = counted - self._counted
        return Memory(max(0, self._exact.pss + more), max(0, self._exact.uss + more))

    def take(self, memory: Memory) -> None:
        """What the process has just found of itself."""
        self._exact, self._counted, self._is_told = memory, SYSTEM.count_own(self.pid) or 0, True


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
        self._counts = SYSTEM.reset_peak()

    def read(self) -> Usage | None:
        memory = self._probe.read()
        if memory is None:
            return None
        given_back = SYSTEM.measure_given_back() if self._counts else None
        if given_back is None:
            return Usage(memory, None, None)
        peak = memory.uss + given_back
        return Usage(memory, peak, max(0, peak - self._before))


def measure_address_space(pid: int) -> int:
    """Bytes that a process has mapped, which is what RLIMIT_AS limits; 0 if it is gone."""
    return SYSTEM.measure_address_space(pid)
