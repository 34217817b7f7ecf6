"""What a process died of, in words."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from prefork.platform_matrix.systems import SYSTEM

CUT_OFF = -256  # in place of the exit status of a process that closed its channel, lived on, and was killed for that
UNENDED = -257  # in place of the exit status of a process that was killed and did not end: it waits in the kernel
FATAL = "prefork: fatal: "  # how the line begins in which a process says what it dies of


class Killer(Enum):
    """Who has ended a process at once."""

    PREFORK = "prefork"
    KERNEL = "the kernel, for want of memory"
    SOMEBODY = "somebody else"


def find_killer(status: int, by_prefork: bool, was_memory_short: Callable[[], bool] = lambda: False) -> Killer | None:
    """None if nobody has: it has ended by itself, well or not.

    status: as subprocess has it. by_prefork: we have killed it. was_memory_short: whether the kernel has ended a
    process for want of memory since the last that was ended so; asked only if this may be the one.
    """
    killed = SYSTEM.describe_status(status).killed
    if by_prefork and killed is not False:
        return Killer.PREFORK
    if not killed:
        return None
    return Killer.KERNEL if was_memory_short() else Killer.SOMEBODY


def find_fatal_line(text: str) -> str:
    """What a process said of its own end, in what it printed; empty if it said nothing."""
    lines = [line for line in text.splitlines() if line.startswith(FATAL)]
    return lines[-1].removeprefix(FATAL) if lines else ""


def describe_end(status: int, out_of_memory: bool, printed: str = "") -> str:
    """status: as subprocess has it, or CUT_OFF. out_of_memory: the kernel has killed it for want of memory. printed:
    the last that it has printed."""
    if out_of_memory:
        return "was killed by the kernel: out of memory"
    if status == UNENDED:
        return "was killed and did not end: the kernel waits for its device"
    if status == CUT_OFF:
        return find_fatal_line(printed) or "closed its channel and was killed"
    return find_fatal_line(printed) or SYSTEM.describe_status(status).words
