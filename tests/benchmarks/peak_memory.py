"""The most memory that processes have together while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

from prefork.memory.probe import measure_memory

_INTERVAL = 0.2  # seconds


@contextmanager
def watch_memory(pids: Sequence[int]) -> Iterator[list[int]]:
    """The largest PSS so far of these processes and all that descend from them, bytes, in a list of one."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(_INTERVAL):
            found = []
            for pid in pids:
                try:
                    parent = psutil.Process(pid)
                    found += [pid, *(child.pid for child in parent.children(recursive=True))]
                except psutil.NoSuchProcess:
                    continue
            sizes = [memory.pss for pid in found if (memory := measure_memory(pid)) is not None]
            peak[0] = max(peak[0], sum(sizes))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
