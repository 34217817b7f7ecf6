"""The pool's decisions under schedules that nobody would write down: events in, actions out, no process, no clock.

A simulated machine does what the actions say, and hypothesis decides what happens next: who answers, who is killed, who
says nothing, how much time passes. Whatever it decides, every task ends once, and nothing waits for ever.
"""

from __future__ import annotations

import pickle
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from prefork.engines.base import LoadError
from prefork.errors import OutOfMemory, Stopped, WorkerDied
from prefork.memory.admission import Holder, Level
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.pool import actions as act
from prefork.pool import events as ev
from prefork.pool.state import Pool
from prefork.pool.tasks import HangLimit, Task
from prefork.wire.exceptions import pickle_error
from prefork.wire.messages import (
    BatchDone,
    BatchStarted,
    ForkUnsafe,
    KillWorker,
    LoadFailed,
    Memory,
    ModelsLoaded,
    RunTask,
    TaskDone,
    TaskFailed,
    TaskOutOfMemory,
    TaskUsage,
    Usage,
    WorkerForked,
    WorkerReady,
)
from prefork.wire.specification import Inventory, Specification

FACTS = read_facts()
HANG = HangLimit(5.0, 0.0)


class Policy:
    """Memory without end, unless `level` says otherwise."""

    def __init__(self) -> None:
        self.level, self.why, self.kills = Level.EASY, "it is short", 0

    def recall(self, plan: Plan) -> Plan:
        return plan

    def begin(self, plan: Plan, weights: int) -> None: ...

    def note_kill(self) -> None:
        self.kills += 1

    def select(self, tasks: Iterator[Task], holders: list[Holder]) -> Task | None:
        return next(tasks, None) if self.level is Level.EASY else None

    def explain(self, task: Task) -> str:
        return "too large"

    def admit(self, task: Task, worker: str, rest: int) -> int:
        return rest

    def lose(self, task: Task, reason: str, out_of_memory: bool) -> None: ...

    def measure(self, task: Task, worker: str, predicted: int, usage: Usage) -> None: ...

    def look_again(self) -> None: ...

    def must_stop(self) -> bool:
        return False

    def must_end_one(self, used: list[int]) -> bool:
        return False

    def must_shrink(self) -> bool:
        return False

    def may_grow(self, plan: Plan) -> bool:
        return False

    def shrink(self, workers: int) -> None: ...

    def grow(self, workers: int) -> None: ...


@dataclass
class Machine:
    """Does what the pool wants, as processes would: each is a name in a set, each message waits until it is taken."""

    pool: Pool
    now: float = 0.0
    zygote: bool = False
    loading: bool = False
    living: set[int] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)  # started, and not ready
    tasks: dict[int, bytes] = field(default_factory=dict)
    servers: set[int] = field(default_factory=set)
    serving: set[int] = field(default_factory=set)
    dying: list[int] = field(default_factory=list)  # killed, and not reaped
    ended: Counter[str] = field(default_factory=Counter)
    results: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    announced: bool = False
    ever: int = 0

    def feed(self, what: ev.Event) -> None:
        for action in self.pool.handle(what, self.now):
            self.do(action)

    def do(self, action: act.Action) -> None:
        match action:
            case act.StartZygote():
                self.zygote = self.loading = True
            case act.EndZygote():
                self.zygote = self.loading = False
                self.living.clear()
            case act.Fork(order):
                assert self.zygote and not self.loading, "nothing to fork from"
                self._start(order.number)
            case act.Spawn(number):
                self._start(number)
            case act.SendZygote(KillWorker(number)) | act.KillSpawned(number):
                if number in self.living:
                    self.dying.append(number)
            case act.SendWorker(number, RunTask(task)):
                assert number in self.living and number not in self.silent, "nobody to do it"
                assert number not in self.tasks, "it has one already"
                self.tasks[number] = task
            case act.StartServer(place):
                self.servers.add(place)
                self.serving.discard(place)
            case act.Complete(task, result, error):
                self.ended[task.label] += 1
                self.results[task.label] = error or result
            case act.Notify(text):
                self.notices.append(text)
            case act.Announce():
                self.announced = True

    def _start(self, number: int) -> None:
        assert number not in self.living
        self.living.add(number)
        self.silent.add(number)
        self.ever += 1

    def kill(self, number: int, status: int = -signal.SIGKILL, out_of_memory: bool = False) -> None:
        self.living.discard(number)
        self.silent.discard(number)
        self.tasks.pop(number, None)
        self.dying = [other for other in self.dying if other != number]
        if number in self.pool.workers.all:
            self.feed(ev.WorkerClosed(number))
            self.dying = [other for other in self.dying if other != number]
            self.feed(ev.WorkerReaped(number, status, out_of_memory))

    def kill_zygote(self) -> None:
        self.zygote = self.loading = False
        self.living.clear()
        self.silent.clear()
        self.tasks.clear()
        self.dying.clear()
        self.feed(ev.ZygoteExited(-signal.SIGKILL))

    def load(self) -> None:
        if self.zygote and self.loading:
            self.loading = False
            self.feed(ev.ZygoteSent(ModelsLoaded(Inventory(0, 0.0, {}))))
        for place in self.servers - self.serving:
            self.serving.add(place)
            self.feed(ev.ServerSent(place, ModelsLoaded(Inventory(0, 0.0, {}))))

    def make_ready(self, number: int) -> None:
        self.silent.discard(number)
        if self.pool.workers.all[number].forked:
            self.feed(ev.ZygoteSent(WorkerForked(number, 1000 + number)))
        else:
            self.feed(ev.WorkerSent(number, ModelsLoaded(Inventory(0, 0.0, {}, manifest=b"there"))))
        self.feed(ev.WorkerSent(number, WorkerReady(1000 + number)))

    def finish(self, number: int, how: str = "done") -> None:
        del self.tasks[number]
        messages: dict[str, TaskDone | TaskFailed | TaskOutOfMemory] = {
            "done": TaskDone(b"result"),
            "fails": TaskFailed(pickle_error(ValueError("no"), "")),
            "out of memory": TaskOutOfMemory("no room"),
        }
        self.feed(ev.WorkerSent(number, messages[how]))
        self.feed(ev.WorkerSent(number, TaskUsage(Usage(Memory(2, 1), 2, 1), {})))

    def settle(self) -> None:
        """From here on everybody does what they are asked to, and time passes."""
        for _ in range(2000):
            if self.pool.is_finished(self.now, pending=False):
                return
            self.load()
            for number in list(self.dying):
                self.kill(number)
            for number in list(self.silent):
                worker = self.pool.workers.all[number]
                if worker.loading:
                    self.make_ready(number)
            for number in list(self.tasks):
                self.finish(number)
            self.now += 1.0
            self.feed(ev.Tick())
        raise AssertionError("it waits for ever")


