"""Stands for a command that the launcher of the tests forks, where a shell starts it: `launcher_client.py DOOR WORD...`

DOOR: the descriptor of the launcher's door, which is inherited. The words are those after `python`. To start this takes
20 ms: it passes on the arguments, the environment, the folder and the streams, and ends as the command does. What the
launcher may not fork is exec'ed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

REFUSED = 1 << 16  # no exit status


def main(door: int, command: list[str]) -> None:
    connection, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(socket.socket(fileno=os.dup(door)), [b"c"], [theirs.fileno()])
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
    content = {
        "arguments": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109  pathlib takes 20 ms
        "ignored": [number for number in signals if signal.getsignal(number) is signal.SIG_IGN],
    }
    request = json.dumps(content).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(request)
    answer = connection.recv(4, socket.MSG_WAITALL)
    if not answer:
        sys.exit("the launcher of the tests has gone")
    status = int.from_bytes(answer, "big", signed=True)
    if status == REFUSED:
        os.execv(command[0], command)
    os._exit(status if status >= 0 else 128 - status)  # as the shell calls a signal


if __name__ == "__main__":
    main(int(sys.argv[1]), [sys.executable, *sys.argv[2:]])
