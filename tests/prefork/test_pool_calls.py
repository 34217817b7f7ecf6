"""Calls that workers are given several at a time: what becomes of each under any schedule; see test_pool_state."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from prefork.engines.base import LoadError
from prefork.errors import CallTimedOut, OutOfMemory, Stopped, WorkerDied
from prefork.platform_matrix.matrix import Strategy
from prefork.pool import events as ev
from prefork.pool.call_options import USUAL, CallOptions
from prefork.pool.tasks import NotBegun, Task
from prefork.wire.pickling import Pickled
from tests.prefork.machine import CALLS, ENDS, EXAMPLES, HARSH, Call, Machine, make_task, start, take


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from([Strategy.FORK, Strategy.SPAWN]),
    st.integers(1, 3),
    st.lists(st.sampled_from([*CALLS, *CALLS, *HARSH, *ENDS, "submit", "cancel"]), max_size=80),
    st.randoms(use_true_random=False),
)
def test_every_call_ends_once_and_is_at_one_worker_at_a_time(
    strategy: Strategy, workers: int, steps: list[str], random: Any
) -> None:
    machine = start(strategy, workers)
    submitted: list[str] = []
    waiting: list[Call] = []
    if random.random() < 0.8:  # most of what can go wrong needs workers that are given several calls at once
        machine.get_ready()
        submitted += be_quick(machine)
    for number, step in enumerate(steps):
        if machine.pool.is_finished(machine.now, pending=False):
            break
        if step in ("call", "calls"):
            labels = [f"call {number}.{place}" for place in range(1 if step == "call" else 20)]
            waiting += submit(machine, labels, random.choice(OPTIONS))
            submitted += labels
            machine.feed(ev.Tick())
        elif step == "cancel call":
            if waiting:
                call = waiting.pop(random.randrange(len(waiting)))
                call.state = "cancelled"
                machine.feed(ev.CallCancelled(call.label))
        elif step == "reload":
            submitted.append(f"reload {number}")
            task = Task("reload", (), lambda *_: None, label=submitted[-1])
            machine.feed(ev.ReloadRequested(b"", task))
        elif step == "submit":
            submitted.append(f"task {number}")
            machine.feed(ev.TasksSubmitted([make_task(submitted[-1], random.randrange(3))]))
        else:
            take(machine, step, random)
        machine.now += random.choice([0.0, 0.0001, 0.0001, 0.0001, 0.3])
    machine.close()
    event("failed" if machine.pool.failure else "closed")
    assert "no process is left" not in str(machine.pool.failure)  # what nobody has thought of
    assert machine.ended == Counter(submitted)
    kinds = bytes | Pickled | CallTimedOut | ValueError | WorkerDied | OutOfMemory | Stopped | LoadError | KeyError
    assert all(isinstance(outcome, kinds) for outcome in machine.results.values())


def be_quick(machine: Machine) -> list[str]:
    """Answers calls in next to no time, by all workers; their labels."""
    labels = ["before"] * 100
    for label in labels:
        submit(machine, [label])
        machine.feed(ev.Tick())
        machine.now += 0.0001
        for number in machine.list_calling():
            machine.finish_call(number)
    return labels


OPTIONS = [
    CallOptions(),
    CallOptions(timeout=1.0),
    CallOptions(retry=False),
    CallOptions(timeout=0.00005, retry=False, priority=3),
    CallOptions(priority=-1),
    CallOptions(stream=True, retry=False),
]


def submit(machine: Machine, labels: list[str], options: CallOptions = USUAL) -> list[Call]:
    calls = [Call(label, rank, options) for rank, label in enumerate(labels, len(machine.ended))]
    machine.feed(ev.CallsSubmitted(calls))  # type: ignore[arg-type]  # all that the pool asks of a call they have
    return calls


@pytest.fixture
def quick() -> Machine:
    """Two workers that have each answered many calls in next to no time, and were given several at once since."""
    machine = start()
    machine.get_ready()
    be_quick(machine)
    submit(machine, [str(place) for place in range(40)])
    machine.feed(ev.Tick())
    machine.feed(ev.Tick())
    assert all(len(machine.given[number]) > 1 for number in (0, 1))
    return machine


def test_what_a_dead_worker_had_not_begun_is_done_elsewhere_and_loses_no_attempt(quick: Machine) -> None:
    quick.begin_call(0)
    first, *others = quick.given[0].values()
    quick.kill(0)
    assert first.attempts == 1
    assert [task.attempts for task in others] == [0] * len(others)
    quick.feed(ev.CloseRequested())
    quick.settle()
    assert quick.ended == Counter({"before": 100, **{str(place): 1 for place in range(40)}})
    assert all(isinstance(quick.results[str(place)], Pickled) for place in range(40))


def test_a_worker_that_has_nothing_to_do_gets_what_another_has_not_begun(quick: Machine) -> None:
    quick.begin_call(0)
    while len(quick.ended) < 40:  # the other does all of it, while this one is at its first call
        quick.finish_call(1)
        quick.feed(ev.Tick())
    assert len(quick.given[0]) == 1


def test_there_is_something_to_do_when_a_call_is_to_end_and_not_before_or_after() -> None:
    machine = start(workers=1)
    machine.get_ready()
    assert machine.pool.find_wait(9.0, machine.now) == 9.0
    submit(machine, ["slow"], CallOptions(timeout=3.0))
    machine.feed(ev.Tick())
    machine.begin_call(0)
    assert machine.pool.find_wait(9.0, machine.now + 1.0) == 2.0
    machine.now += 3.0
    machine.feed(ev.Tick())
    assert machine.interrupted == {0} and machine.pool.find_wait(9.0, machine.now) == 2.0
    machine.now += 2.0
    machine.feed(ev.Tick())
    assert machine.dying == [0] and machine.pool.find_wait(9.0, machine.now) == 9.0, "it is killed, and not waited for"
    machine.end_dying()
    assert isinstance(machine.results["slow"], CallTimedOut)


def test_what_no_worker_has_begun_can_be_cancelled(quick: Machine) -> None:
    quick.begin_call(0)
    quick.begin_call(1)
    begun = {next(iter(quick.given[number].values())).label for number in (0, 1)}
    quick.feed(ev.WaitingCancelled())
    cancelled = {label for label, outcome in quick.results.items() if isinstance(outcome, NotBegun)}
    assert cancelled == {str(place) for place in range(40)} - begun


def test_a_call_that_takes_its_time_has_none_behind_it() -> None:
    machine = start(workers=1)
    machine.get_ready()
    for _ in range(100):
        submit(machine, ["long"])
        machine.feed(ev.Tick())
        machine.now += 1.0
        machine.finish_call(0)
    submit(machine, ["a", "b", "c"])
    machine.feed(ev.Tick())
    assert len(machine.given[0]) == 1
