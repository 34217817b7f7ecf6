"""The zygote and the workers of a pool, as processes: started, listened to, reaped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from prefork.platform_matrix.systems import SYSTEM
from prefork.pool import actions
from prefork.pool.call_link import CallLink, FromCalls
from prefork.pool.calls import Call
from prefork.pool.events import (
    CallsTakenBack,
    WorkerClosed,
    WorkerReaped,
    WorkerSent,
    WorkerStarted,
    ZygoteExited,
    ZygoteSent,
)
from prefork.pool.watch import EXIT_SECONDS, Watch
from prefork.wire.blocks import MOST_BLOCKS, Blocks
from prefork.wire.calls import CAN_TAKE_BACK, ContinueCall, OpenTokens
from prefork.wire.channel import Channel
from prefork.wire.child import ChildProcess, OutputPipe
from prefork.wire.environment import hide_gpus, make_environment
from prefork.wire.messages import (
    ChangeCredits,
    ConnectServer,
    FromWorker,
    FromZygote,
    RefuseRequest,
    RunTask,
    WorkerExited,
)
from prefork.wire.shared_tracker import TrackerLink
from prefork.wire.specification import Specification

Message = Specification | RunTask | RefuseRequest | ConnectServer | ChangeCredits | ContinueCall


@dataclass(slots=True)
class _WorkerEnd:
    """The supervisor's end of a worker. child: if it was not forked by the zygote."""

    channel: Channel
    stderr: OutputPipe
    child: ChildProcess | None = None
    generation: int = 0  # of its zygote
    stderr_tail: bytearray = field(default_factory=bytearray)
    calls: CallLink | None = None  # from the first call on


