"""What the processes of a pool have in common: they are watched, sent to, and ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefork.memory.governor import Governor
from prefork.pool.events import Event
from prefork.pool.state import Pool
from prefork.wire.channel import Channel
from prefork.wire.child import ChildProcess, OutputPipe
from prefork.wire.endings import Killer, find_killer
from prefork.wire.loop import Loop

EXIT_SECONDS = 2.0  # how long a process may take to end by itself


@dataclass(frozen=True, slots=True)
class Reporter:
    """What the pool reports to the program. announce: the models are loaded, or never will be. interrupt: nothing new
    begins. inherits_stdout: there is no log, so that what processes print on stdout goes to stdout."""

    announce: Callable[[], None]
    interrupt: Callable[[], None]
    notify: Callable[[str], None]
    log: Callable[[str], None]
    inherits_stdout: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """The supervisor's side of processes. feed: takes what happens to them."""

    pool: Pool
    loop: Loop
    governor: Governor
    feed: Callable[[Event], None]
    reporter: Reporter

    def post(self, channel: Channel, message: object, fds: Sequence[int] = ()) -> None:
        channel.post(message, fds)
        self.loop.flush(channel)

    def read(
        self,
        channel: Channel,
        take: Callable[[Any, Sequence[int]], None],
        end: Callable[[], None],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Takes what a process has sent, with the descriptors beside it, as long as it is wanted; `end` is called once
        its channel is at its end."""
        self.loop.flush(channel)
        try:
            for message, fds in channel.poll_with_fds():
                take(message, fds)
                if not is_wanted():
                    return
        except EOFError:
            end()

    def watch(self, child: ChildProcess, read: Callable[[], None]) -> None:
        """read: called when there is something in its channel."""
        self.loop.watch(child.channel, read)
        self.watch_stderr(child.stderr, child.stderr_tail)

    def watch_stderr(self, stderr: OutputPipe, tail: bytearray) -> None:
        self.loop.watch(stderr, partial(self.loop.pass_on, stderr, tail, self.reporter.log))

    def read_stderr(self, stderr: OutputPipe, tail: bytearray) -> str:
        """All that is left of what it has printed; the last of it."""
        while self.loop.pass_on(stderr, tail, self.reporter.log):
            pass
        return tail.decode(errors="replace")

    def was_out_of_memory(self, status: int, kill_reason: str = "") -> bool:
        """Whether the kernel, and not we, has killed it for want of memory."""
        return find_killer(status, bool(kill_reason), self.governor.was_killed_for_memory) is Killer.KERNEL

    def end(self, child: ChildProcess, patience: float) -> int:
        """Its exit status. patience: seconds for it to end by itself."""
        self.loop.ignore(child.channel)
        self.loop.ignore(child.stderr)
        return child.end(patience)
