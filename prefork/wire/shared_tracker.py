"""One resource tracker for a program and its workers, as multiprocessing's own children have it.

A resource tracker unlinks what it was told of (shared memory, semaphores) when the last process that talks to it has
ended. A worker with one of its own would have it unlink what the program still uses. So it asks for the program's, when
it first needs one: only then is it started.
"""

from __future__ import annotations

import os
import socket
from multiprocessing import resource_tracker
from typing import Any

_SECONDS = 30.0  # for the program to answer


class TrackerLink:
    """The program's end. Whoever has the other end gets the tracker's descriptor for each byte that it sends."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()  # a stream: macOS has no SOCK_SEQPACKET for Unix sockets
        self._here.setblocking(False)

    def fileno(self) -> int:
        return self._here.fileno()

    def open(self) -> int:
        """A descriptor of the other end, for another process."""
        return os.dup(self._there.fileno())

    def answer(self) -> None:
        self._here.recv(1)
        fd = resource_tracker.getfd()
        if fd is not None:
            socket.send_fds(self._here, [b"t"], [fd])

    def close(self) -> None:
        self._here.close()
        self._there.close()


def share_tracker(fd: int) -> None:
    """From here on this process, and what it forks, has the tracker of the program at the other end of `fd`."""
    _shared[:] = [fd]
    tracker: Any = resource_tracker._resource_tracker
    kind = type(tracker)

    def ensure_running() -> None:
        _ask(tracker)
        kind.ensure_running(tracker)

    def send(*message: str) -> None:
        _ask(tracker)
        kind._send(tracker, *message)

    tracker.ensure_running, tracker._send = ensure_running, send


def list_descriptors() -> set[int]:
    """Those that a process needs to keep for it."""
    known: int | None = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
    return {*_shared} | (set() if known is None else {known})


_shared: list[int] = []  # the descriptor, once there is one


def _ask(tracker: Any) -> None:
    """If the program has gone, this process has one of its own after all."""
    if tracker._fd is not None:
        return
    try:
        with socket.socket(fileno=os.dup(_shared[0])) as link:
            link.settimeout(_SECONDS)
            link.send(b"t")
            found = socket.recv_fds(link, 1, 1)[1]
    except OSError:
        return
    for fd in found:
        os.set_inheritable(fd, False)
        tracker._fd = fd
