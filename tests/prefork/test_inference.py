"""A worker's side of inference and a server's, joined by sockets in one process; the supervisor is the test."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.batching import Batcher, Batching
from prefork.wire.channel import Channel
from prefork.wire.messages import (
    BatchFailed,
    BatchStarted,
    ConnectServer,
    ConnectWorker,
    DecideBatch,
    FromServer,
    Group,
    RefuseRequest,
    RequestsDropped,
    ServerOrder,
)
from prefork.wire.specification import Specification
from prefork.work.inference import LocalInference, Refused, RemoteInference
from prefork.work.loaded import BatchUse
from prefork.work.server import _Server

M = TypeVar("M")
_JOB = Job("talk", Path("talk"))
_CREDIT = {"twice": 1 << 40}


class Twice:
    """Doubles; 13 is too much for it, and of 14 it makes one output too many."""

    def count_elements(self, segment: Segment) -> int:
        return 16_000

    device = "cpu"
    batch_need = 0

    @property
    def engines(self) -> dict[str, Twice]:
        return {"twice": self}

    def measure_batch(self, *_: object) -> AbstractContextManager[BatchUse]:
        return nullcontext(BatchUse())

    def make_batcher(self, _: str) -> Batcher[Any]:
        return Batcher(Batching(batch_size=4), 1 << 40)

    def compute(self, _: str, batch: Sequence[Tensors]) -> list[Tensors]:
        values = [float(tensors["value"]) for tensors in batch]
        if 13 in values:
            raise ValueError("13 is too much")
        return [{"value": torch.tensor(2 * value)} for value in values + [0.0] * (14 in values)]


class ServerThread:
    """A server in a thread, and the supervisor's end of its channel."""

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self.channel, there = Channel.pair()
        loaded: Any = Twice()
        server = _Server(Channel(there), loaded, ServerOrder(Specification(), 1, groups))
        self._thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
        self._thread.start()
        self._received: list[FromServer] = []
        self._mine: list[socket.socket] = []  # ends of workers' channels

    @staticmethod
    def _serve(server: _Server) -> None:
        try:
            server.run()
        except (EOFError, ConnectionResetError):
            return

    def post(self, message: ConnectWorker | DecideBatch, fds: Sequence[int] = ()) -> None:
        self.channel.post(message, fds)
        assert self.channel.flush()

    def connect(self, number: int, most: int = 100, inference: RemoteInference | None = None) -> RemoteInference:
        inference = inference or self.open()
        here, there = socket.socketpair()
        self.post(ConnectWorker(number), fds=[there.detach()])
        inference.take_order(ConnectServer(_CREDIT, most), [here.detach()])
        return inference

    def open(self) -> RemoteInference:
        """A worker's that has no server yet."""
        mine, its = socket.socketpair()
        self._mine.append(mine)
        loaded: Any = Twice()
        inference = RemoteInference(Channel(its), loaded)
        inference.open("twice")
        return inference

    def wait_for(self, kind: type[M]) -> M:
        """Its next message of a kind."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            self._received.extend(self.channel.poll())
            for place, message in enumerate(self._received):
                if isinstance(message, kind):
                    del self._received[: place + 1]
                    return message
            time.sleep(0.002)
        raise AssertionError(f"the server never sends {kind!r}: {self._received}")

    def end(self) -> None:
        self.channel.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.fixture
def server_thread() -> Iterator[ServerThread]:
    server_thread = ServerThread()
    yield server_thread
    server_thread.end()


def submit(inference: RemoteInference, *values: float) -> None:
    for value in values:
        inference.submit(int(value), _JOB, Segment(int(value), 0.0, 1.0), {"value": torch.tensor(float(value))})


def collect(inference: RemoteInference, count: int) -> dict[int, float | Refused]:
    """So many results; a server that holds them back is found out, not waited for."""
    found: dict[int, float | Refused] = {}

    def work() -> None:
        while len(found) < count:
            for number, output in inference.collect():
                found[number] = output if isinstance(output, Refused) else float(output["value"])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), f"of {count} results only {found} came"
    return found


def test_every_request_gets_its_answer(server_thread: ServerThread) -> None:
    inference = server_thread.connect(0)
    submit(inference, *range(10))
    assert collect(inference, 10) == {number: 2.0 * number for number in range(10)}
    assert not inference.is_busy


def test_no_more_requests_are_under_way_than_there_is_room_for(server_thread: ServerThread) -> None:
    inference = server_thread.connect(0, most=3)
    submitted = 0
    while inference.has_room and submitted < 20:
        submit(inference, submitted)
        submitted += 1
    assert submitted == 3
    collect(inference, 1)
    assert inference.has_room


def test_what_is_withdrawn_is_not_waited_for_and_the_others_are(server_thread: ServerThread) -> None:
    inference = server_thread.connect(0)
    submit(inference, 1, 2, 3)
    inference.withdraw({1, 3})
    assert collect(inference, 1) == {2: 4.0}
    assert not inference.is_busy


def test_a_group_does_not_wait_for_what_nobody_will_ask_again() -> None:
    server_thread = ServerThread([((0, 0), (0, 1), (1, 0))])
    inference, other = server_thread.open(), server_thread.open()
    submit(inference, 4, 5)
    submit(other, 6)
    inference.withdraw({4})  # while there was no server
    server_thread.connect(0, inference=inference)
    server_thread.connect(1, inference=other)
    assert server_thread.wait_for(RequestsDropped) == RequestsDropped([(0, 0)])
    assert server_thread.wait_for(BatchStarted).requests == ((0, 1), (1, 0))
    assert (collect(inference, 1), collect(other, 1)) == ({5: 10.0}, {6: 12.0})
    server_thread.end()


def test_a_decision_about_requests_that_were_withdrawn_since_holds_nobody_back(server_thread: ServerThread) -> None:
    inference, other = server_thread.connect(0), server_thread.connect(1)
    submit(inference, 13, 7)
    server_thread.wait_for(BatchStarted)
    number = server_thread.wait_for(BatchFailed).batch
    inference.withdraw({13})
    submit(other, 3)
    assert collect(other, 1) == {3: 6.0}  # so it has read that as well
    server_thread.post(DecideBatch([((0, 0), (0, 1))], [], 1.0))
    assert server_thread.wait_for(RequestsDropped) == RequestsDropped([(0, 0)])
    assert collect(inference, 1) == {7: 14.0}
    assert number >= 1


def test_a_decision_that_is_out_of_date_begins_nothing(server_thread: ServerThread) -> None:
    """Two batches have failed; what was decided of the first knows nothing of the second."""
    inference, other = server_thread.connect(0), server_thread.connect(1)
    submit(inference, 13)
    server_thread.wait_for(BatchFailed)
    submit(other, 13)
    server_thread.wait_for(BatchFailed)
    server_thread.post(DecideBatch([((0, 0),)], [], 1.0))
    submit(inference, 1)
    assert collect(inference, 1) == {1: 2.0}
    server_thread.post(DecideBatch([((0, 0),), ((1, 0),)], [], 1.0))
    assert server_thread.wait_for(BatchStarted).requests == ((0, 1),)
    assert server_thread.wait_for(BatchStarted).requests == ((0, 0),)
    assert server_thread.wait_for(BatchStarted).requests == ((1, 0),)


def test_an_engine_that_makes_too_many_outputs_is_said_to(server_thread: ServerThread) -> None:
    inference = server_thread.connect(0)
    submit(inference, 14)
    failed = server_thread.wait_for(BatchFailed)
    assert not failed.out_of_memory
    assert "2 outputs for 1 segments" in failed.text
    inference.take_order(RefuseRequest(0, failed.error), [])
    assert not inference.is_busy
    assert b"2 outputs" in pickle.dumps(pickle.loads(failed.error))


class Small(Twice):
    """Has memory for batches of so many segments, and says so in the words of its kind of device."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def infer(self, name: str, batch: Sequence[Tensors]) -> list[Tensors]:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise self.error
        return self.compute(name, batch)


