"""What the supervisor makes of what model servers say; the servers are the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.memory.governor import Governor
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Request, Strategy, decide
from prefork.pool.servers import Servers
from prefork.pool.tasks import HangLimit
from prefork.wire.channel import Channel
from prefork.wire.child import Output
from prefork.wire.loop import Loop
from prefork.wire.messages import Group
from prefork.wire.specification import Inventory, Specification

_SECOND = 16_000  # elements


class Child:
    """A process that is none."""

    def __init__(self) -> None:
        self.channel, there = Channel.pair()
        self.other = Channel(there)
        self.errors, _ = Output.pipe()
        self.stderr_tail = bytearray()
        self.pid = 1
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def end(self, _: float) -> int:
        self.channel.close()
        self.errors.close()
        return 1


@dataclass
class Clients:
    """Whose servers they are."""

    clients: list[Any] = field(default_factory=list)
    reason: str = ""

    def note_served(self, inventory: Inventory) -> None: ...

    def list_clients(self) -> Sequence[Any]:
        return self.clients

    def fail_serving(self, reason: str, trace: str = "") -> None:
        self.reason = self.reason or reason


class Office:
    """Servers on a loop of their own, with two workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: list[Child] = []
        monkeypatch.setattr(Servers, "_start_process", lambda *_: self._start())
        self.loop = Loop()
        self.owner = Clients()
        for slot in range(2):
            channel, there = Channel.pair()
            self.loop.watch(channel, lambda: None)
            self.owner.clients.append(SimpleNamespace(slot=slot, number=slot, channel=channel, there=there))
        plan = decide(read_facts(), Request(engines=("script",), strategy=Strategy.SERVER, workers=2))
        limit = HangLimit(10.0, 1.0)
        ignore: Any = lambda _: None  # noqa: E731
        self.servers = Servers(
            Specification(), plan, self.owner, self.loop, Governor(), limit, ignore, ignore, talkative=False
        )

    def _start(self) -> Any:
        self.children.append(Child())
        return self.children[-1]

    def say(self, *messages: tuple[Any, ...]) -> None:
        for message in messages:
            self.children[-1].other.send(message)
        self.loop.turn(1.0)

    def load(self) -> None:
        self.say(("loaded", Inventory(0, 0.0, {}, batches={"script": 0.0})))

    def die(self) -> None:
        self.children[-1].other.close()
        self.loop.turn(1.0)

    def find_groups(self) -> list[Group]:
        return self.servers.all[0].blame.groups

    def find_waits(self) -> list[float]:
        """From the first deadline to each."""
        until = [batch.until for batch in self.servers.all[0].running.values()]
        return [round(one - until[0], 1) for one in until]


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office(monkeypatch)
    yield office
    office.servers.end()
    office.loop.close()


def stumble(number: int, starved: bool = False) -> tuple[Any, ...]:
    return ("stumbled", number, starved, b"", "an error")


def test_a_batch_that_waits_for_another_has_time_from_its_end(office: Office) -> None:
    office.load()
    office.say(("begin", 1, ((0, 0),), 100 * _SECOND), ("begin", 2, ((1, 0),), _SECOND))
    assert office.find_waits() == [0.0, 11.0]


def test_what_a_dead_worker_has_asked_is_not_run_again(office: Office) -> None:
    office.load()
    office.say(("begin", 1, ((0, 0), (1, 0)), _SECOND))
    office.servers.forget(office.owner.clients.pop(0))
    office.say(stumble(1))
    assert office.find_groups() == [((1, 0),)]


def test_a_batch_that_a_dead_worker_was_in_is_the_same_batch_without_it(office: Office) -> None:
    office.load()
    batch = ((0, 0), (1, 0), (1, 1))
    office.say(("begin", 1, batch, _SECOND), stumble(1), ("begin", 2, batch, _SECOND))
    office.servers.forget(office.owner.clients.pop(0))
    office.say(stumble(2))
    assert office.find_groups() == [((1, 0),), ((1, 1),)]
    office.say(("begin", 3, ((1, 0),), _SECOND), ("end", 3), ("begin", 4, ((1, 1),), _SECOND), ("end", 4))
    assert office.find_groups() == []


def test_one_segment_that_is_too_large_halves_the_batches_of_others_once(office: Office) -> None:
    office.load()
    batch = tuple((0, number) for number in range(8))
    office.say(("begin", 1, batch, _SECOND), stumble(1, starved=True))
    number = 1
    while groups := office.find_groups():
        number += 1
        office.say(("begin", number, groups[0], _SECOND))
        office.say(stumble(number, starved=True) if (0, 3) in groups[0] else ("end", number))
    assert office.servers.all[0].limit == 0.5


def test_segments_that_are_too_large_even_alone_do_not_make_batches_smaller(office: Office) -> None:
    office.load()
    for number in range(0, 2400, 2):
        single = ((0, number),)
        office.say(("begin", number, single, _SECOND), stumble(number, starved=True))
        office.say(("begin", number + 1, single, _SECOND), stumble(number + 1, starved=True))
        office.owner.clients[0].there.recv(1 << 20)
    assert office.servers.all[0].limit == 1.0


def test_a_server_that_dies_whatever_happens_is_not_started_for_ever(office: Office) -> None:
    for _ in range(3):
        office.load()
        office.die()
    assert "with nothing to do" in office.owner.reason
    assert len(office.children) == 3
    office.servers.end()  # it has ended already


def test_a_server_that_cannot_load_again_is_tried_again(office: Office) -> None:
    office.load()
    office.say(("begin", 1, ((0, 0),), _SECOND))
    office.die()
    office.say(("failed", "MemoryError: not now", ""))
    office.die()
    assert not office.owner.reason
    office.load()
    assert office.servers.all[0].inventory is not None


def test_the_end_does_not_wait_for_a_batch(office: Office) -> None:
    office.load()
    office.say(("begin", 1, ((0, 0),), _SECOND))
    office.servers.end()
    assert office.children[-1].killed


def test_few_requests_are_under_way_where_few_files_may_be_open(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork.wire.process.count_descriptors", lambda: 256)
    assert office.servers._find_most_asked() == 32
