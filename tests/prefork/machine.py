"""A simulated machine: does what the actions of a pool say, without a process or a clock; see test_pool_state."""

from __future__ import annotations

import os
import signal
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefork.memory.admission import Holder, Level
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.pool import actions as act
from prefork.pool import events as ev
from prefork.pool.call_options import USUAL, CallOptions
from prefork.pool.state import Pool
from prefork.pool.tasks import HangLimit, Task
from prefork.wire.exceptions import pickle_error
from prefork.wire.messages import (
    BatchStarted,
    InterruptWorker,
    KillWorker,
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
from prefork.wire.pickling import Pickled
from prefork.wire.specification import Inventory, Specification

SCHEDULES = "PREFORK_TESTS_SCHEDULES"  # how many each property test tries
EXAMPLES = int(os.environ.get(SCHEDULES, "400"))
FACTS = read_facts()
HANG = HangLimit(5.0, 0.0)


class Policy:
    """Memory without end, unless `level` says otherwise."""

    def __init__(self) -> None:
        self.level, self.why, self.kills = Level.EASY, "it is short", 0

    def recall(self, plan: Plan) -> Plan:
        return plan

    def begin(self, plan: Plan, weights: int) -> None: ...

    def note_loaded(self, size: int, weights: int, forks: bool, shared: bool) -> None: ...

    def note_memory(self, worker: str, pid: int, memory: Memory) -> None: ...

    def learn_batch(self, engine: str, size: float, taken: int) -> None: ...

    def recall_batches(self) -> dict[str, list[tuple[float, int]]]:
        return {}

    def note_kill(self) -> None:
        self.kills += 1

    def select(self, tasks: Iterator[Task], holders: list[Holder]) -> Task | None:
        return next(tasks, None) if self.level is Level.EASY else None

    def explain_want(self, size: int) -> str:
        return ""

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
    given: dict[int, dict[int, Task]] = field(default_factory=dict)  # calls that a worker has not answered, by number
    begun: set[int] = field(default_factory=set)  # workers that have begun the first of them
    numbers: Counter[int] = field(default_factory=Counter)  # of the next call, by worker
    events: deque[ev.Event] = field(default_factory=deque)
    handling: bool = False
    stuck: set[int] = field(default_factory=set)  # workers that do nothing any more, until they are killed
    stuck_servers: set[int] = field(default_factory=set)
    zygote_is_stuck: bool = False
    dying_servers: list[int] = field(default_factory=list)
    zygote_is_dying: bool = False
    interrupted: set[int] = field(default_factory=set)  # workers whose call is to end
    beside: int | None = None  # the generation of weights that another zygote loads
    old: set[int] = field(default_factory=set)  # of zygotes whose last workers are at their last calls

    def feed(self, what: ev.Event) -> None:
        """What comes of handling an event is handled after it, as the supervisor has it."""
        self.events.append(what)
        if self.handling:
            return
        self.handling = True
        try:
            while self.events:
                for action in self.pool.handle(self.events.popleft(), self.now):
                    self.do(action)
        finally:
            self.handling = False

    def do(self, action: act.Action) -> None:  # noqa: PLR0912, PLR0915  a case for each action
        match action:
            case act.StartZygote(generation=generation) if generation != self.pool.workers.generation:
                assert self.beside is None
                self.beside = generation
            case act.KillZygote(generation) | act.EndZygote(generation) if generation != self.pool.workers.generation:
                if generation == self.beside:
                    self.beside = None
                else:
                    self.old.remove(generation)
                    if isinstance(action, act.EndZygote):
                        assert not self._list_workers(generation), "it has a worker"
                    self._end_zygote(generation)
            case act.StartZygote():
                self.zygote = self.loading = True
                self.zygote_is_stuck = self.zygote_is_dying = False
            case act.KillZygote():
                self.zygote_is_dying = self.zygote
            case act.KillServer(place):
                self.dying_servers.append(place)
            case act.EndZygote():
                self.zygote = self.loading = False
                self._forget(self._list_workers(self.pool.workers.generation))
            case act.Fork(order):
                assert self.zygote and not self.loading, "nothing to fork from"
                if not self.zygote_is_stuck:
                    self._start(order.number)
            case act.Spawn(number):
                self._start(number)
            case act.SendZygote(KillWorker(number)) | act.KillSpawned(number):
                if number in self.living and not self.zygote_is_stuck:
                    self.dying.append(number)
            case act.SendZygote(InterruptWorker(number)) | act.InterruptSpawned(number):
                assert len(self.given[number]) <= 1, "another call may be the one that it interrupts"
                if number in self.living and self.given[number]:
                    self.interrupted.add(number)
            case act.SendWorker(number, RunTask(task)):
                assert number in self.living and number not in self.silent, "nobody to do it"
                assert number not in self.tasks, "it has one already"
                self.tasks[number] = task
            case act.SendCalls(number, first, calls):
                assert number in self.living and number not in self.silent, "nobody to do it"
                assert number not in self.tasks, "it has a task already"
                waiting = self.given.setdefault(number, {})
                assert first == self.numbers[number], "its number is another's"
                waiting.update(enumerate(calls, first))
                self.numbers[number] += len(calls)
            case act.TakeCallsBack(number):
                self.feed(ev.CallsTakenBack(number, self._take_back(number)))
            case act.StartServer(place):
                self.servers.add(place)
                self.serving.discard(place)
                self.stuck_servers.discard(place)
            case act.EndServers():
                self.servers.clear()
                self.serving.clear()
            case act.Complete(task, result, error):
                assert not isinstance(result, Pickled) or result.data == task.label.encode(), "another's result"
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

    def _take_back(self, number: int) -> list[int]:
        """The calls that a worker has not begun."""
        waiting = self.given.get(number, {})
        unbegun = list(waiting)[number in self.begun :]
        for call in unbegun:
            del waiting[call]
        return unbegun

    def begin_call(self, number: int) -> None:
        if self.given.get(number) and number not in self.begun:
            self.begun.add(number)
            call: Call = next(iter(self.given[number].values())).arguments[0]
            call.begun += 1
            assert call.options.retry or call.begun == 1, "it must not run twice"

    def finish_call(self, number: int, how: str = "done") -> None:
        self.begin_call(number)
        self.begun.discard(number)
        self.interrupted.discard(number)
        place = next(iter(self.given[number]))
        task = self.given[number].pop(place)
        assert not task.cancelled
        result = {
            "done": ev.CallEnded(number, place, Pickled(task.label.encode())),
            "fails": ev.CallEnded(number, place, error=ValueError("no")),
            "out of memory": ev.CallEnded(number, place, reason="no room"),
            "interrupted": ev.CallEnded(number, place, error=KeyboardInterrupt()),
        }
        self.feed(result[how])

    def get_ready(self) -> None:
        """All that is to load has loaded."""
        self.load()
        while able := self.list_starting():
            self.make_ready(able[0])
            self.feed(ev.Tick())

    def list_starting(self) -> list[int]:
        """Workers that may become ready."""
        known = {number: self.pool.workers.all[number] for number in self.silent - self.stuck}
        return [number for number, worker in known.items() if worker.forked or worker.loading is not None]

    def list_calling(self) -> list[int]:
        return [number for number, calls in self.given.items() if calls]

    def kill(self, number: int, status: int = -signal.SIGKILL, out_of_memory: bool = False) -> None:
        self.living.discard(number)
        self.silent.discard(number)
        self.stuck.discard(number)
        self.tasks.pop(number, None)
        unbegun = self._take_back(number)
        self.given.pop(number, None)
        self.begun.discard(number)
        self.interrupted.discard(number)
        self.dying = [other for other in self.dying if other != number]
        if number in self.pool.workers.all:
            self.feed(ev.WorkerClosed(number))
            if self.zygote_is_stuck and self.pool.workers.all[number].forked:
                return  # nobody says that it has exited
            self.dying = [other for other in self.dying if other != number]
            self.feed(ev.WorkerReaped(number, status, out_of_memory, unbegun=unbegun))

    def end_dying(self) -> None:
        """Those that were killed are gone."""
        for number in list(self.dying):
            self.kill(number)
        if self.zygote_is_dying:
            self.kill_zygote()
        for place in list(self.dying_servers):
            self.kill_server(place)

    def kill_server(self, place: int) -> None:
        self.dying_servers = [other for other in self.dying_servers if other != place]
        self.feed(ev.ServerExited(place, 7, -signal.SIGKILL))

    def kill_zygote(self) -> None:
        self.zygote = self.loading = self.zygote_is_dying = self.zygote_is_stuck = False
        self._end_zygote(self.pool.workers.generation)

    def _list_workers(self, generation: int) -> list[int]:
        """Forked from its zygote."""
        workers = self.pool.workers.all
        return [n for n in self.living if n in workers and workers[n].forked and workers[n].generation == generation]

    def _end_zygote(self, generation: int) -> None:
        numbers = self._list_workers(generation)
        unbegun = {number: self._take_back(number) for number in numbers}
        self._forget(numbers)
        self.feed(ev.ZygoteExited(-signal.SIGKILL, unbegun=unbegun, generation=generation))

    def _forget(self, numbers: list[int]) -> None:
        for number in numbers:
            for known in (self.stuck, self.living, self.silent, self.begun, self.interrupted):
                known.discard(number)
            self.tasks.pop(number, None)
            self.given.pop(number, None)
        self.dying = [number for number in self.dying if number not in numbers]

    def kill_beside(self) -> None:
        if self.beside is not None:
            generation, self.beside = self.beside, None
            self.feed(ev.ZygoteExited(-signal.SIGKILL, generation=generation))

    def load_beside(self) -> None:
        """The other zygote has loaded the new weights, and takes the place of the first."""
        if self.beside is not None:
            generation, self.beside = self.beside, None
            self.old.add(self.pool.workers.generation)
            self.zygote, self.loading = True, False
            self.zygote_is_stuck = self.zygote_is_dying = False
            self.feed(ev.ZygoteSent(ModelsLoaded(Inventory(0, 0.0, {})), generation))

    def load(self) -> None:
        if self.zygote and self.loading and not self.zygote_is_stuck:
            self.loading = False
            self.feed(ev.ZygoteSent(ModelsLoaded(Inventory(0, 0.0, {})), self.pool.workers.generation))
        for place in self.servers - self.serving - self.stuck_servers:
            self.serving.add(place)
            self.feed(ev.ServerSent(place, ModelsLoaded(Inventory(0, 0.0, {}))))

    def make_ready(self, number: int) -> None:
        self.silent.discard(number)
        if self.pool.workers.all[number].forked:
            self.feed(ev.ZygoteSent(WorkerForked(number, 1000 + number), self.pool.workers.all[number].generation))
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

    def close(self) -> None:
        """Nothing more is asked for: all ends, and what is left with it."""
        self.feed(ev.CloseRequested())
        self.settle()
        for action in self.pool.end(self.pool.failure):
            self.do(action)

    def settle(self) -> None:
        """From here on everybody does what they are asked to, and time passes."""
        for _ in range(2000):
            if self.pool.is_finished(self.now, pending=False):
                return
            self.load()
            self.load_beside()
            self.end_dying()
            for number in self.list_starting():
                self.make_ready(number)
            for number in [number for number in self.tasks if number not in self.stuck]:
                self.finish(number)
            for number in set(self.list_calling()) - self.stuck:
                self.finish_call(number, "interrupted" if number in self.interrupted else "done")
            for number in self.stuck.intersection(self.list_calling()):
                self.kill(number)  # a call may take for ever: who is stopped is found by the one who watches processes
            self.now += 1.0
            self.feed(ev.Tick())
        raise AssertionError("it waits for ever")


def make_plan(strategy: Strategy, workers: int) -> Plan:
    wanted = None if strategy is Strategy.FORK else strategy  # it is what the matrix chooses, and may be given up
    return decide(FACTS, Request(engines=("script",), strategy=wanted, workers=workers, weights=1000, private=1000))


def make_task(label: str, order: int = 0) -> Task:
    return Task("work", (label,), lambda *_: None, (order,), label, step=1.0)


@dataclass
class Call:
    """A call that waits. state: as its future has it; begun and not ended, it is at most one worker's."""

    label: str
    rank: int
    options: CallOptions = USUAL
    state: str = "waits"
    begun: int = 0

    @property
    def priority(self) -> int:
        return self.options.priority

    @property
    def future(self) -> object:
        """What it is known by to who cancels it."""
        return self.label

    def make_task(self) -> Task:
        return Task(
            "call",
            (self,),
            self._end,
            (self.rank,),
            self.label,
            begin=self._begin,
            withdraw=self._withdraw,
            options=self.options,
        )

    def _begin(self) -> bool:
        if self.state == "cancelled":
            return False
        self.state = "begun"
        return True

    def _withdraw(self) -> None:
        assert self.state in ("begun", "cancelled")
        self.state = "waits" if self.state == "begun" else self.state

    def _end(self, result: Any, error: BaseException | None) -> None: ...


def start(strategy: Strategy = Strategy.FORK, workers: int = 2, policy: Policy | None = None) -> Machine:
    pool = Pool(Specification(), make_plan(strategy, workers), policy or Policy(), HANG, 1024)
    machine = Machine(pool)
    machine.feed(ev.Started())
    return machine


STEPS = ["tick", "wait", "wait long", "load", "ready", "finish", "fails", "out of memory", "kill", "kill idle", "close"]
CALLS = ["call", "calls", "begin call", "finish call", "call fails", "call out of memory", "kill call", "tick"]
ENDS = ["cancel call", "interrupted", "reload", "load beside", "kill beside"]
STOPS = ["stop zygote", "stop worker", "stop server"]
HARSH = [*STEPS, *STOPS, "crash", "kill zygote", "kill server", "drain", "abort"]


def take(machine: Machine, step: str, random: Any) -> None:  # noqa: PLR0912, PLR0915  a line for each step
    """One thing that can happen to a machine, if it can happen now."""
    if step in ("tick", "wait", "wait long"):
        machine.now += {"tick": 0.0, "wait": 2.0, "wait long": 61.0}[step]
        machine.feed(ev.Tick())
        machine.end_dying()
    elif step == "load":
        machine.load()
    elif step == "ready":
        if able := machine.list_starting():
            machine.make_ready(random.choice(able))
    elif step in ("finish", "fails", "out of memory"):
        if able := [number for number in machine.tasks if number not in machine.stuck]:
            machine.finish(random.choice(able), "done" if step == "finish" else step)
    elif step == "begin call":
        if calling := machine.list_calling():
            machine.begin_call(random.choice(calling))
    elif step in ("finish call", "call fails", "call out of memory"):
        if calling := [number for number in machine.list_calling() if number not in machine.stuck]:
            how = {"finish call": "done", "call fails": "fails", "call out of memory": "out of memory"}[step]
            machine.finish_call(random.choice(calling), how)
    elif step == "interrupted":
        if able := sorted(machine.interrupted - machine.stuck):
            machine.finish_call(random.choice(able), random.choice(["interrupted", "done", "fails"]))
    elif step == "load beside":
        machine.load_beside()
    elif step == "kill beside":
        machine.kill_beside()
    elif step == "kill call":
        if calling := machine.list_calling():
            machine.kill(random.choice(calling), out_of_memory=random.random() < 0.3)
    elif step == "cancel":
        machine.feed(ev.WaitingCancelled())
    elif step == "kill":
        if machine.tasks:
            machine.kill(random.choice(list(machine.tasks)), out_of_memory=random.random() < 0.3)
    elif step == "crash":
        if machine.tasks:
            machine.kill(random.choice(list(machine.tasks)), status=-signal.SIGSEGV)
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
            machine.kill_server(place)
    elif step == "stop zygote":
        machine.zygote_is_stuck = machine.zygote
    elif step == "stop worker":
        if machine.living:
            machine.stuck.add(random.choice(sorted(machine.living)))
    elif step == "stop server":
        machine.stuck_servers |= machine.servers - machine.serving
    elif step == "drain":
        machine.feed(ev.DrainRequested(machine.now + 4.0))
    elif step == "abort":
        machine.feed(ev.Aborted(KeyError("gone")))