_FULL = [
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB, max allowed: 9.32 GiB)."),
    RuntimeError("Invalid buffer size: 15.26 GiB"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
]


@pytest.mark.parametrize("error", _FULL, ids=["mps", "mps, one buffer", "cuda", "python"])
def test_a_batch_that_there_is_no_memory_for_is_halved_and_loses_nothing(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    small: Any = Small(1, error)
    inference = LocalInference(small)
    found: dict[int, float] = {}
    for _ in range(2):  # what was learned outlives a task
        inference.open("twice")
        for number in range(4):
            inference.submit(number, _JOB, Segment(number, 0.0, 1.0), {"value": torch.tensor(float(number))})
        while len(found) < 4:
            found |= {number: float(output["value"]) for number, output in inference.collect()}  # type: ignore[index]
        assert found == {0: 0.0, 1: 2.0, 2: 4.0, 3: 6.0}
        found.clear()
        inference.drop()
    assert small.sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert "twice: a batch of 4 segments failed" in capfd.readouterr().err


def test_what_there_is_no_memory_for_alone_is_raised() -> None:
    small: Any = Small(0, MemoryError("nothing left"))
    inference = LocalInference(small)
    inference.open("twice")
    inference.submit(0, _JOB, Segment(0, 0.0, 1.0), {"value": torch.tensor(1.0)})
    with pytest.raises(MemoryError, match="nothing left"):
        inference.collect()
