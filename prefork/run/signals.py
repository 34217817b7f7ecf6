"""Ctrl-C and SIGTERM, as long as there is something to save."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def catch_signals(caught: list[int]) -> Iterator[None]:
    """Takes note of them. Before there is anything to save, they end the process as always."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
