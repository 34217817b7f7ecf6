"""The pool's decisions under schedules that nobody would write down: events in, actions out, no process, no clock.

A simulated machine does what the actions say, and hypothesis decides what happens next: who answers, who is killed, who
says nothing, how much time passes. Whatever it decides, every task ends once, and nothing waits for ever.
"""

from __future__ import annotations

import pickle
import signal
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from prefork.engines.base import LoadError
from prefork.errors import OutOfMemory, Stopped, WorkerDied
from prefork.memory.admission import Level
from prefork.platform_matrix.matrix import Request, Strategy
from prefork.pool import actions as act
from prefork.pool import events as ev
from prefork.pool.workers import MOST_FAILED_STARTS, is_crash
from prefork.wire.endings import CUT_OFF, FATAL
from prefork.wire.messages import (
    BatchDone,
    BatchStarted,
    ForkUnsafe,
    LoadFailed,
)
from tests.prefork.machine import EXAMPLES, HANG, HARSH, Machine, Policy, make_task, start, take


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from([Strategy.FORK, Strategy.SPAWN, Strategy.SERVER]),
    st.integers(1, 4),
    st.lists(st.sampled_from(["submit", *HARSH]), max_size=60),
    st.randoms(use_true_random=False),
)
def test_every_task_ends_once_and_nothing_waits_for_ever(
    strategy: Strategy, workers: int, steps: list[str], random: Any
) -> None:
    machine = start(strategy, workers)
    submitted = ["first", "second"]
    machine.feed(ev.TasksSubmitted([make_task(label) for label in submitted]))
    if random.random() < 0.5:  # what can go wrong later needs workers
        machine.get_ready()
    for number, step in enumerate(steps):
        if machine.pool.is_finished(machine.now, pending=False):
            break
        if step == "submit":
            submitted.append(f"task {number}")
            machine.feed(ev.TasksSubmitted([make_task(submitted[-1], random.randrange(3))]))
        else:
            take(machine, step, random)
        machine.now += random.choice([0.0, 0.01, 0.3])
    machine.close()
    event("failed" if machine.pool.failure else "closed")
    assert "no process is left" not in str(machine.pool.failure)  # what nobody has thought of
    assert machine.ended == Counter(submitted)
    for outcome in machine.results.values():
        assert isinstance(outcome, bytes | ValueError | WorkerDied | OutOfMemory | Stopped | LoadError | KeyError)


@pytest.fixture
def busy() -> Machine:
    """Two workers that are at a task each, and a third task that waits."""
    machine = start()
    machine.load()
    for number in list(machine.silent):
        machine.make_ready(number)
    machine.feed(ev.TasksSubmitted([make_task(label) for label in "abc"]))
    machine.feed(ev.Tick())
    assert sorted(pickle.loads(task)[1][0] for task in machine.tasks.values()) == ["a", "b"]
    return machine


def test_a_task_whose_worker_dies_is_tried_once_more_on_a_fresh_worker_and_then_fails(busy: Machine) -> None:
    for _ in range(2):
        number = next(n for n, task in busy.tasks.items() if pickle.loads(task)[1] == ("a",))
        busy.kill(number)
        for other in list(busy.silent):
            busy.make_ready(other)
        busy.feed(ev.Tick())
    assert isinstance(busy.results["a"], WorkerDied)
    assert any("retrying it on a new worker" in notice for notice in busy.notices)
    busy.feed(ev.CloseRequested())
    busy.settle()
    assert busy.ended == Counter("abc")


def _crash(machine: Machine, label: str) -> None:
    number = next(n for n, task in machine.tasks.items() if pickle.loads(task)[1] == (label,))
    machine.kill(number, status=-signal.SIGSEGV)
    for other in list(machine.silent):
        if machine.pool.workers.all[other].forked:
            machine.make_ready(other)
    machine.feed(ev.Tick())


def test_forked_workers_that_crash_at_different_tasks_give_way_to_spawned_ones_and_nothing_is_lost(
    busy: Machine,
) -> None:
    _crash(busy, "a")
    _crash(busy, "b")
    assert busy.zygote_is_dying
    busy.end_dying()
    assert busy.pool.models.plan.strategy is Strategy.SPAWN
    assert any(notice.startswith("cannot fork: forked workers crash at different inputs") for notice in busy.notices)
    busy.feed(ev.CloseRequested())
    busy.settle()
    assert busy.results == dict.fromkeys("abc", b"result")


