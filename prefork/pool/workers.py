"""The workers of a pool: which there are, and who is started, killed and replaced. Pure: see `prefork.pool.state`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from prefork.errors import InitializerError
from prefork.platform_matrix.matrix import Plan
from prefork.platform_matrix.systems import SYSTEM
from prefork.pool.actions import (
    Fork,
    InterruptSpawned,
    KillSpawned,
    Outbox,
    SendWorker,
    SendZygote,
    Spawn,
    TakeCallsBack,
)
from prefork.pool.events import WorkerReaped, ZygoteExited
from prefork.pool.nearness import Near
from prefork.pool.tasks import Task
from prefork.wire.endings import CUT_OFF, UNENDED, describe_end, find_fatal_line
from prefork.wire.exceptions import describe_error
from prefork.wire.messages import ForkWorker, InterruptWorker, KillWorker, Memory, WorkerBroken
from prefork.wire.specification import Specification

MOST_FAILED_STARTS = 3  # of zygotes, servers or workers, in a row without anything done
START_SECONDS = 30.0  # from the request to fork to a worker's first message; it takes 20 ms


@dataclass(slots=True, eq=False)
class Worker:
    slot: int  # 0 .. workers-1: what the user sees
    number: int  # never used again in a run
    started: float
    forked: bool  # by the zygote, with the models loaded; else it loads them itself, when it is its turn
    loading: float | None = None  # when it was told what to load
    pid: int = 0
    initializing: float | None = None  # since when it calls the user's initializer
    ready: float | None = None  # seconds from its start to the message that says so
    task: Task | None = None  # of several calls, the first
    calls: dict[int, Task] = field(default_factory=dict)  # that it was given and has not answered, by number, in order
    given: int = 0  # calls, ever
    begun: float = 0.0  # when it can have begun the first of its calls
    is_ending: bool = False  # that one is about to be interrupted: it is given no other
    interrupted: float | None = None  # when it was
    tasks: int = 0  # done
    generation: int = 0  # of its weights
    is_outdated: bool = False  # they are not those in use: it does nothing more
    last_message: float = 0.0
    closed: bool = False  # its channel is at its end: it is dead, or will be
    kill_reason: str = ""
    killed: float | None = None  # when, if it was
    out_of_memory: bool = False  # we killed it, because memory was short
    broken: WorkerBroken | None = None  # what it has said of its device before it ended
    retired: bool = False  # we ended it, and it had nothing to do
    measuring: bool = False  # its task is done, and it has not reported yet what that took
    measured: tuple[Task, int] | None = None  # its last task, and what that was predicted to take
    predicted: int = 0  # bytes of its own at the peak of its task
    memory: Memory | None = None
    idle_bytes: int = 0  # bytes of its own after its last task
    first_idle_bytes: int = 0  # and after its first
    near: Near = field(default_factory=Near)

    @property
    def name(self) -> str:
        return f"worker {self.slot}"

    @property
    def is_open(self) -> bool:
        """Whether it can be given something."""
        return self.ready is not None and not (self.closed or self.kill_reason or self.is_ending or self.is_outdated)

    def list_tasks(self) -> list[Task]:
        """All that it has been given and has not done."""
        return list(self.calls.values()) or ([self.task] if self.task else [])

    def end_call(self, number: int) -> Task:
        """It has answered this one, or will never begin it."""
        call = self.calls.pop(number)
        self.is_ending = self.interrupted is not None
        self.task = next(iter(self.calls.values()), None)
        return call


@dataclass(frozen=True, slots=True)
class Death:
    """Of a worker that had a task. crashed: it was forked, and died of a signal that it raised itself."""

    task: Task
    reason: str
    out_of_memory: bool
    crashed: bool = False
    place: int = 0  # of its device
    broken: WorkerBroken | None = None
    unended: bool = False  # it was killed, and does not end


def is_crash(event: WorkerReaped) -> bool:
    """Whether it died of a signal that nobody sent it, and has not said itself what of, as it does of a write to the
    weights."""
    is_signal = event.status < 0 and event.status not in (CUT_OFF, UNENDED)
    return is_signal and not (SYSTEM.describe_status(event.status).ended or find_fatal_line(event.stderr_tail))


class Fail(Protocol):
    """Called with the reason if there will never be workers; error: if it is another than a LoadError that says so."""

    def __call__(self, reason: str, error: BaseException | None = None) -> None: ...


class Clients(Protocol):
    """The servers that have the models, as far as workers are concerned."""

    def connect(self, worker: Worker) -> None: ...

    def disconnect(self, worker: Worker) -> None: ...


class Workers:
    """As many as there are to be, each in a slot of its own."""

    def __init__(self, outbox: Outbox, plan: Plan, specify: Callable[[], Specification], fail: Fail) -> None:
        """specify: what a spawned worker is to load."""
        self.max_tasks: int | None = None  # that a worker does before another takes its place
        self.were_ready = False  # some worker has been
        self.plan = plan
        self.all: dict[int, Worker] = {}
        self.size = 0
        self.generation = 0  # of the weights of those that are started: how often they were reloaded
        self.can_start = False  # there is something to fork from, or to map
        self.is_closed = False  # nobody is replaced any more
        self.is_paused = False  # nor now
        self.deaths = 0
        self.servers: Clients | None = None
        self._outbox = outbox
        self._specify = specify
        self._fail = fail
        self._numbers = itertools.count()
        self._failed_starts = 0  # workers that have died in a row before they could do anything

    # -- how many ----------------------------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        """To so many workers: missing ones are started, and as many as are too many go as soon as they are idle."""
        self.size = size
        self.refill()
        for worker in self.list_idle()[: max(0, sum(not w.kill_reason for w in self.all.values()) - size)]:
            self.retire(worker)

    def refill(self) -> None:
        if self.is_closed or self.is_paused:
            return
        if not self.can_start:
            if not (self.plan.strategy.forks or self.all):  # the first one loads for all, and has died of it
                self.start(0)
            return
        missing = max(0, self.size - len(self.all))
        taken = {worker.slot for worker in self.all.values()}
        free = [slot for slot in range(self.plan.workers) if slot not in taken]
        for slot in free[:missing]:
            self.start(slot)

    def start(self, slot: int) -> None:
        """By fork, or a fresh process, as the plan says."""
        plan, place = self.plan, self.find_place(slot)
        forked = plan.strategy.forks
        worker = Worker(slot, next(self._numbers), self._outbox.now, forked, generation=self.generation)
        self.all[worker.number] = worker
        if not forked:
            self._outbox.do(Spawn(worker.number, plan, plan.devices[place] if plan.devices else None))
            return
        self._outbox.do(Fork(ForkWorker(worker.number, plan.threads, place), self.generation))
        if self.servers is not None:
            self.servers.connect(worker)

    def find_place(self, slot: int) -> int:
        """Of the device, among the plan's, that a worker computes on, or whose server it asks."""
        return slot % max(1, len(self.plan.devices))

    # -- which -------------------------------------------------------------------------------------------------

    def list_idle(self) -> list[Worker]:
        """Those of the device that has least to do first."""
        idle = [worker for worker in self.all.values() if worker.task is None and worker.is_open]
        if len(idle) < 2 or len(self.plan.devices) < 2:
            return idle
        load = Counter(self.find_place(worker.slot) for worker in self.list_busy())
        return sorted(idle, key=lambda worker: load[self.find_place(worker.slot)])

    def list_busy(self) -> list[Worker]:
        return [worker for worker in self.all.values() if worker.task]

    def list_open(self) -> list[Worker]:
        """Those that can still be told something."""
        return [worker for worker in self.all.values() if not worker.closed]

    @property
    def is_measuring(self) -> bool:
        return any(worker.measuring for worker in self.all.values())

    # -- their ends --------------------------------------------------------------------------------------------

    def retire(self, worker: Worker) -> None:
        """Ends a worker that has nothing to do."""
        worker.retired = True
        self.kill(worker, "was not needed any more")

    def kill(self, worker: Worker, reason: str) -> None:
        """reason: empty if it is dead already, most likely: then its exit status says why."""
        worker.kill_reason = worker.kill_reason or reason
        worker.killed = self._outbox.now if worker.killed is None else worker.killed
        if worker.forked:
            self._outbox.do(SendZygote(KillWorker(worker.number), worker.generation))
        else:
            self._outbox.do(KillSpawned(worker.number))

    def interrupt(self, worker: Worker) -> None:
        """Has it end the call that it runs; where no process can be interrupted, with itself."""
        worker.interrupted = self._outbox.now
        if SYSTEM.interruption is None:
            self.kill(worker, "was killed, because its call was to end")
        else:
            order = InterruptWorker(worker.number)
            self._outbox.do(SendZygote(order, worker.generation) if worker.forked else InterruptSpawned(worker.number))

    def retire_outdated(self) -> None:
        """Those whose weights are not in use any more, as soon as they have nothing to do."""
        for worker in self.all.values():
            if worker.generation != self.generation and not (worker.closed or worker.kill_reason):
                worker.is_outdated = True
                if worker.task is None:
                    self.retire(worker)
                elif len(worker.calls) > 1:
                    self._outbox.do(TakeCallsBack(worker.number))

    def readopt(self, generation: int) -> None:
        """Weights that were not in use any more are again, and so are the workers that still have them."""
        self.generation, self.is_paused = generation, False
        for worker in self.all.values():
            worker.is_outdated = False
        self.refill()

    def close(self, worker: Worker) -> None:
        """Its channel is at its end."""
        worker.closed = True
        self.kill(worker, "")

    def reap(self, event: WorkerReaped) -> Death | None:
        """It has exited; the task that it had, if it had one and was needed."""
        worker = self.all.pop(event.number)
        if self.servers is not None:
            self.servers.disconnect(worker)
        return None if worker.retired else self._explain(worker, event)

    def _explain(self, worker: Worker, event: WorkerReaped) -> Death | None:
        self.deaths += worker.interrupted is None
        out_of_memory = worker.out_of_memory or event.out_of_memory
        ended = describe_end(event.status, out_of_memory, event.stderr_tail)
        reason = f"{worker.name} (pid {worker.pid}): {worker.kill_reason or ended}"
        if worker.ready is None:
            self._count_failed_start(reason, worker.initializing is not None)
        elif worker.task:
            crashed = worker.forked and not (worker.kill_reason or out_of_memory) and is_crash(event)
            place, unended = self.find_place(worker.slot), event.status == UNENDED
            return Death(worker.task, reason, out_of_memory, crashed, place, worker.broken, unended)
        else:
            self._outbox.notify(f"{reason}; replaced")
        return None

    def note_failed_initializer(self, worker: Worker, error: BaseException) -> None:
        reason = f"the initializer of the workers raised {describe_error(error)}"
        if self.were_ready:  # this time
            self.kill(worker, reason)
            return
        failure = InitializerError(reason)
        failure.__cause__ = error
        self._fail(reason, failure)

    def _count_failed_start(self, reason: str, initializing: bool) -> None:
        """A worker died before it could do anything. If that goes on, there are as many as there are."""
        if initializing and not self.were_ready:
            self._fail(reason, InitializerError(reason))
            return
        self._failed_starts += 1
        if self._failed_starts < MOST_FAILED_STARTS:
            return
        self._failed_starts, self.size = 0, len(self.all)
        if self.size:
            text = f"{MOST_FAILED_STARTS} workers died before they were ready, the last: {reason}; {self.size} go on"
            self._outbox.notify(text)
        else:
            self._fail(f"{MOST_FAILED_STARTS} workers died before they were ready, the last: {reason}")

    def find_unended(self, limit: float) -> Worker | None:
        """A worker that was killed so many seconds ago and has not ended."""
        late = (w for w in self.all.values() if w.killed is not None and self._outbox.now - w.killed > limit)
        return next(late, None)

    def kill_all(self, reason: str) -> None:
        """None takes their places before `is_paused` is over."""
        self.is_paused = True
        for worker in self.all.values():
            worker.retired = worker.task is None
            self.kill(worker, reason)

    def drop_all(self, event: ZygoteExited) -> tuple[list[Task], list[Task]]:
        """All of a zygote's are gone with it; the tasks that they had, and the calls that they had not begun."""
        unbegun = event.unbegun
        workers = [worker for worker in self.all.values() if worker.forked and worker.generation == event.generation]
        for worker in workers:
            del self.all[worker.number]
        left = [worker.end_call(number) for worker in workers for number in unbegun.get(worker.number, ())]
        for worker in workers:
            if self.servers is not None:
                self.servers.disconnect(worker)
        return [task for worker in workers for task in worker.list_tasks()], left

    # -- time --------------------------------------------------------------------------------------------------

    def note_ready(self, worker: Worker) -> None:
        worker.ready = self._outbox.now - worker.started
        worker.initializing = None
        self._failed_starts = 0
        self.were_ready = True

    def tick(self, loading: float, initializing: float) -> None:
        """Has the next one load, and gives up those that never came to life. loading, initializing: seconds that it may
        take."""
        now = self._outbox.now
        starting = [worker for worker in self.all.values() if worker.ready is None]
        waiting = [w for w in starting if not (w.forked or w.closed or w.kill_reason) and w.loading is None]
        if waiting and all(worker.loading is None for worker in starting):
            # One at a time: memory for one copy more than is shared is all that is needed.
            waiting[0].loading = now
            self._outbox.do(SendWorker(waiting[0].number, self._specify()))
        for worker in starting:
            if worker.kill_reason:
                continue
            if worker.initializing is not None:
                if now - worker.initializing > initializing:
                    reason = f"its initializer had not returned after {initializing:.0f} s, and it was killed"
                    self.kill(worker, f"{reason}; a longer hang limit allows it more")
            elif worker.forked and now - worker.started > START_SECONDS:
                self.kill(worker, f"was not ready {START_SECONDS:.0f} s after the fork and was killed")
            elif worker.loading is not None and now - worker.loading > loading:
                self.kill(worker, f"had not loaded the models after {loading:.0f} s and was killed")

    def is_zygote_late(self, limit: float, generation: int) -> bool:
        """Whether the zygote owes an answer: the pid of a worker, which takes it next to no time, or the exit status of
        one, which takes the kernel as long as it takes. limit: seconds."""
        now = self._outbox.now
        forked = [worker for worker in self.all.values() if worker.forked and worker.generation == generation]
        return any(
            (not worker.pid and now - worker.started > START_SECONDS)
            or (worker.killed is not None and now - worker.killed > limit)
            for worker in forked
        )
