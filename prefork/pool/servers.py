"""The model servers of a pool: connected to workers, watched, started again. Pure: see `prefork.pool.state`.

A server that dies is gone with all that it knew; what it was at, and which segment is to blame, is known here. Its
workers keep what they have asked, and ask it again of the one that takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefork.engines.base import ELEMENTS_PER_SECOND
from prefork.errors import OutOfMemory, WorkerDied
from prefork.platform_matrix.matrix import Plan
from prefork.pool.actions import Connect, EndServers, KillServer, LogText, Outbox, SendServer, SendWorker, StartServer
from prefork.pool.blame import Blame, Cause
from prefork.pool.device_record import DeviceRecord
from prefork.pool.events import ServerExited
from prefork.pool.policy import Policy
from prefork.pool.tasks import HangLimit
from prefork.pool.workers import MOST_FAILED_STARTS, Worker, Workers
from prefork.wire.endings import UNENDED, Killer, describe_end, find_killer
from prefork.wire.exceptions import pickle_error
from prefork.wire.messages import (
    BatchDone,
    BatchFailed,
    BatchStarted,
    ChangeCredits,
    ConnectServer,
    DecideBatch,
    DisconnectWorker,
    FromServer,
    Group,
    LoadFailed,
    ModelsLoaded,
    RefuseRequest,
    Request,
    RequestsDropped,
    ServerBroken,
    ServerOrder,
)
from prefork.wire.specification import Inventory, Specification

_MOST_FATAL = 8  # segments in a row that servers may die of, with nothing done in between
_LEAST_CREDIT = 20.0  # seconds of audio that a worker may have under way
_CREDIT_BATCHES = 3  # that all workers together may have under way: one is computed, one copied, one prepared
_MOST_ASKED = 128  # requests of one worker, so that they and their answers fit into a socket: nobody waits to send
_MOST_OPEN = 1024  # descriptors that a process uses, if it may have more: select takes no others
_SHARE_ASKED = 4  # a quarter of them is for requests that are under way
_TASK_BATCHES = 8  # that all workers together are given at a time, so that there is always something under way


@dataclass(slots=True)
class RunningBatch:
    """elements: that it has. until: when it counts as hung."""

    requests: Group
    elements: int
    until: float


@dataclass(slots=True, eq=False)
class ModelServer:
    """One process of a device, and those that take its place. batch_share: what is left of a batch's usual size."""

    place: int
    name: str
    device: str  # what CUDA_VISIBLE_DEVICES says; empty on the CPU
    started: float = 0.0
    blame: Blame = field(default_factory=Blame)
    batch_share: float = 1.0
    inventory: Inventory | None = None  # once it is ready
    running: dict[int, RunningBatch] = field(default_factory=dict)
    kill_reason: str = ""
    broken: str = ""  # why it cannot go on, as it has said itself: its context on the device is gone
    device_failed: bool = False  # and the device is to blame for it
    record: DeviceRecord = field(default_factory=DeviceRecord)
    failed_starts: int = 0  # in a row, without a batch begun
    fatal: int = 0  # segments in a row that it has died of


