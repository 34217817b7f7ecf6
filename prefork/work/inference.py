"""Inference as a worker sees it: prepared segments go in, outputs come out, in any order.

Either the model is in this process, or a server has it. How many segments may be under way is bounded in both: a worker
that has no room left prepares nothing more until something has come out.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.batching import Batcher
from prefork.wire.channel import Channel
from prefork.wire.exceptions import describe_error
from prefork.wire.memory_file import Layout
from prefork.wire.messages import (
    ChangeCredits,
    ConnectServer,
    InferError,
    InferRequest,
    KeepRequests,
    RefuseRequest,
)
from prefork.work.exchange import pack, unpack
from prefork.work.loaded import Loaded
from prefork.work.torch_state import is_out_of_memory, release, reseed, watch_draws


class Refused(Exception):
    """A segment that the model cannot be run on, whatever it shares its batch with. error: as `pickle_error` has it."""

    def __init__(self, error: bytes) -> None:
        super().__init__("refused by the model server")
        self.error = error


Result = tuple[int, Tensors | Refused]  # with the number that it was submitted under


class Inference(Protocol):
    """inputs: what the model was last given, if it was in this process. is_alone: what came out last is known to have
    had no company. drew: it is known to have taken random numbers."""

    inputs: list[Tensors]
    is_alone: bool
    drew: bool

    @property
    def has_room(self) -> bool:
        """Whether one more may be submitted."""

    def open(self, engine: str) -> None:
        """What is submitted from here on is for this engine."""

    def submit(self, number: int, job: Job, segment: Segment, tensors: Tensors) -> None: ...

    def collect(self) -> Sequence[Result]:
        """Waits until something comes out."""

    def withdraw(self, numbers: Set[int]) -> None:
        """Forgets what was submitted under these numbers."""

    def drop(self) -> None:
        """Forgets all that has been submitted."""


def find_seed(job: Job, segment: Segment) -> int:
    """For what draws random numbers on the segment's way: the same wherever and with whomever it is computed."""
    return zlib.crc32(f"{job.id}:{segment.index}".encode(errors="surrogateescape"))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What was submitted and has not been in a batch."""

    seed: int
    elements: int
    tensors: Tensors


class LocalInference:
    """The model is in this process."""

    def __init__(self, loaded: Loaded) -> None:
        self.inputs: list[Tensors] = []
        self.is_alone = self.drew = False
        self._loaded = loaded
        self._engine = ""
        self._batchers: dict[str, Batcher[int]] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._shares: dict[str, float] = {}  # by engine, of a batch's usual size that there is memory for

    def open(self, engine: str) -> None:
        self._engine = engine
        if engine not in self._batchers:
            self._batchers[engine] = self._loaded.make_batcher(engine)
            self._batchers[engine].limit(self._shares.get(engine, 1.0))

    @property
    def _batcher(self) -> Batcher[int]:
        return self._batchers[self._engine]

    @property
    def has_room(self) -> bool:
        return not self._batcher.is_full

    def submit(self, number: int, job: Job, segment: Segment, tensors: Tensors) -> None:
        elements = self._loaded.engines[self._engine].count_elements(segment)
        self._batcher.add(number, elements)
        self._waiting[number] = _Waiting(find_seed(job, segment), elements, tensors)

    def collect(self) -> list[Result]:
        """One batch. What it raises, the model has raised; but if there is no memory for it, it is tried in halves, and
        no batch is larger from then on."""
        while True:
            numbers = self._batcher.pop(flush=True)
            batch = [self._waiting[number] for number in numbers]
            self.inputs[:] = [waiting.tensors for waiting in batch]
            self.is_alone = len(batch) == 1
            reseed(batch[0].seed)
            try:
                padded = len(batch) * max(waiting.elements for waiting in batch)
                with watch_draws() as draws, self._loaded.measure_batch(self._engine, self._batcher, padded):
                    outputs = self._loaded.infer(self._engine, self.inputs)
                break
            except Exception as error:
                if self.is_alone or not is_out_of_memory(error):
                    raise
                self._halve(numbers, error)
                error.__traceback__ = None  # it holds the batch's tensors
            release(self._loaded.device)
        self.drew = draws.any
        for number in numbers:
            del self._waiting[number]
        return list(zip(numbers, outputs, strict=True))

    def _halve(self, numbers: Sequence[int], error: Exception) -> None:
        """A batch of these was too large: they wait again."""
        share = self._shares[self._engine] = self._shares.get(self._engine, 1.0) / 2
        self._batcher.limit(share)
        for number in numbers:
            self._batcher.add(number, self._waiting[number].elements)
        text = f"{self._engine}: a batch of {len(numbers)} segments failed: {describe_error(error)}"
        print(f"{text}; from here on batches have at most {share:.4g} of their size", file=sys.stderr, flush=True)

    def withdraw(self, numbers: Set[int]) -> None:
        for number in numbers:
            self._batcher.discard(number)
            self._waiting.pop(number, None)

    def drop(self) -> None:
        self.inputs.clear()
        self._waiting.clear()
        self._batchers.clear()


@dataclass(slots=True)
class _OpenRequest:
    """A request that is not answered. fd: of the memory that its tensors lie in."""

    number: int
    engine: str
    elements: int
    seed: int
    fd: int
    layout: Layout


class RemoteInference:
    """A server has the model. If it dies, what it has not answered is asked again of the one that takes its place."""

    def __init__(self, channel: Channel, loaded: Loaded) -> None:
        """channel: to the supervisor, which brings connections to servers."""
        self.inputs: list[Tensors] = []
        self.is_alone = self.drew = False  # only the server knows
        self._channel = channel
        self._loaded = loaded
        self._link: Channel | None = None
        self._asked: dict[int, _OpenRequest] = {}
        self._next = 0
        self._engine = ""
        self._credits: Mapping[str, int] = {}
        self._most = 1  # requests under way

    def take_order(
        self, message: ConnectServer | ChangeCredits | RefuseRequest, fds: Sequence[int]
    ) -> _OpenRequest | None:
        """What the supervisor says of servers; the request that it refuses, if one still waits for it."""
        match message:
            case ConnectServer(credits, most):
                self._lose_link()
                self._link = Channel(socket.socket(fileno=fds[0]))
                self._credits, self._most = credits, most
                self._post(KeepRequests(list(self._asked)))
                for request in list(self._asked):
                    self._ask(request)
                return None
            case ChangeCredits(credits):
                self._credits = credits
                return None
            case RefuseRequest(request):
                return self._take_back(request)

    def _take_back(self, request: int) -> _OpenRequest | None:
        """It need not be asked again; None if nobody waits for it any more."""
        asked = self._asked.pop(request, None)
        if asked is not None:
            os.close(asked.fd)
        return asked

    def open(self, engine: str) -> None:
        self._engine = engine

    @property
    def has_room(self) -> bool:
        credit = self._credits.get(self._engine, 0)
        elements = sum(asked.elements for asked in self._asked.values())
        return not self._asked or (elements < credit and len(self._asked) < self._most)

    @property
    def is_busy(self) -> bool:
        """Whether something has been submitted that has not come out."""
        return bool(self._asked)

    def submit(self, number: int, job: Job, segment: Segment, tensors: Tensors) -> None:
        elements = self._loaded.engines[self._engine].count_elements(segment)
        self._asked[self._next] = _OpenRequest(number, self._engine, elements, find_seed(job, segment), *pack(tensors))
        self._ask(self._next)
        self._next += 1

    def _ask(self, request: int) -> None:
        asked = self._asked[request]
        message = InferRequest(request, asked.engine, asked.elements, asked.seed, asked.layout)
        self._post(message, [os.dup(asked.fd)] if self._link is not None else [])

    def _post(self, message: InferRequest | KeepRequests, fds: Sequence[int] = ()) -> None:
        """To the server, if there is one; else it will be asked when there is."""
        if self._link is None:
            return
        self._link.post(message, fds)
        try:
            self._link.flush()
        except OSError:  # it is gone
            self._lose_link()

    def _lose_link(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None

    def collect(self) -> list[Result]:
        """One answer, however many servers it takes. Raises EOFError if the supervisor has gone."""
        while True:
            ends = [self._channel] if self._link is None else [self._channel, self._link]
            ready, _, _ = select.select(ends, [], [])
            if self._channel in ready:
                message, fds = self._channel.receive()
                if (asked := self.take_order(message, fds)) is not None:
                    return [(asked.number, Refused(message.error))]
            elif self._link is not None:
                try:
                    answer, fds = self._link.receive()
                except (EOFError, ConnectionResetError):
                    self._lose_link()
                    continue
                output = Refused(answer.error) if isinstance(answer, InferError) else unpack(fds[0], answer.layout)
                if (asked := self._take_back(answer.request)) is not None:
                    return [(asked.number, output)]

    def withdraw(self, numbers: Set[int]) -> None:
        """They are not waited for; answers to them are thrown away if they come all the same."""
        requests = [request for request, asked in self._asked.items() if asked.number in numbers]
        for request in requests:
            self._take_back(request)
        if requests:
            self._post(KeepRequests(list(self._asked)))

    def drop(self) -> None:
        self.withdraw({asked.number for asked in self._asked.values()})
