"""Ctrl-C, SIGTERM and what else asks a program to end, as long as there is something to save."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prefork.platform_matrix.systems import SYSTEM


@contextmanager
def catch_signals(caught: list[int]) -> Iterator[None]:
    """Takes note of them. Before there is anything to save, they end the process as always."""
    previous = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in SYSTEM.list_interrupts()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
