"""A program that has the launcher of the tests fork a command, and stands for it: `client.py DESCRIPTOR ARGUMENT...`

What bash starts cannot be forked by it. In the place of the command stands this, which takes 20 ms to start: it passes
on its arguments, folder, environment and streams, and to the command what signals it gets; it ends as the command does.
What the launcher may not start, it execs. descriptor: the end of the connection to the launcher, which it inherits.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # exec passes on whether they are ignored


def describe(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> dict[str, Any]:
    """What a process would inherit from this one."""
    limits = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
    return {
        "arguments": list(arguments),
        "environment": dict(environment),
        "folder": folder,
        "session": False,
        "kept": [],
        "cores": sorted(os.sched_getaffinity(0)),
        "ignored": [number for number in _INHERITED if signal.getsignal(number) is signal.SIG_IGN],
        "limits": {kind: resource.getrlimit(kind) for kind in limits},
    }


def send(connection: socket.socket, request: Mapping[str, Any], fds: Sequence[int]) -> None:
    data = json.dumps(request).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], list(fds))
    connection.sendall(data)


def main(handle: int, arguments: list[str]) -> None:
    """Returns if the launcher may not start it."""
    connection = socket.socket(fileno=handle)
    reading, writing = os.pipe()
    request = {**describe(arguments, os.environ, os.getcwd()), "reports": True}  # noqa: PTH109  pathlib takes 20 ms
    send(connection, request, [0, 1, 2, writing])
    os.close(writing)
    pid = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    connection.detach()
    if not pid:
        return
    for number in _INHERITED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(pid, number))
    status = os.waitstatus_to_exitcode(int.from_bytes(os.read(reading, 4), "big"))
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    command = [sys.executable, *sys.argv[2:]]
    main(int(sys.argv[1]), command)
    os.execv(sys.executable, command)
