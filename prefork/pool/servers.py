"""The model servers of a run, as the supervisor has them: started, connected to workers, watched, started again.

Lives in the supervisor's thread. A server that dies is gone with all that it knew; what it was at, and who is to blame,
is known here. Its workers keep what they have asked, and ask it again of the one that takes its place.
"""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from prefork.engines.base import ELEMENTS_PER_SECOND
from prefork.errors import OutOfMemory, WorkerDied
from prefork.memory.governor import Governor
from prefork.platform_matrix.canary import describe_exit
from prefork.platform_matrix.matrix import Plan
from prefork.pool.blame import Blame, Cause
from prefork.pool.tasks import HangLimit
from prefork.wire import process
from prefork.wire.channel import Channel
from prefork.wire.child import ChildProcess, find_last_words
from prefork.wire.environment import make_environment
from prefork.wire.exceptions import pickle_error
from prefork.wire.loop import Loop
from prefork.wire.messages import Group, Inventory, Request, ServerOrder, Specification

_BARREN_STARTS = 3  # servers that may die in a row before they have begun a batch
_MOST_GUILTY = 8  # segments in a row that servers may die of, with nothing done in between
_LEAST_CREDIT = 20.0  # seconds of audio that a worker may have under way
_CREDIT_BATCHES = 2  # that all workers together may have under way: one is computed, one waits
_MOST_ASKED = 128  # requests of one worker, so that they and their answers fit into a socket: nobody waits to send
_MOST_OPEN = 1024  # descriptors that a process uses, if it may have more: select takes no others
_SHARE_ASKED = 4  # of them, one in so many is for a request that is under way
# OpenMP's threads wait for the next product by turning round and round, on the cores that the workers want: on two of
# them a server was three times slower at times, and one and a half times as fast with this.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
_TASK_BATCHES = 8  # that all workers together are given at a time, so that there is always something under way
_EXIT_SECONDS = 2.0  # how long a process may take to end by itself


class Client(Protocol):
    """A worker that asks servers. slot: 0 .. workers-1."""

    slot: int
    number: int
    channel: Channel


class Owner(Protocol):
    """Whose servers they are."""

    def note_served(self, inventory: Inventory) -> None:
        """All servers are ready, for the first time."""

    def list_clients(self) -> Sequence[Client]: ...

    def fail_serving(self, reason: str, trace: str = "") -> None:
        """There will never be servers."""


@dataclass(slots=True)
class _Running:
    """A batch. elements: that it has. until: when it counts as hung, by time.monotonic()."""

    requests: Group
    elements: int
    until: float


@dataclass(slots=True, eq=False)
class ModelServer:
    """One process of a device, and those that take its place. limit: what is left of the usual size of its batches."""

    name: str
    device: str  # what CUDA_VISIBLE_DEVICES says; empty on the CPU
    child: ChildProcess
    blame: Blame = field(default_factory=Blame)
    limit: float = 1.0
    inventory: Inventory | None = None  # once it is ready
    running: dict[int, _Running] = field(default_factory=dict)
    sentence: str = ""  # why we killed it
    broken: str = ""  # what it said of its own end
    barren: int = 0
    guilty: int = 0


