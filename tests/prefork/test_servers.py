"""What the pool makes of what model servers send and of how they end, without a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from prefork.memory.governor import Governor
from prefork.platform_matrix.devices import Device
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Request, Strategy, decide
from prefork.pool.actions import Action, Connect, EndServers, Outbox, SendWorker, StartServer
from prefork.pool.events import ServerExited
from prefork.pool.servers import Servers
from prefork.pool.tasks import HangLimit
from prefork.pool.workers import Worker, Workers
from prefork.wire.messages import (
    BatchDone,
    BatchFailed,
    BatchStarted,
    ChangeCredits,
    FromServer,
    Group,
    LoadFailed,
    ModelsLoaded,
)
from prefork.wire.specification import Inventory, Specification
from tests.prefork.machine import Policy

_SECOND = 16_000  # elements


class Setup:
    """One server, and two workers."""

    def __init__(self, descriptors: int = 100_000) -> None:
        self.outbox = Outbox()
        plan = decide(read_facts(), Request(engines=("script",), strategy=Strategy.SERVER, workers=2))
        self.workers = Workers(self.outbox, plan, Specification, lambda *_: None)
        for slot in range(2):
            self.workers.all[slot] = Worker(slot, slot, 0.0, forked=True)
        limit = HangLimit(10.0, 1.0)
        self.servers = Servers(self.outbox, Specification(), plan, self.workers, Governor(), limit, descriptors)
        self.actions: list[Action] = []
        self.note()

    def note(self) -> None:
        self.actions += self.outbox.take()

    def send(self, *messages: FromServer) -> None:
        for message in messages:
            self.servers.handle(0, message)
        self.note()

    def load(self) -> None:
        self.send(ModelsLoaded(Inventory(0, 0.0, {}, batches={"script": 0.0})))

    def die(self) -> None:
        self.servers.handle_exit(ServerExited(0, 1, 1))
        self.note()

    def lose_worker(self, number: int) -> None:
        self.servers.disconnect(self.workers.all.pop(number))

    @property
    def started(self) -> int:
        return sum(isinstance(action, StartServer) for action in self.actions)

    def find_groups(self) -> Sequence[Group]:
        return self.servers.all[0].blame.groups

    def find_waits(self) -> list[float]:
        """From the first deadline to each."""
        until = [batch.until for batch in self.servers.all[0].running.values()]
        return [round(one - until[0], 1) for one in until]


@pytest.fixture
def setup() -> Setup:
    return Setup()


def fail(number: int, out_of_memory: bool = False) -> BatchFailed:
    return BatchFailed(number, out_of_memory, b"", "an error")


def test_what_may_be_under_way_grows_with_the_batches(setup: Setup) -> None:
    """They are measured and made larger while the run goes on; three of them are to be under way all the same."""
    setup.send(ModelsLoaded(Inventory(0, 0.0, {}, batches={"script": 100.0})))
    setup.send(BatchStarted(1, ((0, 0),), _SECOND), BatchDone(1, "script", 1.0, 1, 400.0))
    setup.send(BatchStarted(2, ((0, 1),), _SECOND), BatchDone(2, "script", 1.0, 1))
    sent = [(action.number, action.message) for action in setup.actions if isinstance(action, SendWorker)]
    assert sent == [(number, ChangeCredits({"script": 600 * _SECOND})) for number in range(2)]
    connected = [action.message for action in setup.actions if isinstance(action, Connect)]
    setup.servers.connect(setup.workers.all[0])  # and who comes later has as much
    setup.note()
    assert connected[0].credits == {"script": 150 * _SECOND}
    assert isinstance(last := setup.actions[-1], Connect) and last.message.credits == {"script": 600 * _SECOND}


def test_a_batch_that_waits_for_another_has_time_from_its_end(setup: Setup) -> None:
    setup.load()
    setup.send(BatchStarted(1, ((0, 0),), 100 * _SECOND), BatchStarted(2, ((1, 0),), _SECOND))
    assert setup.find_waits() == [0.0, 11.0]


def test_what_a_dead_worker_has_asked_is_not_run_again(setup: Setup) -> None:
    setup.load()
    setup.send(BatchStarted(1, ((0, 0), (1, 0)), _SECOND))
    setup.lose_worker(0)
    setup.send(fail(1))
    assert setup.find_groups() == [((1, 0),)]


def test_a_batch_that_a_dead_worker_was_in_is_the_same_batch_without_it(setup: Setup) -> None:
    setup.load()
    batch = ((0, 0), (1, 0), (1, 1))
    setup.send(BatchStarted(1, batch, _SECOND), fail(1), BatchStarted(2, batch, _SECOND))
    setup.lose_worker(0)
    setup.send(fail(2))
    assert setup.find_groups() == [((1, 0),), ((1, 1),)]
    setup.send(BatchStarted(3, ((1, 0),), _SECOND), BatchDone(3), BatchStarted(4, ((1, 1),), _SECOND), BatchDone(4))
    assert setup.find_groups() == []


def test_one_segment_that_is_too_large_halves_the_batches_of_others_once(setup: Setup) -> None:
    setup.load()
    batch = tuple((0, number) for number in range(8))
    setup.send(BatchStarted(1, batch, _SECOND), fail(1, out_of_memory=True))
    number = 1
    while groups := setup.find_groups():
        number += 1
        setup.send(BatchStarted(number, groups[0], _SECOND))
        setup.send(fail(number, out_of_memory=True) if (0, 3) in groups[0] else BatchDone(number))
    assert setup.servers.all[0].batch_share == 0.5


def test_segments_that_are_too_large_even_alone_do_not_make_batches_smaller(setup: Setup) -> None:
    setup.load()
    for number in range(0, 2400, 2):
        single = ((0, number),)
        setup.send(BatchStarted(number, single, _SECOND), fail(number, out_of_memory=True))
        setup.send(BatchStarted(number + 1, single, _SECOND), fail(number + 1, out_of_memory=True))
    assert setup.servers.all[0].batch_share == 1.0


def test_a_server_that_dies_whatever_happens_is_not_started_for_ever(setup: Setup) -> None:
    for _ in range(3):
        setup.load()
        setup.die()
    assert setup.servers.failure is not None and "while idle" in setup.servers.failure.reason
    assert setup.started == 3


def test_a_server_that_cannot_load_again_is_tried_again(setup: Setup) -> None:
    setup.load()
    setup.send(BatchStarted(1, ((0, 0),), _SECOND))
    setup.die()
    setup.send(LoadFailed("MemoryError: not now"))
    setup.die()
    assert setup.servers.failure is None
    setup.load()
    assert setup.servers.all[0].inventory is not None


def test_the_end_does_not_wait_for_a_batch(setup: Setup) -> None:
    setup.load()
    setup.send(BatchStarted(1, ((0, 0),), _SECOND))
    setup.servers.end()
    assert setup.outbox.take() == [EndServers(frozenset())]


def test_with_nvidias_mps_the_end_waits_for_a_batch() -> None:
    setup = Setup()
    gpu = Device("cuda", "NVIDIA H200", 10**11, 10**11, multi_process_service=True)
    setup.servers._plan = replace(setup.servers._plan, chosen=(gpu,))
    setup.load()
    setup.send(BatchStarted(1, ((0, 0),), _SECOND))
    setup.servers.end()
    assert setup.outbox.take() == [EndServers(frozenset({0}))]


def test_what_batches_took_of_a_gpu_is_told_to_the_server_that_takes_the_place_of_another() -> None:
    setup = Setup()
    told: list[tuple[str, float, int]] = []

    class Told(Policy):
        def learn_batch(self, engine: str, size: float, taken: int) -> None:
            told.append((engine, size, taken))

        def recall_batches(self) -> dict[str, list[tuple[float, int]]]:
            return {"script": [(8.0, 7)]}

    setup.servers._policy = Told()
    setup.servers.all[0].device = "GPU-7"
    setup.load()
    setup.send(BatchStarted(1, ((0, 0),), _SECOND), BatchDone(1, "script", 8.0, 7), BatchStarted(2, ((0, 1),), _SECOND))
    setup.die()
    assert told == [("script", 8.0, 7)]
    (order,) = [action.order for action in setup.actions[1:] if isinstance(action, StartServer)]
    assert order.measured == {"script": [(8.0, 7)]}


def test_few_requests_are_under_way_where_few_files_may_be_open() -> None:
    assert Setup(descriptors=256).servers.find_max_requests() == 32