class Servers:
    """One for each device of the plan.

    inventory: what all have loaded, once they are ready for the first time. failure: why there will never be servers.
    dead: the place of a device that is to be used no more, and why.
    """

    def __init__(
        self,
        outbox: Outbox,
        specification: Specification,
        plan: Plan,
        workers: Workers,
        policy: Policy,
        hang_limit: HangLimit,
        descriptors: int,
        can_spare: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """descriptors: files that a process may have open. can_spare: whether work can go on without this device."""
        self.deaths = 0
        self.inventory: Inventory | None = None
        self.failure: LoadFailed | None = None
        self.dead: tuple[int, str] | None = None
        self._outbox = outbox
        self._specification = replace(specification, plan=plan, remote=False, arena=None, manifest=None)
        self._plan = plan
        self._workers = workers
        self._policy = policy
        self._hang_limit = hang_limit
        self._descriptors = descriptors
        self._can_spare = can_spare
        devices = plan.devices or ("",)
        names = [f"server {place}" if len(devices) > 1 else "server" for place in range(len(devices))]
        pairs = zip(names, devices, strict=True)
        self.all = [ModelServer(place, name, device) for place, (name, device) in enumerate(pairs)]
        for server in self.all:
            self._start(server)

    def _start(self, server: ModelServer) -> None:
        server.started = self._outbox.now
        order = ServerOrder(
            self._specification,
            self._plan.server_threads,
            server.blame.groups,
            server.batch_share,
            self._policy.recall_batches() if server.device else {},
        )
        self._outbox.do(StartServer(server.place, server.name, self._plan, server.device, order))

    def end(self) -> None:
        self._outbox.do(EndServers(self.list_idle()))

    def list_idle(self) -> frozenset[int]:
        """Places of those that are ready and not at a batch: they look at their channel, and end by themselves. With
        NVIDIA's MPS those at a batch are waited for, too: a client that is killed at work can take the others with it.
        """
        waits = any(device.multi_process_service for device in self._plan.chosen)
        return frozenset(s.place for s in self.all if s.inventory is not None and (waits or not s.running))

    # -- the workers -------------------------------------------------------------------------------------------

    def find(self, worker: Worker) -> ModelServer:
        """The one that a worker asks."""
        return self.all[worker.slot % len(self.all)]

    def connect(self, worker: Worker) -> None:
        """Joins a worker with its server, as soon as that is ready."""
        server = self.find(worker)
        if server.inventory is not None:
            message = ConnectServer(self._find_credits(server.inventory), self.find_max_requests())
            self._outbox.do(Connect(worker.number, server.place, message))

    def disconnect(self, worker: Worker) -> None:
        server = self.find(worker)
        server.blame.forget(worker.number)
        self._outbox.do(SendServer(server.place, DisconnectWorker(worker.number)))

    def is_busy(self, worker: Worker) -> bool:
        """Whether it is the server that a worker waits for."""
        server = self.find(worker)
        return server.inventory is None or bool(server.running)

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

    def find_max_requests(self) -> int:
        """Requests that one worker may have under way: each is a descriptor there, in the server, and on its way, where
        the kernel allows a user as many as a process may have open."""
        together = min(_MOST_OPEN, self._descriptors) // _SHARE_ASKED
        return max(1, min(_MOST_ASKED, together // max(1, self._plan.workers)))

    @property
    def _clients(self) -> int:
        """Workers that one server has."""
        return max(1, math.ceil(self._plan.workers / len(self.all)))

    # -- what they send ----------------------------------------------------------------------------------------

    def handle(self, place: int, message: FromServer) -> None:
        server = self.all[place]
        match message:
            case ModelsLoaded(inventory):
                self._handle_loaded(server, inventory)
            case LoadFailed(reason, trace, device_failed):
                if device_failed and server.device:
                    server.broken, server.device_failed = reason, True
                    self._outbox.do(LogText(trace))
                elif self.inventory is None:
                    self.failure = message
                else:
                    server.broken = reason  # the models could be loaded before: what is wrong now may pass
                    self._outbox.do(LogText(trace))
            case BatchStarted(number, requests, elements):
                server.failed_starts = 0
                begins = max([self._outbox.now, *(batch.until for batch in server.running.values())])
                server.running[number] = RunningBatch(requests, elements, begins + self._find_hang_seconds(elements))
            case BatchDone(number, engine, size, taken, seconds):
                if taken:
                    self._policy.learn_batch(engine, size, taken)
                if seconds is not None:
                    self._resize(server, engine, seconds)
                server.blame.clear(self._list_wanted(server.running.pop(number).requests))
                server.fatal = 0
                server.record.note_done()
                self._start_clock(server)
            case BatchFailed():
                self._handle_failed(server, message)
            case RequestsDropped(requests):
                server.blame.discard(requests)
            case ServerBroken(reason, device_failed):
                server.broken, server.device_failed = reason, device_failed

    def _handle_loaded(self, server: ModelServer, inventory: Inventory) -> None:
        server.inventory = inventory
        if self.inventory is None and all(other.inventory is not None for other in self.all):
            self.inventory = inventory
        for worker in self._workers.list_open():
            if self.find(worker) is server:
                self.connect(worker)

    def _resize(self, server: ModelServer, engine: str, seconds: float) -> None:
        """Its batches have another size: what workers may have under way is to fill them, and those that follow."""
        assert server.inventory is not None
        batches = {**server.inventory.batches, engine: seconds}
        server.inventory = self.inventory = replace(server.inventory, batches=batches)
        credits = self._find_credits(server.inventory)
        for worker in self._workers.list_open():
            if self.find(worker) is server:
                self._outbox.do(SendWorker(worker.number, ChangeCredits(credits)))

    def _handle_failed(self, server: ModelServer, message: BatchFailed) -> None:
        """A batch has failed, and the server lives."""
        requests, error = server.running.pop(message.batch).requests, message.error
        self._start_clock(server)
        if message.out_of_memory:
            self._policy.note_kill()
            error = pickle_error(OutOfMemory(f"{message.text}, with only this segment in the batch"), "")
            if self._halve(server, [requests]):
                self._outbox.notify(f"{server.name}: {message.text}; continuing with batches of half the size")
        cause = Cause.MEMORY if message.out_of_memory else Cause.ERROR
        guilty = server.blame.lose(self._list_wanted(requests), cause)
        if guilty is not None:
            self._refuse(guilty, error)
        decision = DecideBatch(server.blame.groups, [] if guilty is None else [guilty], server.batch_share)
        self._outbox.do(SendServer(server.place, decision))

    def _start_clock(self, server: ModelServer) -> None:
        """A batch is over; the next one has waited until now."""
        until = self._outbox.now
        for batch in server.running.values():
            until += self._find_hang_seconds(batch.elements)
            batch.until = until

    def _refuse(self, request: Request, error: bytes) -> None:
        """Tells the worker that has asked; whatever server it asks, it will not ask this again."""
        for worker in self._workers.list_open():
            if worker.number == request[0]:
                self._outbox.do(SendWorker(worker.number, RefuseRequest(request[1], error)))

    def _list_wanted(self, requests: Group) -> Group:
        """Without those of workers that are gone: nobody would ask them again."""
        living = {worker.number for worker in self._workers.list_open()}
        return tuple(request for request in requests if request[0] in living)

    def _halve(self, server: ModelServer, batches: Sequence[Group]) -> bool:
        """After batches that did not fit into memory, those to come are half as large. Not so after parts of one that
        has failed before, which say nothing about others, and after a segment that does not fit even alone."""
        is_new = any(len(batch) > 1 and not server.blame.knows(self._list_wanted(batch)) for batch in batches)
        server.batch_share /= 1 + is_new
        return is_new

    def _find_hang_seconds(self, elements: int) -> float:
        return self._hang_limit.seconds(elements / ELEMENTS_PER_SECOND)

    # -- their ends --------------------------------------------------------------------------------------------

    def kill_hung(self, loading: float) -> None:
        """Kills those that have hung. loading: seconds that it may take."""
        for server in self.all:
            if server.inventory is None and self._outbox.now - server.started > loading and not server.kill_reason:
                server.kill_reason = f"had not loaded the models after {loading:.0f} s and was killed"
                self._outbox.do(KillServer(server.place))
            late = [batch for batch in server.running.values() if self._outbox.now > batch.until]
            if late and not server.kill_reason:
                seconds = self._find_hang_seconds(late[0].elements)
                server.kill_reason = f"made no progress for {seconds:.0f} s and was killed"
                self._outbox.do(KillServer(server.place))

    def handle_exit(self, event: ServerExited) -> None:
        """A server has died, and another takes its place: nobody has lost more than the batch that it was at."""
        server = self.all[event.place]
        ended = describe_end(event.status, event.out_of_memory, event.stderr_tail)
        reason = f"{server.name} (pid {event.pid}): {server.kill_reason or server.broken or ended}"
        self.deaths += 1
        if server.device and (event.status == UNENDED or (server.device_failed and server.record.note_fault())):
            self.dead = (server.place, reason)
            return
        if not (server.running or server.device_failed):
            server.failed_starts += 1
        if server.failed_starts >= MOST_FAILED_STARTS:
            last = event.stderr_tail.strip().rpartition("\n")[2]
            when = "before it was ready" if server.inventory is None else "while idle"
            times = f"{MOST_FAILED_STARTS} times in a row"
            self.failure = LoadFailed(f"the model server died {when}, {times}: {reason}: {last}")
            return
        if event.out_of_memory:
            self._halve(server, [batch.requests for batch in server.running.values()])
        self._find_guilty(server, self._find_cause(server, event), reason)
        if self.dead is not None:
            return
        if server.fatal >= _MOST_FATAL:
            self.failure = LoadFailed(f"the model server died on every batch: {reason}")
            return
        self._outbox.notify(f"{reason}; started again")
        server.inventory, server.kill_reason, server.broken, server.device_failed = None, "", "", False
        self._start(server)

    def _find_cause(self, server: ModelServer, event: ServerExited) -> Cause:
        if event.out_of_memory:
            return Cause.MEMORY
        if server.device_failed:
            return Cause.DEVICE
        killer = find_killer(event.status, bool(server.kill_reason))
        return Cause.KILL if killer is Killer.SOMEBODY else Cause.ERROR

    def _is_suspect(self, server: ModelServer) -> bool:
        """Whether it is rather the device that has broken than a segment that breaks it, and others can do its work."""
        is_odd = bool(server.device and (server.broken or server.kill_reason))  # a GPU that is lost may hang, too
        doubtful = is_odd and not server.record.blames()
        return doubtful and self._can_spare(server.place)

    def _find_guilty(self, server: ModelServer, cause: Cause, reason: str) -> None:
        for batch in server.running.values():
            guilty = server.blame.lose(self._list_wanted(batch.requests), cause)
            if guilty is not None and self._is_suspect(server):
                self.dead = (server.place, f"{reason}, with every segment that it was given")
                return
            if guilty is not None:
                kind = OutOfMemory if cause is Cause.MEMORY else WorkerDied
                error = kind(f"{reason}, twice with only this segment in the batch")
                self._refuse(guilty, pickle_error(error, ""))
                server.fatal += 1
        server.running.clear()
