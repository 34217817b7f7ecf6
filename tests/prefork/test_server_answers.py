"""When a model server with a GPU answers, with a device that does what the test says; the server is the real one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from prefork.engines.base import Tensors
from prefork.engines.batching import Batcher, Batching
from prefork.wire.channel import Channel
from prefork.wire.messages import (
    BatchDone,
    BatchFailed,
    BatchStarted,
    ConnectWorker,
    DecideBatch,
    InferOutput,
    InferRequest,
    ServerOrder,
)
from prefork.wire.specification import Specification
from prefork.work import server, torch_state
from prefork.work.exchange import pack, unpack
from prefork.work.loaded import BatchUse

_SECONDS = 10.0


@dataclass
class Device:
    """Batches of one segment, by its number. begun, computed: where `infer` of each is; arrived: its outputs are there,
    or its error."""

    begun: dict[int, threading.Event] = field(default_factory=dict)
    computed: dict[int, threading.Event] = field(default_factory=dict)
    arrived: dict[int, threading.Event] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    device: str = "cuda"
    batch_need: int = 0

    def __post_init__(self) -> None:
        for events in (self.begun, self.computed, self.arrived):
            events.update({number: threading.Event() for number in range(9)})

    def make_batcher(self, _: str) -> Batcher[Any]:
        return Batcher(Batching(batch_size=1), 1 << 20)

    def measure_batch(self, *_: object) -> AbstractContextManager[BatchUse]:
        return nullcontext(BatchUse())

    def send(self, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return batch

    def compute(self, _: str, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        number = int(batch[0]["number"])
        self.begun[number].set()
        assert self.computed[number].wait(_SECONDS)
        return batch

    def fetch(self, outputs: Sequence[Tensors]) -> Any:
        device, number = self, int(outputs[0]["number"])

        class Results:
            def wait(self) -> Sequence[Tensors]:
                assert device.arrived[number].wait(_SECONDS)
                if number in device.errors:
                    raise device.errors[number]
                return outputs

        return Results()


@dataclass
class Setup:
    device: Device
    supervisor: Channel
    worker: Channel

    def ask(self, *numbers: int) -> None:
        for number in numbers:
            fd, layout = pack({"number": torch.tensor(number)})
            self.worker.send(InferRequest(number, "some", 16_000, 0, layout), [fd])

    def receive(self) -> int:
        """The number of the next answer."""
        assert self.worker.wait(_SECONDS), "no answer"
        message, fds = self.worker.receive()
        assert isinstance(message, InferOutput)
        assert int(unpack(fds[0], message.layout)["number"]) == message.request
        return message.request

    def hear(self) -> Any:
        assert self.supervisor.wait(_SECONDS), "no word"
        return self.supervisor.receive()[0]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    device = Device()
    monkeypatch.setattr(server, "open_staging", lambda _: device)
    monkeypatch.setattr(server, "judge", lambda *_: None)
    monkeypatch.setattr(torch_state, "release", lambda *_, **__: None)
    here, there = socket.socketpair()
    ours, theirs = socket.socketpair()
    supervisor = Channel(here)
    supervisor.send(ConnectWorker(7), [theirs.detach()])
    loaded: Any = device
    thread = threading.Thread(target=_serve, args=(Channel(there), loaded))
    thread.start()
    yield Setup(device, supervisor, Channel(ours))
    for event in [*device.computed.values(), *device.arrived.values()]:
        event.set()
    supervisor.close()
    thread.join(_SECONDS)
    assert not thread.is_alive()


def _serve(channel: Channel, loaded: Any) -> None:
    with pytest.raises((EOFError, OSError)):
        server._Server(channel, loaded, ServerOrder(Specification(), 1)).run()


def test_a_batch_that_is_done_is_answered_while_the_next_one_is_computed(setup: Setup) -> None:
    setup.device.computed[1].set()
    setup.ask(1, 2)
    assert setup.device.begun[2].wait(_SECONDS)  # the model waits within its `infer`
    setup.device.arrived[1].set()
    assert setup.receive() == 1
    assert not setup.device.computed[2].is_set()
    setup.device.computed[2].set()
    setup.device.arrived[2].set()
    assert setup.receive() == 2
    said = [setup.hear() for _ in range(4)]
    assert [(type(one), one.batch) for one in said] == [
        (BatchStarted, 1),
        (BatchStarted, 2),
        (BatchDone, 1),
        (BatchDone, 2),
    ]


def test_no_more_than_two_batches_are_on_the_gpu(setup: Setup) -> None:
    for event in setup.device.computed.values():
        event.set()
    setup.ask(1, 2, 3)
    assert setup.device.begun[2].wait(_SECONDS)
    assert not setup.device.begun[3].wait(0.2)
    setup.device.arrived[1].set()
    assert setup.device.begun[3].wait(_SECONDS)  # it is woken by the end of the first
    setup.device.arrived[2].set()
    setup.device.arrived[3].set()
    assert [setup.receive() for _ in range(3)] == [1, 2, 3]


def test_what_goes_wrong_late_is_said_and_decided_while_others_go_on(setup: Setup) -> None:
    for event in setup.device.computed.values():
        event.set()
    setup.device.errors[1] = ValueError("too late")
    setup.ask(1, 2)
    setup.device.arrived[1].set()
    setup.device.arrived[2].set()
    assert setup.receive() == 2
    said = [setup.hear() for _ in range(4)]
    (failed,) = [one for one in said if isinstance(one, BatchFailed)]
    assert (failed.batch, failed.out_of_memory, failed.text) == (1, False, "ValueError: too late")
    del setup.device.errors[1]
    setup.supervisor.send(DecideBatch([((7, 1),)], [], 1.0))
    assert setup.receive() == 1
