"""The processes of a pool: started, killed and listened to as it wants. What happens to them comes back as events.

Lives in the supervisor's thread, and decides nothing: that is `prefork.pool.state`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from prefork.memory.governor import Governor
from prefork.memory.observation import ZYGOTE
from prefork.memory.probe import measure_memory
from prefork.pool import actions
from prefork.pool.events import (
    Event,
    OwnerExited,
    OwnerSent,
    ServerExited,
    ServerSent,
    WorkerClosed,
    WorkerReaped,
    WorkerSent,
    WorkerStarted,
    ZygoteExited,
    ZygoteSent,
)
from prefork.pool.state import Pool
from prefork.wire.channel import Channel
from prefork.wire.child import ChildProcess, Output
from prefork.wire.environment import hide_gpus, make_environment
from prefork.wire.loop import Loop
from prefork.wire.memory_file import MemoryFile
from prefork.wire.messages import ConnectWorker, UploadWeights, WorkerExited
from prefork.wire.specification import Specification

_EXIT_SECONDS = 2.0  # how long a process may take to end by itself
# OpenMP's threads wait for the next product by turning round and round, on the cores that the workers want: on two of
# them a server was three times slower at times, and one and a half times as fast with this.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class Reporter(Protocol):
    """Who is told what is no event."""

    def complete(self, action: actions.Complete) -> None: ...

    def announce(self) -> None:
        """The models are loaded, or never will be."""

    def interrupt(self) -> None:
        """Nothing new begins."""

    def notify(self, text: str) -> None: ...

    def log(self, text: str) -> None: ...


@dataclass(slots=True)
class _WorkerEnd:
    """The supervisor's end of a worker. child: if it was not forked by the zygote."""

    channel: Channel
    errors: Output
    child: ChildProcess | None = None
    stderr_tail: bytearray = field(default_factory=bytearray)


