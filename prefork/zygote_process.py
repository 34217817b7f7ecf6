"""The zygote as the supervisor has it: a child process, a channel to it, and what it says on stderr."""

from __future__ import annotations

import os
import subprocess

from prefork import zygote
from prefork.channel import Channel


class ZygoteProcess:
    """Started by exec, in a session of its own: Ctrl-C is for the supervisor, which knows what to do about it.

    errors: the reading end of its stderr. last_words: what was read from there. talkative: its stdout, which is its
    workers' too, is this process's; else it goes where stderr goes.
    """

    def __init__(self, specification: zygote.Specification, talkative: bool) -> None:
        self.channel, there = Channel.pair()
        self.errors, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.errors, False)
        self.last_words = bytearray()
        with there:
            self._process = subprocess.Popen(
                zygote.command(there.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=None if talkative else writing,
                stderr=writing,
                pass_fds=[there.fileno()],
                env={**os.environ, **zygote.ENVIRONMENT},
                start_new_session=True,
            )
        os.close(writing)
        self.channel.post(specification)

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, patience: float) -> int:
        """Its exit status. It ends its workers, then itself, when its channel closes; if not within `patience`
        seconds, it is killed, and the kernel ends its workers."""
        self.channel.close()
        os.close(self.errors)
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
