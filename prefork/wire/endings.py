"""What a process died of, in words."""

from __future__ import annotations

import signal

from prefork.platform_matrix.canary import describe_exit

KILLED = -getattr(signal, "SIGKILL", 9)  # exit status; Windows knows no signals, and no such status
CUT_OFF = -256  # in place of the exit status of a process that closed its channel, lived on, and was killed for that
FATAL = "prefork: fatal: "  # how the line begins in which a process says what it dies of


def find_fatal_line(text: str) -> str:
    """What a process said of its own end, in what it printed; empty if it said nothing."""
    lines = [line for line in text.splitlines() if line.startswith(FATAL)]
    return lines[-1].removeprefix(FATAL) if lines else ""


def describe_end(status: int, out_of_memory: bool, printed: str = "") -> str:
    """status: as subprocess has it, or CUT_OFF. out_of_memory: the kernel has killed it for want of memory. printed:
    the last that it has printed."""
    if out_of_memory:
        return "was killed by the kernel: out of memory"
    if status == CUT_OFF:
        return find_fatal_line(printed) or "closed its channel and was killed"
    return find_fatal_line(printed) or describe_exit(status)