class WorkerProcesses:
    """zygotes: by the generation of their weights; usually there is one."""

    def __init__(self, watch: Watch) -> None:
        self.zygotes: dict[int, ChildProcess] = {}
        self._watch = watch
        self._workers: dict[int, _WorkerEnd] = {}
        self._tracker = TrackerLink() if SYSTEM.passes_descriptors else None
        if self._tracker is not None:
            watch.loop.watch(self._tracker, self._tracker.answer)
        clients = watch.pool.workers.plan.workers + 2
        self._most_blocks = max(4, min(MOST_BLOCKS, SYSTEM.max_descriptors() // (4 * clients)))  # of each process
        self._blocks = Blocks(self._most_blocks)

    # -- the zygote --------------------------------------------------------------------------------------------

    def start_zygote(self, action: actions.StartZygote) -> None:
        environment = {**make_environment(action.plan), **hide_gpus(action.plan)}
        self.zygotes[action.generation] = zygote = ChildProcess(
            "work.zygote", environment, self._watch.reporter.inherits_stdout
        )
        self._watch.watch(zygote, partial(self._read_zygote, action.generation, zygote))
        self._watch.post(zygote.channel, action.specification, self._open_tracker())

    def _read_zygote(self, generation: int, zygote: ChildProcess) -> None:
        def take(message: FromZygote, _: Sequence[int]) -> None:
            if isinstance(message, WorkerExited):
                self._reap_worker(message.number, message.status)
            else:
                self._watch.feed(ZygoteSent(message, generation))

        lose = partial(self._lose_zygote, generation, zygote)
        self._watch.read(zygote.channel, take, lose, is_wanted=lambda: self.zygotes.get(generation) is zygote)

    def _lose_zygote(self, generation: int, zygote: ChildProcess) -> None:
        tail = self._watch.read_stderr(zygote.stderr, zygote.stderr_tail)
        status = self.end_zygote(generation, EXIT_SECONDS)
        unbegun: dict[int, Sequence[int]] = {}
        for number, end in list(self._workers.items()):
            if end.child is None and end.generation == generation:  # it died with it, and may have finished something
                self._drain(number, end)
                unbegun[number] = end.calls.take_back() if end.calls is not None else ()
                self._forget(end)
                del self._workers[number]
        self._watch.feed(ZygoteExited(status, self._watch.was_out_of_memory(status), tail, unbegun, generation))

    def end_zygote(self, generation: int, patience: float) -> int:
        zygote = self.zygotes.pop(generation, None)
        return self._watch.end(zygote, patience) if zygote is not None else 0

    # -- the workers -------------------------------------------------------------------------------------------

    def fork(self, action: actions.Fork) -> None:
        if (zygote := self.zygotes.get(action.generation)) is None:
            return
        channel, there = Channel.pair()
        stderr, writing = OutputPipe.pipe()
        self._add(action.order.number, _WorkerEnd(channel, stderr, generation=action.generation))
        self._watch.post(zygote.channel, action.order, (there.detach(), writing))

    def spawn(self, action: actions.Spawn) -> None:
        environment = make_environment(action.plan)
        if action.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = action.device
        child = ChildProcess("work.spawned", environment, self._watch.reporter.inherits_stdout)
        self._add(action.number, _WorkerEnd(child.channel, child.stderr, child))
        self._watch.feed(WorkerStarted(action.number, child.pid))

    def _add(self, number: int, end: _WorkerEnd) -> None:
        self._workers[number] = end
        self._watch.loop.watch(end.channel, partial(self._read_worker, number, end))
        self._watch.watch_stderr(end.stderr, end.stderr_tail)

    def send(self, number: int, message: Message, fds: tuple[int, ...] = ()) -> None:
        if isinstance(message, Specification):
            fds = self._open_tracker()
        self._watch.post(self._workers[number].channel, message, fds)

    def _open_tracker(self) -> tuple[int, ...]:
        """What goes with a specification: see prefork.wire.shared_tracker."""
        return () if self._tracker is None else (self._tracker.open(),)

    def send_calls(self, action: actions.SendCalls) -> None:
        number = action.number
        if (end := self._workers.get(number)) is None:
            return  # it has just ended: they are done again when that is handled
        if end.calls is None:
            end.calls = CallLink(number, self._blocks)
            if CAN_TAKE_BACK:
                self._watch.post(end.channel, OpenTokens(self._most_blocks), (end.calls.open_tokens(),))
        calls = [task.arguments[0] for task in action.calls]
        message, fds = end.calls.give(action.first, calls, action.at_once)
        self._watch.post(end.channel, message, fds)

    def take_calls_back(self, number: int) -> None:
        if (end := self._workers.get(number)) is not None and end.calls is not None:
            self._watch.feed(CallsTakenBack(number, end.calls.take_back()))

    def end_call(self, call: Call) -> None:
        """What was placed for it is not needed any more."""
        self._blocks.let_go(call.places, call)

    def trim(self) -> None:
        """Gives back memory that calls have not needed for a while."""
        self._blocks.trim()
        for number, end in self._workers.items():
            worker = self._watch.pool.workers.all[number]
            if end.calls is None or (worker.task is not None and not worker.calls):  # it may be at a job
                continue
            if (message := end.calls.trim(time.monotonic())) is not None:
                self._watch.post(end.channel, message)

    def has(self, number: int) -> bool:
        """Whether it can be sent something."""
        return number in self._workers

    def kill_spawned(self, number: int) -> None:
        if (end := self._workers.get(number)) is not None and end.child is not None:
            end.child.kill()

    def interrupt_spawned(self, number: int) -> None:
        if (end := self._workers.get(number)) is not None and end.child is not None:
            end.child.interrupt()

    def _read_worker(self, number: int, end: _WorkerEnd) -> None:
        def close() -> None:
            self._watch.loop.ignore(end.channel)
            self._watch.feed(WorkerClosed(number))

        self._watch.read(end.channel, partial(self._take, number, end), close)

    def _take(self, number: int, end: _WorkerEnd, message: FromWorker | FromCalls, fds: Sequence[int]) -> None:
        if not isinstance(message, FromCalls):
            self._watch.feed(WorkerSent(number, message))
        elif end.calls is not None and (event := end.calls.take(message, fds)) is not None:
            self._watch.feed(event)

    def _drain(self, number: int, end: _WorkerEnd) -> None:
        """What it has sent before it died."""
        with contextlib.suppress(EOFError):
            for message, fds in end.channel.poll_with_fds():
                self._take(number, end, message, fds)

    def _reap_worker(self, number: int, status: int) -> None:
        end = self._workers.pop(number)
        self._drain(number, end)
        tail = self._watch.read_stderr(end.stderr, end.stderr_tail)
        unbegun = end.calls.take_back() if end.calls is not None else ()
        self._forget(end)
        kill_reason = self._watch.pool.workers.all[number].kill_reason
        self._watch.feed(
            WorkerReaped(number, status, self._watch.was_out_of_memory(status, kill_reason), tail, unbegun)
        )

    def _forget(self, end: _WorkerEnd) -> None:
        self._watch.loop.ignore(end.channel)
        self._watch.loop.ignore(end.stderr)
        end.channel.close()
        end.stderr.close()
        if end.calls is not None:
            end.calls.close()

    @property
    def is_ending(self) -> bool:
        """Whether a spawned worker is about to exit: nobody reports that, so it has to be polled."""
        workers = self._watch.pool.workers.all
        return any(end.child is not None and workers[number].closed for number, end in self._workers.items())

    def reap(self) -> None:
        """Looks which of the spawned workers that are about to exit have; for the others, the zygote does."""
        for number, end in list(self._workers.items()):
            worker = self._watch.pool.workers.all[number]
            if worker.closed or worker.kill_reason:
                self._reap_spawned(number, end)

    def notice_deaths(self) -> None:
        """Of those whose channel does not say so, because a child of theirs has it open too."""
        for number, end in list(self._workers.items()):
            self._reap_spawned(number, end)
        for generation, zygote in list(self.zygotes.items()):
            if zygote.poll() is not None:
                self._read_zygote(generation, zygote)  # what it has sent before
                if self.zygotes.get(generation) is zygote:
                    self._lose_zygote(generation, zygote)

    def _reap_spawned(self, number: int, end: _WorkerEnd) -> None:
        if end.child is not None and (status := end.child.poll()) is not None:
            self._reap_worker(number, status)

    def end(self, at_once: bool) -> None:
        """Ends all."""
        workers, self._workers = list(self._workers.values()), {}
        until = time.monotonic() + (0.0 if at_once else EXIT_SECONDS)
        for end in workers:
            self._forget(end)
        for child in [end.child for end in workers if end.child is not None]:
            child.end(max(0.0, until - time.monotonic()))
        for generation in list(self.zygotes):
            self.end_zygote(generation, EXIT_SECONDS if self._watch.pool.models.inventory else 0.0)
        if self._tracker is not None:
            self._watch.loop.ignore(self._tracker)
            self._tracker.close()
        self._blocks.close()