def make_plan(strategy: Strategy, workers: int) -> Plan:
    return decide(FACTS, Request(engines=("script",), strategy=strategy, workers=workers, weights=1000, private=1000))


def make_task(label: str, order: int = 0) -> Task:
    return Task("call", (label,), lambda *_: None, (order,), label, step=1.0)


def start(strategy: Strategy = Strategy.FORK, workers: int = 2, policy: Policy | None = None) -> Machine:
    pool = Pool(Specification(), make_plan(strategy, workers), policy or Policy(), HANG, 1024)
    machine = Machine(pool)
    machine.feed(ev.Started())
    return machine


STEPS = ["tick", "wait", "wait long", "load", "ready", "finish", "fails", "out of memory", "kill", "kill idle", "close"]
HARSH = [*STEPS, "kill zygote", "kill server", "drain", "abort"]


@settings(max_examples=400, deadline=None)
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
    for number, step in enumerate(steps):
        if machine.pool.is_finished(machine.now, pending=False):
            break
        if step == "submit":
            submitted.append(f"task {number}")
            machine.feed(ev.TasksSubmitted([make_task(submitted[-1], random.randrange(3))]))
        else:
            take(machine, step, random)
        machine.now += random.choice([0.0, 0.01, 0.3])
    machine.feed(ev.CloseRequested())
    machine.settle()
    for action in machine.pool.end(machine.pool.failure):
        machine.do(action)
    event("failed" if machine.pool.failure else "closed")
    assert machine.ended == Counter(submitted)
    for outcome in machine.results.values():
        assert isinstance(outcome, bytes | ValueError | WorkerDied | OutOfMemory | Stopped | LoadError | KeyError)


def take(machine: Machine, step: str, random: Any) -> None:  # noqa: PLR0912  a line for each step
    """One thing that can happen to a machine, if it can happen now."""
    pool = machine.pool
    if step in ("tick", "wait", "wait long"):
        machine.now += {"tick": 0.0, "wait": 2.0, "wait long": 61.0}[step]
        machine.feed(ev.Tick())
        for number in list(machine.dying):
            machine.kill(number)
    elif step == "load":
        machine.load()
    elif step == "ready":
        able = [n for n in machine.silent if pool.workers.all[n].loading]
        if able:
            machine.make_ready(random.choice(able))
    elif step in ("finish", "fails", "out of memory"):
        if machine.tasks:
            machine.finish(random.choice(list(machine.tasks)), "done" if step == "finish" else step)
    elif step == "kill":
        if machine.tasks:
            machine.kill(random.choice(list(machine.tasks)), out_of_memory=random.random() < 0.3)
    elif step == "kill idle":
        if machine.living:
            machine.kill(random.choice(sorted(machine.living)), status=1)
    elif step == "close":
        if machine.living:
            number = random.choice(sorted(machine.living))
            machine.feed(ev.WorkerClosed(number))
    elif step == "kill zygote":
        if machine.zygote:
            machine.kill_zygote()
    elif step == "kill server":
        if machine.serving:
            place = random.choice(sorted(machine.serving))
            machine.feed(ev.ServerSent(place, BatchStarted(1, ((0, 1),), 16_000)))
            machine.feed(ev.ServerExited(place, 7, -signal.SIGKILL))
    elif step == "drain":
        machine.feed(ev.DrainRequested(machine.now + 4.0))
    elif step == "abort":
        machine.feed(ev.Aborted(KeyError("gone")))


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


def test_a_worker_that_says_nothing_is_killed_after_its_limit_and_not_before(busy: Machine) -> None:
    busy.now += 5.9
    busy.feed(ev.Tick())
    assert busy.dying == [0, 1]
    assert all(worker.kill_reason for worker in busy.pool.workers.all.values())


def test_a_worker_that_makes_progress_is_not_killed(busy: Machine) -> None:
    busy.now += 4.9
    busy.feed(ev.Tick())
    assert busy.dying == []


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
