"""The model server: the one process of a device that has the models. Workers send it prepared segments.

It forms batches of whatever has come, of several files and workers, waits a few milliseconds at most for a fuller one,
and sends the outputs back in any order. While a GPU with streams computes one batch, the next is copied to it, and a
thread sends the outputs of each as soon as they are there: a model that waits for the GPU within `infer` keeps the
other one for as long as its own batch takes. What becomes of a batch that fails is not decided here, but by the
supervisor, which survives.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from prefork.engines.base import InputError, Tensors
from prefork.engines.batching import Batcher
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.failures import Failure
from prefork.wire.channel import Channel
from prefork.wire.child import open_channel
from prefork.wire.exceptions import describe_error, pickle_error
from prefork.wire.memory_file import Layout
from prefork.wire.messages import (
    BatchDone,
    BatchFailed,
    BatchStarted,
    ConnectWorker,
    DecideBatch,
    DisconnectWorker,
    Group,
    InferError,
    InferOutput,
    InferRequest,
    KeepRequests,
    ModelsLoaded,
    Request,
    RequestsDropped,
    ServerBroken,
    ServerOrder,
)
from prefork.work import loading, torch_state
from prefork.work.exchange import pack, unpack
from prefork.work.loaded import BatchUse, Loaded
from prefork.work.staging import Results, Staging, judge, open_staging

_PATIENCE = 0.005  # seconds that a segment waits for others to share its batch
_IN_FLIGHT = 2  # batches on a GPU: one that is computed, and one that is copied


def main() -> None:
    """Entry point of the server process."""
    started = time.monotonic()
    channel = open_channel()
    try:
        order, _ = channel.receive()
    except EOFError:
        return
    try:
        import torch

        loaded = replace(loading.load(order.specification), measured=order.measured)
        torch.set_num_threads(order.threads)
        inventory = loading.describe(loaded, started)
    except Exception as error:  # noqa: BLE001  whatever goes wrong while loading is said in words
        channel.send(loading.refuse(error, order.specification))
        return
    channel.send(ModelsLoaded(inventory))
    status = 1
    try:
        _Server(channel, loaded, order).run()
    except (BrokenPipeError, ConnectionResetError, EOFError):  # the supervisor has gone
        find_kind(loaded.device).synchronize(loaded.device)  # a client of NVIDIA's MPS must not just end
        status = 0
    except BaseException:  # noqa: BLE001  it is said, and another takes this one's place
        traceback.print_exc()
    finally:
        os._exit(status)  # tearing the interpreter down takes a second and frees what the kernel frees at once


@dataclass(frozen=True, slots=True)
class _QueuedRequest:
    """A segment that a worker wants the model's output for."""

    engine: str
    elements: int
    seed: int
    tensors: Tensors
    arrived: float


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    number: int
    requests: Group
    results: Results
    engine: str
    use: BatchUse


