"""Descriptors that are passed to a process and closed here at once arrive, as prefork's supervisor passes them.

Where they do not, `N of 300 lost` says how often.
"""

from __future__ import annotations

import os
import socket
import sys
import time

_COUNT = 300


def main() -> int:
    if not hasattr(os, "fork"):
        print("nothing to try: this system has no fork")
        return 0
    lost = sum(not _pass_on() for _ in range(_COUNT))
    print(f"{lost} of {_COUNT} lost")
    return int(lost > 0)


def _pass_on() -> bool:
    """A socket and a pipe, to a process that does not read yet; whether both arrive."""
    ours, theirs = socket.socketpair()
    here, there = socket.socketpair()
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        here.close()
        os.close(reading)
        ours.close()
        there.close()
        os.close(writing)
        time.sleep(0.02)
        _, fds, _, _ = socket.recv_fds(theirs, 8, 4)
        try:
            socket.socket(fileno=fds[0]).sendall(b"x")
            os.write(fds[1], b"y")
            os._exit(0)
        except OSError:
            os._exit(1)
    socket.send_fds(ours, [b"12345678"], [there.fileno(), writing])
    there.close()
    os.close(writing)
    theirs.close()
    here.settimeout(2)
    try:
        arrived = here.recv(1) == b"x" and os.read(reading, 1) == b"y"
    except OSError:
        arrived = False
    os.waitpid(pid, 0)
    ours.close()
    here.close()
    os.close(reading)
    return arrived


if __name__ == "__main__":
    sys.exit(main())
