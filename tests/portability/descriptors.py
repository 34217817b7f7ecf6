"""Descriptors that prefork passes to a process that does not read yet, and is done with at once, arrive.

Where they do not, `N of 300 lost` says how often.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import NoReturn

from prefork.wire.channel import Channel

_COUNT = 300
_READING_SECONDS = 0.02


def main() -> int:
    if not hasattr(os, "fork"):
        print("nothing to try: this system has no fork")
        return 0
    lost = sum(not _pass_on() for _ in range(_COUNT))
    print(f"{lost} of {_COUNT} lost")
    return int(lost > 0)


def _pass_on() -> bool:
    """A socket and a pipe, as the supervisor does; whether both arrive."""
    channel, theirs = Channel.pair()
    here, there = socket.socketpair()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        here.close()
        there.close()
        os.close(reading)
        os.close(writing)
        _write_to_both(theirs)
    theirs.close()
    channel.post("a socket and a pipe", (there.detach(), writing))
    while not channel.flush():
        time.sleep(_READING_SECONDS / 10)
    _, status = os.waitpid(pid, 0)
    here.setblocking(False)
    os.set_blocking(reading, False)
    try:
        arrived = status == 0 and here.recv(1) == b"x" and os.read(reading, 1) == b"y"
    except BlockingIOError:
        arrived = False
    channel.close()
    here.close()
    os.close(reading)
    return arrived


def _write_to_both(theirs: socket.socket) -> NoReturn:
    status = 1
    try:
        time.sleep(_READING_SECONDS)
        _, fds = Channel(theirs).receive()
        socket.socket(fileno=fds[0]).sendall(b"x")
        os.write(fds[1], b"y")
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