@dataclass(slots=True)
class _Server:
    """Its state is guarded by a lock, which is free while the model computes and while nothing comes."""

    channel: Channel
    loaded: Loaded
    order: ServerOrder
    _links: dict[int, Channel] = field(default_factory=dict)  # by the worker's number
    _asked: dict[Request, _QueuedRequest] = field(default_factory=dict)
    _batchers: dict[str, Batcher[Request]] = field(default_factory=dict)
    _groups: list[Group] = field(default_factory=list)
    _held: set[Request] = field(default_factory=set)  # what runs with its group, or waits for a decision
    _wanted: dict[int, set[int]] = field(default_factory=dict)  # by worker, what it has yet to ask again
    _undecided: int = 0  # batches that have failed, and of which the supervisor has not said what is to become of them
    _running: list[_Batch] = field(default_factory=list)
    _flights: queue.SimpleQueue[_Batch] = field(default_factory=queue.SimpleQueue)  # the same, for the other thread
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wakes: tuple[int, int] = field(default_factory=os.pipe)  # the other thread says that a batch is over
    _batches: int = 0  # so far
    _limit: float = field(init=False)  # what is left of the usual size of a batch
    _staging: Staging = field(init=False)
    _in_flight: int = field(init=False)

    def __post_init__(self) -> None:
        self._in_flight = _IN_FLIGHT if find_kind(self.loaded.device).has_streams else 1
        self._limit = self.order.limit
        self._staging = open_staging(self.loaded.device)
        self._set_groups(self.order.groups)

    def run(self) -> None:
        """Until the supervisor closes the channel."""
        if self._in_flight > 1:
            threading.Thread(target=self._deliver, name="prefork-answers", daemon=True).start()
        timeout: float | None = 0.0
        with self._lock:
            while True:
                if timeout is None and not self._running:
                    torch_state.release(self.loaded.device, self.loaded.batch_need)
                self._listen(timeout)
                timeout = 0.0 if self._launch_next() else self._find_timeout()

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    # -- what comes in -------------------------------------------------------------------------------------------

    def _find_timeout(self) -> float | None:
        """Seconds for which nothing can be done unless something comes; None for as long as it takes."""
        if self._running:
            return None
        arrived = [self._asked[oldest].arrived for batcher in self._batchers.values() if (oldest := batcher.oldest)]
        return max(0.0, min(arrived) + _PATIENCE - time.monotonic()) if arrived else None

    def _listen(self, timeout: float | None) -> None:
        """Takes all that has come; waits for it so many seconds at most."""
        while True:
            ends: list[Channel | int] = [self.channel, self._wakes[0], *self._links.values()]
            with self._unlocked():
                ready, _, _ = select.select(ends, [], [], timeout)
            if not ready:
                return
            timeout = 0.0
            if self._wakes[0] in ready:
                os.read(self._wakes[0], 64)
            if self.channel in ready:
                self._take_order()
            for worker, link in [(worker, link) for worker, link in self._links.items() if link in ready]:
                try:
                    self._take(worker, *link.receive())
                except (EOFError, ConnectionResetError):
                    self._forget(worker)

    def _take_order(self) -> None:
        message, fds = self.channel.receive()
        match message:
            case ConnectWorker(worker):
                self._links[worker] = Channel(socket.socket(fileno=fds[0]))
            case DisconnectWorker(worker):
                self._forget(worker)
            case DecideBatch():
                self._decide(message)

    def _take(self, worker: int, message: InferRequest | KeepRequests, fds: list[int]) -> None:
        match message:
            case KeepRequests(requests):
                self._keep(worker, set(requests))
            case InferRequest(number, engine, elements, seed, layout):
                request = (worker, number)
                self._wanted.get(worker, set()).discard(number)
                self._asked[request] = _QueuedRequest(engine, elements, seed, unpack(fds[0], layout), time.monotonic())
                if request not in self._held:
                    self._queue(request)

    def _queue(self, request: Request) -> None:
        asked = self._asked[request]
        try:
            self._find_batcher(asked.engine).add(request, asked.elements)
        except ValueError as error:
            self._drop(request)
            self._send(request, InferError(request[1], pickle_error(InputError(str(error)), "")))

    def _find_batcher(self, engine: str) -> Batcher[Request]:
        if engine not in self._batchers:
            self._batchers[engine] = self.loaded.make_batcher(engine)
            self._batchers[engine].limit(self._limit)
        return self._batchers[engine]

    def _forget(self, worker: int) -> None:
        """A worker has gone, and with it who wanted its answers."""
        if (link := self._links.pop(worker, None)) is not None:
            link.close()
        self._keep(worker, set())

    def _keep(self, worker: int, numbers: Set[int]) -> None:
        """Of all that a worker has asked, it still wants these; nobody waits for the others."""

        def is_wanted(request: Request) -> bool:
            return request[0] != worker or request[1] in numbers

        for request in [request for request in self._asked if not is_wanted(request)]:
            self._drop(request)
        self._wanted[worker] = {number for number in numbers if (worker, number) not in self._asked}
        self._set_groups(self._groups)

    def _drop(self, request: Request) -> _QueuedRequest | None:
        asked = self._asked.pop(request, None)
        if asked is not None and asked.engine in self._batchers:
            self._batchers[asked.engine].discard(request)
        return asked

    def _set_groups(self, groups: Iterable[Group]) -> None:
        """Batches to be run before all others. What nobody will ask again, or has its answer, is left out of them: they
        would wait for it for ever."""
        groups = list(groups)
        gone = [request for group in groups for request in group if not self._may_come(request)]
        rests = (tuple(filter(self._may_come, group)) for group in groups)
        self._groups = [group for group in dict.fromkeys(rests) if group]
        self._held = {request for group in self._groups for request in group}
        if gone:
            self.channel.send(RequestsDropped(gone))

    def _may_come(self, request: Request) -> bool:
        """Whether it is there, or will be: a worker that has been connected says first what it wants."""
        worker, number = request
        return request in self._asked or number in self._wanted.get(worker, {number})

    # -- what is done ----------------------------------------------------------------------------------------------

    def _find_group(self) -> Group | None:
        """One that is to be run as it is, and that is there."""
        return next((group for group in self._groups if all(request in self._asked for request in group)), None)

    def _launch_next(self) -> bool:
        """Whether there was something to launch, and room for it."""
        if (group := self._find_group()) is not None:
            if self._running:
                return False
        elif len(self._running) >= self._in_flight or not (group := self._choose()):
            return False
        self._launch(group)
        return True

    def _choose(self) -> Group:
        """The next batch: a full one, or, of what has waited long enough, the one with the oldest; empty if none."""
        waiting = [(self._asked[o].arrived, b) for b in self._batchers.values() if (o := b.oldest) is not None]
        waiting.sort(key=lambda pair: pair[0])
        for _, batcher in waiting:
            if batch := batcher.pop():
                return tuple(batch)
        if not waiting or self._running or time.monotonic() - waiting[0][0] < _PATIENCE:
            return ()
        return tuple(waiting[0][1].pop(flush=True))

    def _launch(self, requests: Group) -> None:
        self._batches += 1
        asked = [self._asked[request] for request in requests]
        self.channel.send(BatchStarted(self._batches, requests, sum(one.elements for one in asked)))
        if requests in self._groups:
            self._groups.remove(requests)
        engine = asked[0].engine
        try:
            torch_state.reseed(asked[0].seed)
            padded = len(asked) * max(one.elements for one in asked)
            measuring = self.loaded.measure_batch(engine, self._find_batcher(engine), padded)
            with measuring as use, self._unlocked():
                staged = self._staging.send([one.tensors for one in asked])
                outputs = self.loaded.compute(engine, staged)
                if len(outputs) != len(requests):
                    raise ValueError(f"{engine}: infer returned {len(outputs)} outputs for {len(requests)} segments")
                results = self._staging.fetch(outputs)
        except BaseException as error:  # noqa: BLE001  whatever the model raises, sys.exit too, is for others to judge
            self._fail(self._batches, requests, error)
            return
        batch = _Batch(self._batches, requests, results, engine, use)
        self._running.append(batch)
        if self._in_flight > 1:
            self._flights.put(batch)
        else:
            self._finish(batch)
            torch_state.release(self.loaded.device, idle=False)

    def _deliver(self) -> None:
        """The other thread's life: batches end in the order in which they were launched."""
        try:
            while True:
                self._finish(self._flights.get())
        except (BrokenPipeError, ConnectionResetError):  # the supervisor has gone, which the channel says to the other
            return
        except BaseException:  # noqa: BLE001  it is said, and another process takes this one's place
            traceback.print_exc()
            os._exit(1)

    def _finish(self, batch: _Batch) -> None:
        """Waits for a batch and sends its outputs where they are wanted. The lock is free in the other thread."""
        packed: list[tuple[int, Layout]] = []
        failure: Exception | None = None
        try:
            packed.extend(map(pack, batch.results.wait()))
        except Exception as error:  # noqa: BLE001  a GPU says late what went wrong, and an engine may return anything
            for fd, _ in packed:
                os.close(fd)
            failure = error
        if self._in_flight > 1:
            with self._lock:
                self._end_batch(batch, packed, failure)
            os.write(self._wakes[1], b"!")
        else:
            self._end_batch(batch, packed, failure)

    def _end_batch(self, batch: _Batch, packed: Sequence[tuple[int, Layout]], failure: Exception | None) -> None:
        self._running.remove(batch)
        if failure is not None:
            self._fail(batch.number, batch.requests, failure)
            return
        done = BatchDone(batch.number, batch.engine, batch.use.size, batch.use.taken, batch.use.seconds)
        self.channel.send(done)  # before it is answered: what was answered is not asked again
        for request, (fd, layout) in zip(batch.requests, packed, strict=True):
            self._held.discard(request)
            if self._drop(request) is not None:
                self._send(request, InferOutput(request[1], layout), [fd])
            else:
                os.close(fd)

    def _send(self, request: Request, message: InferOutput | InferError, fds: Sequence[int] = ()) -> None:
        link = self._links.get(request[0])
        if link is None:
            for fd in fds:
                os.close(fd)
            return
        link.post(message, fds)
        with suppress(OSError):  # it is gone, as its end says to `_listen`, which may be waiting for it in this moment
            link.flush()

    def _fail(self, number: int, requests: Group, error: BaseException) -> None:
        """A batch has raised. What it was made of waits for what the supervisor decides. If the GPU is of no more use,
        or the context on it, this process ends."""
        out_of_memory = torch_state.is_out_of_memory(error)
        failure = None if out_of_memory else judge(error, self.loaded.device)
        self._held.update(requests)
        text, pickled = describe_error(error), pickle_error(error, traceback.format_exc())
        error.__traceback__ = None  # it holds the tensors
        if failure in (Failure.CONTEXT, Failure.DEVICE):
            self.channel.send(ServerBroken(text, failure is Failure.DEVICE))
            os._exit(1)
        torch_state.release(self.loaded.device)
        self._undecided += 1
        self.channel.send(BatchFailed(number, out_of_memory, pickled, text))

    def _decide(self, decision: DecideBatch) -> None:
        """What is to become of a batch that has failed. The worker whose request is refused has been told."""
        self._limit = decision.limit
        for batcher in self._batchers.values():
            batcher.limit(decision.limit)
        for request in decision.refused:
            self._drop(request)
        self._undecided -= 1
        if not self._undecided:  # else this is no news: more has failed since, and that decision has all groups
            self._set_groups(decision.groups)