class Processes:
    """feed: takes what happens. talkative: there is no log, and what processes print on stdout goes to stdout."""

    def __init__(
        self,
        pool: Pool,
        loop: Loop,
        governor: Governor,
        feed: Callable[[Event], None],
        reporter: Reporter,
        talkative: bool,
    ) -> None:
        self.zygote: ChildProcess | None = None
        self._pool = pool
        self._loop = loop
        self._governor = governor
        self._feed = feed
        self._reporter = reporter
        self._talkative = talkative
        self._workers: dict[int, _WorkerEnd] = {}
        self._servers: dict[int, tuple[str, ChildProcess]] = {}  # by the place of their device, with their names
        self._owners: dict[int, tuple[str, ChildProcess]] = {}
        self._arena: MemoryFile | None = None

    # -- what the pool wants -----------------------------------------------------------------------------------

    def do(self, action: actions.Action) -> None:  # noqa: PLR0912, PLR0915  a case for each action
        match action:
            case actions.SendWorker(number, message):
                self._send_worker(number, message)
            case actions.Complete():
                self._reporter.complete(action)
            case actions.StartZygote():
                self._start_zygote(action)
            case actions.EndZygote():
                self._end_zygote(_EXIT_SECONDS)
            case actions.KillZygote():
                if self.zygote is not None:
                    self.zygote.kill()
            case actions.SendZygote(message):
                if self.zygote is not None:
                    self._post(self.zygote.channel, message)
            case actions.Fork():
                self._fork(action)
            case actions.Spawn():
                self._spawn(action)
            case actions.KillSpawned(number):
                if (end := self._workers.get(number)) is not None and end.child is not None:
                    end.child.kill()
            case actions.StartServer():
                self._start_server(action)
            case actions.SendServer(place, message):
                if place in self._servers:
                    self._post(self._servers[place][1].channel, message)
            case actions.Connect():
                self._connect(action)
            case actions.KillServer(place):
                self._servers[place][1].kill()
            case actions.EndServers(busy):
                self._end_servers(busy)
            case actions.StartOwners():
                self._start_owners(action)
            case actions.EndOwners():
                self._end_owners()
            case actions.OpenArena():
                self._arena = self._arena or MemoryFile()
            case actions.CloseArena():
                self._close_arena()
            case actions.MeasureLoaded():
                self._measure_loaded(action)
            case actions.Announce():
                self._reporter.announce()
            case actions.Interrupt():
                self._reporter.interrupt()
            case actions.Notify(text):
                self._reporter.notify(text)
            case actions.Log(text):
                self._reporter.log(text)

    def list_pids(self) -> dict[str, int]:
        """Of all processes, by name."""
        pids = {worker.name: worker.pid for worker in self._pool.workers.all.copy().values() if worker.pid}
        pids |= {name: child.pid for name, child in [*self._servers.values(), *self._owners.values()]}
        zygote = self.zygote
        return pids if zygote is None else {**pids, ZYGOTE: zygote.pid}

    @property
    def is_ending(self) -> bool:
        """Whether one that is not the zygote's child, and that nobody tells of, is about to be gone."""
        workers = self._pool.workers.all
        return any(end.child is not None and workers[number].closed for number, end in self._workers.items())

    def reap(self) -> None:
        """Looks which of the spawned workers have exited; for the others, the zygote does."""
        for number, end in list(self._workers.items()):
            worker = self._pool.workers.all[number]
            if end.child is not None and (worker.closed or worker.kill_reason):
                status = end.child.poll()
                if status is not None:
                    self._reap_worker(number, status)

    def end(self, at_once: bool) -> None:
        """Ends every process."""
        workers, self._workers = list(self._workers.values()), {}
        until = time.monotonic() + (0.0 if at_once else _EXIT_SECONDS)
        for end in workers:
            self._forget(end)
        for child in [end.child for end in workers if end.child is not None]:
            child.end(max(0.0, until - time.monotonic()))
        self._end_zygote(_EXIT_SECONDS if self._pool.models.inventory else 0.0)
        servers = self._pool.models.servers
        self._end_servers(servers.list_busy() if servers is not None else frozenset())
        self._end_owners()
        self._close_arena()

    # -- any process -------------------------------------------------------------------------------------------

    def _post(self, channel: Channel, message: object, fds: tuple[int, ...] = ()) -> None:
        channel.post(message, fds)
        self._loop.flush(channel)

    def _watch_errors(self, errors: Output, tail: bytearray) -> None:
        self._loop.watch(errors, partial(self._loop.pass_on, errors, tail, self._reporter.log))

    def _read_errors(self, errors: Output, tail: bytearray) -> str:
        """All that is left of what it has printed; the last of it."""
        while self._loop.pass_on(errors, tail, self._reporter.log):
            pass
        return tail.decode(errors="replace")

    def _was_out_of_memory(self, status: int, kill_reason: str = "") -> bool:
        """Whether the kernel, and not we, has killed it for want of memory."""
        return status == -signal.SIGKILL and not kill_reason and self._governor.was_killed_for_memory()

    def _end_child(self, child: ChildProcess, patience: float) -> int:
        """Its exit status. patience: seconds for it to end by itself."""
        self._loop.ignore(child.channel)
        self._loop.ignore(child.errors)
        return child.end(patience)

    def _complete_specification(self, specification: Specification) -> Specification:
        return replace(specification, arena=self._arena.path if self._arena else None)

    def _close_arena(self) -> None:
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.close()

    def _measure_loaded(self, action: actions.MeasureLoaded) -> None:
        pid = self.zygote.pid if self.zygote is not None else next(iter(self._pool.workers.all.values())).pid
        memory = measure_memory(pid)
        if memory is not None:
            self._governor.note_loaded(memory.pss, action.weights, action.forks)

    # -- the zygote --------------------------------------------------------------------------------------------

    def _start_zygote(self, action: actions.StartZygote) -> None:
        environment = {**make_environment(action.plan), **hide_gpus(action.plan)}
        self.zygote = zygote = ChildProcess("work.zygote", environment, self._talkative)
        self._loop.watch(zygote.channel, partial(self._read_zygote, zygote))
        self._watch_errors(zygote.errors, zygote.stderr_tail)
        self._post(zygote.channel, self._complete_specification(action.specification))

    def _read_zygote(self, zygote: ChildProcess) -> None:
        self._loop.flush(zygote.channel)
        try:
            for message in zygote.channel.poll():
                if isinstance(message, WorkerExited):
                    self._reap_worker(message.number, message.status)
                else:
                    self._feed(ZygoteSent(message))
                if self.zygote is not zygote:  # it is not needed any more
                    return
        except EOFError:
            self._lose_zygote(zygote)

    def _lose_zygote(self, zygote: ChildProcess) -> None:
        tail = self._read_errors(zygote.errors, zygote.stderr_tail)
        status = self._end_zygote(_EXIT_SECONDS)
        for number, end in list(self._workers.items()):
            if end.child is None:  # it has died with the zygote, and may have finished something before
                self._drain(number, end)
                self._forget(end)
                del self._workers[number]
        self._feed(ZygoteExited(status, self._was_out_of_memory(status), tail))

    def _end_zygote(self, patience: float) -> int:
        zygote, self.zygote = self.zygote, None
        return self._end_child(zygote, patience) if zygote is not None else 0

    # -- the workers -------------------------------------------------------------------------------------------

    def _fork(self, action: actions.Fork) -> None:
        if self.zygote is None:
            return
        channel, there = Channel.pair()
        errors, writing = Output.pipe()
        self._add(action.order.number, _WorkerEnd(channel, errors))
        self._post(self.zygote.channel, action.order, (there.detach(), writing))

    def _spawn(self, action: actions.Spawn) -> None:
        environment = make_environment(action.plan)
        if action.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = action.device
        child = ChildProcess("work.spawned", environment, self._talkative)
        self._add(action.number, _WorkerEnd(child.channel, child.errors, child))
        self._feed(WorkerStarted(action.number, child.pid))

    def _add(self, number: int, end: _WorkerEnd) -> None:
        self._workers[number] = end
        self._loop.watch(end.channel, partial(self._read_worker, number, end))
        self._watch_errors(end.errors, end.stderr_tail)

    def _send_worker(self, number: int, message: object) -> None:
        if (end := self._workers.get(number)) is not None:
            if isinstance(message, Specification):
                message = self._complete_specification(message)
            self._post(end.channel, message)

    def _read_worker(self, number: int, end: _WorkerEnd) -> None:
        self._loop.flush(end.channel)
        try:
            for message in end.channel.poll():
                self._feed(WorkerSent(number, message))
        except EOFError:
            self._loop.ignore(end.channel)
            self._feed(WorkerClosed(number))

    def _drain(self, number: int, end: _WorkerEnd) -> None:
        """What it has sent before it died."""
        with contextlib.suppress(EOFError):
            for message in end.channel.poll():
                self._feed(WorkerSent(number, message))

    def _reap_worker(self, number: int, status: int) -> None:
        end = self._workers.pop(number)
        self._drain(number, end)
        tail = self._read_errors(end.errors, end.stderr_tail)
        self._forget(end)
        kill_reason = self._pool.workers.all[number].kill_reason
        self._feed(WorkerReaped(number, status, self._was_out_of_memory(status, kill_reason), tail))

    def _forget(self, end: _WorkerEnd) -> None:
        self._loop.ignore(end.channel)
        self._loop.ignore(end.errors)
        end.channel.close()
        end.errors.close()

    # -- the servers -------------------------------------------------------------------------------------------

    def _start_server(self, action: actions.StartServer) -> None:
        environment = {**make_environment(action.plan), **_WAITING}
        if action.device:
            environment["CUDA_VISIBLE_DEVICES"] = action.device
        child = ChildProcess("work.server", environment, self._talkative)
        self._servers[action.place] = (action.name, child)
        self._loop.watch(child.channel, partial(self._read_server, action.place, child))
        self._watch_errors(child.errors, child.stderr_tail)
        self._post(child.channel, action.order)

    def _read_server(self, place: int, child: ChildProcess) -> None:
        self._loop.flush(child.channel)
        try:
            for message in child.channel.poll():
                self._feed(ServerSent(place, message))
        except EOFError:
            self._lose_server(place, child)

    def _lose_server(self, place: int, child: ChildProcess) -> None:
        tail = self._read_errors(child.errors, child.stderr_tail)
        servers = self._pool.models.servers
        if servers is None or place not in self._servers:
            return
        server = servers.all[place]
        status = self._end_child(child, _EXIT_SECONDS if server.inventory else 0.0)
        out_of_memory = self._was_out_of_memory(status, server.kill_reason)
        self._feed(ServerExited(place, child.pid, status, out_of_memory, tail))

    def _connect(self, action: actions.Connect) -> None:
        """A server and a worker, by a pair of sockets."""
        worker = self._workers.get(action.number)
        if worker is None:
            return
        here, there = socket.socketpair()
        self._post(self._servers[action.place][1].channel, ConnectWorker(action.number), (here.detach(),))
        self._post(worker.channel, action.message, (there.detach(),))

    def _end_servers(self, busy: frozenset[int]) -> None:
        servers, self._servers = self._servers, {}
        for place, (_, child) in servers.items():
            self._loop.ignore(child.channel)
            child.channel.close()  # so that all of them end at once
            if place in busy:  # it would not look, and nobody waits for what it is at
                child.kill()
        for _, child in servers.values():
            self._end_child(child, _EXIT_SECONDS)

    # -- the owners of weights on GPUs -------------------------------------------------------------------------

    def _start_owners(self, action: actions.StartOwners) -> None:
        plan = action.plan
        assert self._arena is not None
        order = UploadWeights(self._arena.path, action.size, "cuda" if plan.device == "cuda" else "host")
        devices = plan.devices or ("",)
        for place, device in enumerate(devices):
            child = ChildProcess("work.owner", {**make_environment(plan), "CUDA_VISIBLE_DEVICES": device})
            self._owners[place] = (f"owner {place}" if len(devices) > 1 else "owner", child)
            self._loop.watch(child.channel, partial(self._read_owner, place, child))
            self._watch_errors(child.errors, child.stderr_tail)
            self._post(child.channel, order)

    def _read_owner(self, place: int, child: ChildProcess) -> None:
        self._loop.flush(child.channel)
        try:
            for message in child.channel.poll():
                self._feed(OwnerSent(place, message))
                if place not in self._owners:
                    return
        except EOFError:
            name, _ = self._owners.pop(place)
            self._feed(OwnerExited(place, name, child.pid, self._end_child(child, _EXIT_SECONDS)))

    def _end_owners(self) -> None:
        """Once nobody reads any more."""
        owners, self._owners = self._owners, {}
        for _, child in owners.values():
            self._end_child(child, _EXIT_SECONDS)