def test_a_task_that_crashes_every_worker_is_tried_last_and_fails_alone(busy: Machine) -> None:
    _crash(busy, "a")
    _crash(busy, "a")
    assert "a" not in busy.results and not busy.zygote_is_dying
    busy.finish(next(n for n, task in busy.tasks.items() if pickle.loads(task)[1] == ("b",)))
    for label in ("c", "a"):
        busy.feed(ev.Tick())
        running = {pickle.loads(task)[1][0]: number for number, task in busy.tasks.items()}
        if label == "c":
            busy.finish(running["c"])
    _crash(busy, "a")
    assert isinstance(busy.results["a"], WorkerDied) and busy.pool.models.plan.strategy is Strategy.FORK
    assert busy.results["b"] == busy.results["c"] == b"result"


def test_who_is_ended_from_outside_has_not_crashed(busy: Machine) -> None:
    """Nor has one that has closed its channel and was killed for that, or has said what it died of."""
    for label, status in (("a", -signal.SIGKILL), ("b", -signal.SIGTERM)):
        busy.kill(next(n for n, task in busy.tasks.items() if pickle.loads(task)[1] == (label,)), status=status)
        for other in list(busy.silent):
            busy.make_ready(other)
        busy.feed(ev.Tick())
    assert not busy.zygote_is_dying
    assert not is_crash(ev.WorkerReaped(0, CUT_OFF))
    assert not is_crash(ev.WorkerReaped(0, -signal.SIGSEGV, stderr_tail=f"{FATAL}wrote to the weights\n"))
    assert is_crash(ev.WorkerReaped(0, -signal.SIGBUS, stderr_tail="Fatal Python error: Bus error\n"))


def test_a_worker_that_says_nothing_is_killed_after_its_limit_and_not_before(busy: Machine) -> None:
    busy.now += 5.9
    busy.feed(ev.Tick())
    assert busy.dying == [0, 1]
    assert all(worker.kill_reason for worker in busy.pool.workers.all.values())


def test_a_worker_that_makes_progress_is_not_killed(busy: Machine) -> None:
    busy.now += 4.9
    busy.feed(ev.Tick())
    assert busy.dying == []


def test_a_zygote_that_does_not_say_what_became_of_a_worker_is_replaced(busy: Machine) -> None:
    busy.zygote_is_stuck = True
    busy.kill(0)
    busy.now += HANG.base + 0.1
    busy.feed(ev.Tick())
    assert busy.zygote_is_dying
    busy.feed(ev.CloseRequested())
    busy.settle()
    assert busy.ended == Counter("abc")
    assert all(isinstance(outcome, bytes) for outcome in busy.results.values())


@pytest.mark.parametrize("strategy", [Strategy.FORK, Strategy.SPAWN, Strategy.SERVER])
def test_who_never_has_the_models_ends_the_run_after_its_limit(strategy: Strategy) -> None:
    machine = start(strategy)
    machine.feed(ev.TasksSubmitted([make_task("a")]))
    machine.feed(ev.Tick())
    for _ in range(MOST_FAILED_STARTS if strategy is Strategy.SPAWN else 1):
        machine.zygote_is_stuck, machine.stuck_servers = machine.zygote, set(machine.servers)
        machine.stuck |= machine.living
        machine.now += HANG.loading(1000) - 1.0
        machine.feed(ev.Tick())
        assert not (machine.pool.failure or machine.dying or machine.dying_servers)
        machine.now += 2.0
        machine.feed(ev.Tick())
        machine.end_dying()
        machine.feed(ev.Tick())
    assert isinstance(machine.pool.failure, LoadError)
    assert "loaded the models" in str(machine.pool.failure)


def test_the_tasks_of_a_zygote_that_dies_lose_no_attempt(busy: Machine) -> None:
    busy.kill_zygote()
    attempts = [task.attempts for task in busy.pool.scheduler.queue]
    assert attempts == [0, 0, 0]
    busy.feed(ev.CloseRequested())
    busy.settle()
    assert busy.results == dict.fromkeys("abc", b"result")


