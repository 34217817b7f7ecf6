"""Admission: which task may start now, and what to do when memory gets short. Pure: asks nobody.

Everything here is bytes of private memory: pages that are shared are there already, whoever looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from prefork.platform_matrix.memory import MachineMemory

PATIENCE = 30.0  # seconds that smaller tasks may pass one that does not fit, before they have to wait for it
_LONG_SOME = 20.0  # percent of ten seconds in which some process waited for memory
_WARNING, _URGENT = 2, 4  # the system's levels of pressure on macOS: DISPATCH_MEMORYPRESSURE_*, dispatch/source.h
_LONG_FULL = 40.0  # percent of ten seconds in which all did; systemd-oomd kills at 60


class Level(IntEnum):
    """How short memory is."""

    EASY = 0
    TIGHT = 1  # nothing new is started
    CRITICAL = 2  # there are too many workers
    DESPERATE = 3  # the kernel is about to choose a victim; better we do


@dataclass(frozen=True, slots=True)
class Holder:
    """A worker: what it uses, and what its task was predicted to use at its peak; 0 if it has none."""

    used: int
    predicted: int = 0

    @property
    def promised(self) -> int:
        """What it may still take."""
        return max(0, self.predicted - self.used)


def find_room(available: int, reserve: int, workers: Iterable[Holder]) -> int:
    """Bytes that can be promised to another task."""
    return available - reserve - sum(worker.promised for worker in workers)


def choose(tasks: Iterable[tuple[int, float]], room: int) -> int | None:
    """Which task starts next: its place in the order, None if none may.

    tasks: in their order, what each will take, and for how many seconds others have passed it. The first that fits
    starts, unless one before it has been passed for too long: then what becomes free is kept for that one.

    >>> choose([(500, 0), (300, 0), (100, 0)], room=350)
    1
    >>> choose([(500, 31), (300, 0)], room=350) is None
    True
    """
    for place, (taken, passed) in enumerate(tasks):
        if taken <= room:
            return place
        if passed > PATIENCE:
            return None
    return None


def judge(memory: MachineMemory, reserve: int, before: Level = Level.EASY) -> tuple[Level, str]:
    """How short memory is, and why. before: what it was; it is easy again only when there is a little more."""
    available = memory.left
    text = f"{available / 1e9:.2f} GB available, less than {{}} the reserve of {reserve / 1e9:.2f} GB"
    if available < reserve // 4:
        return Level.DESPERATE, text.format("a quarter of")
    if memory.full is not None and memory.full >= _LONG_FULL:
        return Level.CRITICAL, f"all processes waited for memory {memory.full:.0f} % of the last 10 s"
    if available < reserve // 2:
        return Level.CRITICAL, text.format("half of")
    if memory.pressure is not None and memory.pressure >= _URGENT:
        return Level.CRITICAL, "the system says that memory is about to run out"
    if memory.some is not None and memory.some >= _LONG_SOME:
        return Level.TIGHT, f"some process waited for memory {memory.some:.0f} % of the last 10 s"
    if memory.pressure is not None and memory.pressure >= _WARNING:
        return Level.TIGHT, "the system says that memory is short"
    if available < reserve or (before > Level.EASY and available < reserve + reserve // 10):
        return Level.TIGHT, text.format("" if available < reserve else "1.1 times").replace("  ", " ")
    return Level.EASY, ""