class Servers:
    """The servers of a run, one for each device."""

    def __init__(
        self,
        specification: Specification,
        plan: Plan,
        owner: Owner,
        loop: Loop,
        governor: Governor,
        hang_limit: HangLimit,
        notice: Callable[[str], None],
        log: Callable[[str], None],
        talkative: bool,
    ) -> None:
        self.deaths = 0
        self._specification = replace(specification, plan=plan, remote=False, arena=None, manifest=None)
        self._plan = plan
        self._owner = owner
        self._loop = loop
        self._governor = governor
        self._hang_limit = hang_limit
        self._notice = notice
        self._log = log
        self._talkative = talkative
        self._told = False  # that they are ready
        self._is_closed = False
        devices = plan.devices or ("",)
        names = [f"server {number}" if len(devices) > 1 else "server" for number in range(len(devices))]
        self.all = [
            ModelServer(name, device, self._start_process(device)) for name, device in zip(names, devices, strict=True)
        ]
        for server in self.all:
            self._begin(server)

    def find(self, client: Client) -> ModelServer:
        """The one that a worker asks."""
        return self.all[client.slot % len(self.all)]

    def connect(self, client: Client) -> None:
        """Joins a worker with its server, as soon as that is ready."""
        server = self.find(client)
        if server.inventory is None:
            return
        here, there = socket.socketpair()
        self._post(server, ("link", client.number), here)
        content = (self._find_credits(server.inventory), self._find_most_asked())
        client.channel.post(("link", *content), [there.detach()])
        self._loop.flush(client.channel)

    def forget(self, client: Client) -> None:
        """A worker is gone."""
        server = self.find(client)
        server.blame.forget(client.number)
        self._post(server, ("forget", client.number))

    def is_at_work(self, client: Client) -> bool:
        """Whether it is the server that a worker waits for."""
        server = self.find(client)
        return server.inventory is None or bool(server.running)

    def attend(self) -> None:
        """Ends those that have hung."""
        now = time.monotonic()
        for server in self.all:
            late = [batch for batch in server.running.values() if now > batch.until]
            if late and not server.sentence:
                seconds = self._hang_limit.seconds(late[0].elements / ELEMENTS_PER_SECOND)
                server.sentence = f"made no progress for {seconds:.0f} s and was killed"
                server.child.kill()

    def list_pids(self) -> dict[str, int]:
        return {server.name: server.child.pid for server in self.all}

    def end(self) -> None:
        self._is_closed = True
        for server in self.all:
            self._loop.ignore(server.child.channel)
            server.child.channel.close()  # so that all of them end at once
            if server.running:  # it would not look, and nobody waits for what it is at
                server.child.kill()
        for server in self.all:
            self._end_process(server)

    # -- a process -------------------------------------------------------------------------------------------------

    def _start_process(self, device: str) -> ChildProcess:
        environment = {**make_environment(self._plan), **_WAITING}
        if device:
            environment |= {"CUDA_VISIBLE_DEVICES": device}
        return ChildProcess("work.server", environment, self._talkative)

    def _begin(self, server: ModelServer) -> None:
        order = ServerOrder(self._specification, self._plan.server_threads, server.blame.groups, server.limit)
        self._loop.watch(server.child.channel, partial(self._on_server, server, server.child))
        hear = partial(self._loop.pass_on, server.child.errors, server.child.last_words, self._log)
        self._loop.watch(server.child.errors, hear)
        self._post(server, order)

    def _post(self, server: ModelServer, message: Any, sock: socket.socket | None = None) -> None:
        server.child.channel.post(message, [] if sock is None else [sock.detach()])
        self._loop.flush(server.child.channel)

    def _end_process(self, server: ModelServer) -> int:
        self._loop.ignore(server.child.channel)
        self._loop.ignore(server.child.errors)
        return server.child.end(_EXIT_SECONDS if server.inventory else 0.0)

    # -- what it says ----------------------------------------------------------------------------------------------

    def _on_server(self, server: ModelServer, child: ChildProcess) -> None:
        self._loop.flush(child.channel)
        try:
            self._hear(server)
        except EOFError:
            self._lose(server)

    def _hear(self, server: ModelServer) -> None:
        for kind, *content in server.child.channel.poll():
            getattr(self, f"_on_{kind}")(server, *content)

    def _on_loaded(self, server: ModelServer, inventory: Inventory) -> None:
        server.inventory = inventory
        if not self._told and all(other.inventory is not None for other in self.all):
            self._told = True
            self._owner.note_served(inventory)
        for client in self._owner.list_clients():
            if self.find(client) is server:
                self.connect(client)

    def _on_failed(self, server: ModelServer, text: str, trace: str) -> None:
        if not self._told:
            self._owner.fail_serving(text, trace)
            return
        server.broken = text  # the models could be loaded before: what is wrong now may pass
        self._log(trace)

    def _on_begin(self, server: ModelServer, number: int, requests: Group, elements: int) -> None:
        server.barren = 0
        begins = max([time.monotonic(), *(batch.until for batch in server.running.values())])
        server.running[number] = _Running(requests, elements, begins + self._find_limit(elements))

    def _on_end(self, server: ModelServer, number: int) -> None:
        server.blame.clear(self._list_wanted(server.running.pop(number).requests))
        server.guilty = 0
        self._go_on(server)

    def _on_gone(self, server: ModelServer, requests: Sequence[Request]) -> None:
        """Nobody waits for these any more."""
        server.blame.discard(requests)

    def _go_on(self, server: ModelServer) -> None:
        """A batch is over; the next one has waited until now."""
        until = time.monotonic()
        for batch in server.running.values():
            until += self._find_limit(batch.elements)
            batch.until = until

    def _on_broken(self, server: ModelServer, text: str) -> None:
        server.broken = text

    def _on_stumbled(self, server: ModelServer, number: int, starved: bool, error: bytes, text: str) -> None:
        """A batch has failed, and the server lives."""
        requests = server.running.pop(number).requests
        self._go_on(server)
        if starved:
            self._governor.tally.kills += 1
            error = pickle_error(OutOfMemory(f"{text}, with nothing else in its batch"), "")
            if self._halve(server, [requests]):
                self._notice(f"{server.name}: {text}; going on with batches of half the size")
        guilty = server.blame.lose(self._list_wanted(requests), Cause.MEMORY if starved else Cause.ERROR)
        if guilty is not None:
            self._refuse(guilty, error)
        self._post(server, ("decide", server.blame.groups, [] if guilty is None else [guilty], server.limit))

    def _refuse(self, request: Request, error: bytes) -> None:
        """Tells the worker that has asked; whatever server it asks, it will not ask this again."""
        for client in self._owner.list_clients():
            if client.number == request[0]:
                client.channel.post(("refuse", request[1], error))
                self._loop.flush(client.channel)

    def _list_wanted(self, requests: Group) -> Group:
        """Without those of workers that are gone: nobody would ask them again."""
        living = {client.number for client in self._owner.list_clients()}
        return tuple(request for request in requests if request[0] in living)

    def _halve(self, server: ModelServer, batches: Sequence[Group]) -> bool:
        """After batches that did not fit into memory, those to come are half as large. Not so after parts of one that
        has failed before, which say nothing about others, and after a segment that does not fit even alone."""
        is_new = any(len(batch) > 1 and not server.blame.knows(self._list_wanted(batch)) for batch in batches)
        server.limit /= 1 + is_new
        return is_new

    def _find_limit(self, elements: int) -> float:
        return self._hang_limit.seconds(elements / ELEMENTS_PER_SECOND)

    def share_batches(self, inventory: Inventory) -> dict[str, float]:
        """By engine: seconds of audio that a worker is given at a time; 0 for a little of one job."""
        share = _TASK_BATCHES / self._clients
        return {name: share * seconds for name, seconds in inventory.batches.items()}

    def _find_credits(self, inventory: Inventory) -> Mapping[str, int]:
        """Elements that one worker may have under way, by engine."""
        share = _CREDIT_BATCHES / self._clients
        return {
            name: round(max(_LEAST_CREDIT, share * seconds) * ELEMENTS_PER_SECOND)
            for name, seconds in inventory.batches.items()
        }

    def _find_most_asked(self) -> int:
        """Requests that one worker may have under way: each is a descriptor there, in the server, and on its way, where
        the kernel allows a user as many as a process may have open."""
        together = min(_MOST_OPEN, process.count_descriptors()) // _SHARE_ASKED
        return max(1, min(_MOST_ASKED, together // max(1, self._plan.workers)))

    @property
    def _clients(self) -> int:
        """Workers that one server has."""
        return max(1, math.ceil(self._plan.workers / len(self.all)))

    # -- its end ---------------------------------------------------------------------------------------------------

    def _lose(self, server: ModelServer) -> None:
        """A server has died, and another takes its place: nobody has lost more than the batch that it was at."""
        with contextlib.suppress(EOFError):
            self._hear(server)
        while self._loop.pass_on(server.child.errors, server.child.last_words, self._log):
            pass
        status = self._end_process(server)
        if self._is_closed:
            return
        killed = status == -signal.SIGKILL and not server.sentence
        starved = killed and self._governor.was_killed_for_memory()
        words = server.child.last_words.decode(errors="replace")
        ended = "was ended by the kernel: out of memory" if starved else find_last_words(words) or describe_exit(status)
        reason = f"{server.name} (pid {server.child.pid}): {server.sentence or server.broken or ended}"
        self.deaths += 1
        if not server.running:
            server.barren += 1
        if server.barren >= _BARREN_STARTS:
            last = words.strip().rpartition("\n")[2]
            when = "before it is ready" if server.inventory is None else "with nothing to do"
            self._owner.fail_serving(f"the process with the models dies {when}: {reason}: {last}")
            return
        if starved:
            self._halve(server, [batch.requests for batch in server.running.values()])
        cause = Cause.MEMORY if starved else Cause.KILL if killed else Cause.ERROR
        self._find_guilty(server, cause, reason)
        if server.guilty >= _MOST_GUILTY:
            self._owner.fail_serving(f"the process with the models dies whatever it is given: {reason}")
            return
        self._notice(f"{reason}; started again")
        server.inventory, server.sentence, server.broken = None, "", ""
        server.child = self._start_process(server.device)
        self._begin(server)

    def _find_guilty(self, server: ModelServer, cause: Cause, reason: str) -> None:
        for batch in server.running.values():
            guilty = server.blame.lose(self._list_wanted(batch.requests), cause)
            if guilty is not None:
                kind = OutOfMemory if cause is Cause.MEMORY else WorkerDied
                self._refuse(
                    guilty, pickle_error(kind(f"{reason}, with nothing else in its batch, and did so before"), "")
                )
                server.guilty += 1
        server.running.clear()