def test_a_zygote_that_never_loads_is_not_started_for_ever() -> None:
    machine = start()
    starts = 0
    while machine.pool.failure is None:
        starts += 1
        machine.kill_zygote()
    assert starts == 3
    assert isinstance(machine.pool.failure, LoadError)


def test_where_a_zygote_must_not_fork_workers_are_spawned() -> None:
    machine = start()
    machine.pool.models.workers.plan = replace(
        machine.pool.models.plan, request=Request(engines=("script",), workers=2)
    )
    machine.feed(ev.ZygoteSent(ForkUnsafe("a thread holds a lock")))
    assert machine.pool.models.plan.strategy is Strategy.SPAWN
    assert not machine.zygote and machine.living
    assert any("cannot fork: a thread holds a lock" in notice for notice in machine.notices)


def test_models_that_cannot_be_loaded_end_everything_with_the_reason() -> None:
    machine = start()
    machine.feed(ev.TasksSubmitted([make_task("a")]))
    machine.feed(ev.ZygoteSent(LoadFailed("no such model")))
    assert str(machine.pool.failure) == "no such model"
    for action in machine.pool.end(machine.pool.failure):
        machine.do(action)
    assert str(machine.results["a"]) == "no such model"


def test_a_worker_that_never_becomes_ready_is_replaced() -> None:
    machine = start()
    machine.load()
    machine.now += 31.0
    machine.feed(ev.Tick())
    assert machine.dying == [0, 1]


def test_while_memory_is_short_nothing_starts_and_then_one_task_at_a_time() -> None:
    policy = Policy()
    policy.level = Level.TIGHT
    machine = start(policy=policy)
    machine.load()
    for number in list(machine.silent):
        machine.make_ready(number)
    machine.feed(ev.TasksSubmitted([make_task(label) for label in "abc"]))
    machine.feed(ev.Tick())
    assert not machine.tasks
    machine.now += 61.0
    machine.feed(ev.Tick())
    assert len(machine.tasks) == 1


def test_a_server_that_works_excuses_the_worker_that_waits_for_it() -> None:
    machine = start(Strategy.SERVER)
    machine.load()
    for number in list(machine.silent):
        machine.make_ready(number)
    machine.feed(ev.TasksSubmitted([make_task("a")]))
    machine.feed(ev.Tick())
    machine.feed(ev.ServerSent(0, BatchStarted(1, ((0, 0),), 16_000 * 60)))
    for _ in range(4):
        machine.now += 4.0
        machine.feed(ev.Tick())
        machine.feed(ev.ServerSent(0, BatchDone(1)))
        machine.feed(ev.ServerSent(0, BatchStarted(1, ((0, 0),), 16_000 * 60)))
    assert machine.dying == []


def test_a_task_ends_before_anything_is_started_in_place_of_its_worker(busy: Machine) -> None:
    """To start may fail, and most likely when memory is short."""
    task = busy.pool.workers.all[0].task
    assert task is not None
    task.attempts = 1
    actions = busy.pool.handle(ev.WorkerReaped(0, -signal.SIGKILL), busy.now)
    kinds = [type(action) for action in actions]
    assert kinds.index(act.Complete) < kinds.index(act.Fork)


def test_a_zygote_that_we_kill_is_not_said_to_have_been_killed_and_does_not_count(busy: Machine) -> None:
    for _ in range(4):
        busy.feed(ev.OwnerExited(0, "owner", 7, 1))
        busy.feed(ev.OwnerExited(1, "owner", 8, 1))
        busy.kill_zygote()
        busy.load()
    assert busy.pool.failure is None
    assert [notice for notice in busy.notices if "zygote" in notice] == []
    assert sum("the models are loaded again" in notice for notice in busy.notices) == 4


def test_at_the_end_nothing_is_done_but_tasks_ended(busy: Machine) -> None:
    busy.pool.workers.kill(busy.pool.workers.all[0], "is killed in a turn that fails")
    assert [type(action) for action in busy.pool.end(None)] == [act.Complete] * 3


def test_a_server_that_cannot_load_is_logged_once() -> None:
    machine = start(Strategy.SERVER)
    actions = machine.pool.handle(ev.ServerSent(0, LoadFailed("no such model", "a traceback")), 0.0)
    actions += machine.pool.handle(ev.ServerExited(0, 7, 1), 0.0)
    assert [action.text for action in actions if isinstance(action, act.LogText)] == ["a traceback"]
