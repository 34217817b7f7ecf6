"""The supervisor: an event loop over workers and their zygote, in a thread of its own. Never imports torch."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefork.engines.base import LoadError
from prefork.errors import OutOfMemory, Stopped, WorkerDied
from prefork.memory.admission import Holder, Level
from prefork.memory.governor import Governor
from prefork.memory.probe import measure_memory
from prefork.platform_matrix.matrix import Plan
from prefork.pool.crew import Crew, Worker
from prefork.pool.tasks import ATTEMPTS, HangLimit, Task, TaskQueue, bundle, end_finished
from prefork.wire.exceptions import unpickle_error
from prefork.wire.loop import Loop
from prefork.wire.messages import Inventory, Memory, Specification, Usage

_TICK_SECONDS = 0.25
_ENDING_SECONDS = 0.02  # between two looks at a process that is about to be gone
_PATIENCE = 60.0  # seconds that a run waits for memory with nothing to do, before it tries all the same
_SETTLE_SECONDS = 1.0  # for the memory of what has just ended to be there again
_GUARD_SECONDS = 4.0  # that what runs may go on for when memory gets too short and --mem-guard stops the run
_MOST_GROWTH = 64_000_000  # bytes that a worker may keep beyond twice what it had after its first task


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What one worker is doing now."""

    slot: int
    pid: int
    label: str
    position: float  # seconds in the recording
    memory: Memory | None
    ready_seconds: float | None  # from the request for it to its first message


class Supervisor:
    """Runs tasks on workers, replaces those that die, and leaves no process behind.

    All public methods may be called from any thread; callbacks run in the supervisor's.
    """

    def __init__(
        self,
        specification: Specification,
        make_plan: Callable[[], Plan],
        hang_limit: HangLimit | None = None,
        notice: Callable[[str], None] | None = None,
        log: Callable[[str], None] | None = None,
        governor: Governor | None = None,
    ) -> None:
        """make_plan: called once, first thing in the supervisor's thread: to look at the machine takes a while.
        notice: gets what happens to workers; by default a warning of the logger `prefork`. log: gets what the
        processes print; by default it comes out as it is, on stdout and stderr."""
        self._make_plan = make_plan
        self._hang_limit = hang_limit or HangLimit()
        self._notice = notice or logging.getLogger("prefork").warning
        self.failure: BaseException | None = None  # why nothing can run
        self.loaded = threading.Event()  # set when the models are loaded, or never will be
        self.memory: dict[str, Memory] = {}  # the last measurement of all processes, made at the end
        self.governor = governor or Governor()
        self.governor.notice = self._notice
        self.interrupted = threading.Event()  # set when nothing new may begin
        self.exhausted = ""  # why the run was stopped: memory was too short
        self.steps: Counter[tuple[str, str]] = Counter()  # seconds of all workers together, by engine and step of a job
        self._loop = Loop()
        self._crew = Crew(
            specification,
            self._loop,
            self.governor,
            self,
            self._notice,
            log or _print,
            log is None,
            self._hang_limit,
        )
        self._queue = TaskQueue()
        self._closing = False
        self._elsewhere = 0  # pieces of work that are done outside of the workers
        self._lock = threading.Lock()  # of that number
        self._drain_until: float | None = None
        self._starving: float | None = None  # since when nothing has started because nothing fits
        self._growth = _MOST_GROWTH
        self._thread = threading.Thread(target=self._run, name="prefork-supervisor", daemon=True)

    # -- from any thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, *tasks: Task) -> None:
        if not self._loop.tell(lambda: self._queue.push(*tasks)):
            for task in tasks:
                task.done(None, self._reason())

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Those that are running run on; the others are never started and their `done` is never called."""
        for task in tasks:
            task.cancelled = True

    def cancel_waiting(self) -> None:
        """Gives every task that has not begun its end now."""
        self._loop.tell(self._drop_waiting)

    def expect(self) -> None:
        """Something is done elsewhere: nothing ends before it is delivered, unless the run is interrupted."""
        with self._lock:
            self._elsewhere += 1

    def deliver(self, action: Callable[[], None]) -> None:
        """Does the action, in the supervisor's thread as long as there is one: what was expected is there."""

        def take() -> None:
            with self._lock:
                self._elsewhere -= 1
            action()

        if not self._loop.tell(take):
            take()

    def give_up(self, error: LoadError) -> None:
        """Ends everything at once: nothing can be done without what was not to be had."""
        self._loop.tell(lambda: self.fail(error))

    def close(self) -> None:
        """Ends everything once all tasks are done."""
        self._loop.tell(lambda: setattr(self, "_closing", True))

    def drain(self, seconds: float) -> None:
        """Starts nothing new; ends everything when what runs is done, or after so many seconds."""
        self.interrupted.set()
        until = time.monotonic() + seconds
        self._loop.tell(lambda: self._drain(until))

    def join(self, timeout: float | None = None) -> None:
        """Waits until every process is gone."""
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> list[WorkerStatus]:
        """One entry for each worker, by slot."""
        return [
            WorkerStatus(w.slot, w.pid, t.label if t else "", t.position if t else 0.0, w.memory, w.ready)
            for w in sorted(self._crew.workers.copy().values(), key=lambda w: w.slot)
            for t in [w.task]
        ]

    def zygote_pid(self) -> int | None:
        zygote = self._crew.zygote
        return zygote.pid if zygote else None

    @property
    def plan(self) -> Plan | None:
        """Known from `loaded` on, unless that could not be."""
        return self._crew.plan

    @property
    def inventory(self) -> Inventory | None:
        return self._crew.inventory

    @property
    def deaths(self) -> int:
        """Workers and servers that died and were needed."""
        return self._crew.deaths

    def _reason(self) -> BaseException:
        return self.failure or Stopped("the run was stopped before this was done")

    # -- the loop --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._crew.start(self._make_plan())
            while not self._finished():
                self._loop.turn(_ENDING_SECONDS if self._crew.is_ending else _TICK_SECONDS)
                self._crew.attend()
                self._kill_hung()
                self._watch_memory()
                self._dispatch()
            self.memory = {n: m for n, pid in self._crew.list_pids().items() if (m := measure_memory(pid))}
        except BaseException as error:  # noqa: BLE001  nobody else is there to say that the loop has ended
            self.failure = self.failure or error
        finally:
            self._end()

    def _finished(self) -> bool:
        if self.failure is not None:
            return True
        running = bool(self._crew.list_busy())
        if self._drain_until is not None:
            return time.monotonic() > self._drain_until or not (running or self._queue.has_closing)
        settling = any(worker.settling for worker in self._crew.workers.values())
        left = running or settling or self._queue or self._elsewhere or self._loop.has_actions
        return self._closing and not left

    def _drain(self, until: float) -> None:
        self._drain_until = min(until, self._drain_until or until)
        self._crew.is_closed = True

    def _drop_waiting(self) -> None:
        for task in self._queue.clear():
            task.done(None, Stopped("it was cancelled before it began"))

    def _end(self) -> None:
        """Ends every process and gives every task that is left its reason."""
        self.interrupted.set()
        left = self._crew.end(at_once=self.failure is not None)
        self._loop.end()
        self.governor.end()
        for task in [*(task for task in left if not task.cancelled), *self._queue.clear()]:
            task.done(None, self._reason())
        self.loaded.set()
        self._loop.close()

    # -- what the crew says ----------------------------------------------------------------------------------

    def note_loaded(self) -> None:
        self.loaded.set()

    def fail(self, error: LoadError) -> None:
        self.failure = self.failure or error

    def requeue(self, task: Task) -> None:
        self._queue.push_again(task)

    def hear(self, worker: Worker, kind: str, content: list[Any]) -> None:
        if kind == "measured":
            self._take_measure(worker, *content)
        elif kind == "progress":
            self._take_piece(worker, *content)
        elif kind == "refused":
            self._refuse_piece(worker, *content)
        else:
            self._take_result(worker, kind, content[0])

    def lose(self, worker: Worker, reason: str, starved: bool) -> None:
        if worker.task is not None:
            self._bereave(worker.task, reason, starved)

    def _take_piece(self, worker: Worker, number: int, position: float, piece: bytes) -> None:
        if worker.task is not None:
            worker.task.position = position
            worker.task.take(number, piece)
            self._crew.note_success()

    def _refuse_piece(self, worker: Worker, number: int, error: bytes) -> None:
        """One of the items of a worker's task can never be done; it goes on with those of other jobs."""
        if worker.task is not None:
            problem = unpickle_error(error)
            self.governor.lose(worker.task, str(problem), starved=False)
            self._heed(problem)
            worker.task.refuse(number, problem)

    def _take_result(self, worker: Worker, kind: str, result: bytes) -> None:
        task, worker.task = worker.task, None
        worker.tasks += 1
        self._crew.note_success()
        if task is None:
            return
        worker.settling = True
        worker.measured = (task, worker.predicted) if kind == "done" else None
        if kind == "starved":
            self._bereave(task, f"{worker.name} (pid {worker.pid}): {result.decode()}", starved=True)
        elif task.cancelled:
            return
        elif kind == "done":
            task.done(result, None)
        else:
            error = unpickle_error(result)
            self.governor.lose(task, str(error), starved=False)
            if task.name != "call":
                self._heed(error)
            if task.parts:
                self._separate(task)
            else:
                task.done(None, error)

    def _heed(self, error: BaseException) -> None:
        """What no worker can do without, no other job could either."""
        if isinstance(error, LoadError):
            self.fail(error)

    def _take_measure(self, worker: Worker, usage: Usage | None, steps: dict[tuple[str, str], float]) -> None:
        """What its last task took, and what it has kept of it."""
        self.steps.update(steps)
        worker.settling = False
        if usage is None:
            return
        if worker.measured is not None:
            task, predicted = worker.measured
            self.governor.measure(task, worker.name, predicted, usage)
            worker.measured = None
        self.governor.look_again()
        if worker.task:  # it was given on the strength of what the worker had before
            worker.predicted += usage.memory.uss - worker.rest
        worker.memory, worker.rest = usage.memory, usage.memory.uss
        worker.first_rest = worker.first_rest or worker.rest

    def _bereave(self, task: Task, reason: str, starved: bool) -> None:
        """A task has lost its worker. One that did not fit into memory has it all to itself the next time."""
        self.governor.lose(task, reason, starved)
        if task.cancelled:
            return
        if task.parts:
            self._notice(f"{task.label}: {reason}; trying each by itself")
            self._separate(task)
            return
        task.attempts += not starved
        if starved and not task.alone:
            task.alone = True
            self._notice(f"{task.label}: {reason}; trying once more, alone")
            self._queue.push_again(task)
        elif starved:
            task.done(None, OutOfMemory(f"{reason}, with nothing else running; {self.governor.explain(task)}"))
        elif task.attempts < ATTEMPTS:
            self._notice(f"{task.label}: {reason}; trying once more on a fresh worker")
            self._queue.push_again(task)
        else:
            task.done(None, WorkerDied(f"{reason}, and so did another worker before it"))

    def _separate(self, task: Task) -> None:
        """Several were done in one go, and one of them has ended it: those that were not done are done one by one."""
        for part in end_finished(task.parts):
            part.single = True
            self._queue.push_again(part)

    # -- the tasks -------------------------------------------------------------------------------------------

    def _kill_hung(self) -> None:
        for worker in self._crew.list_busy():
            task = worker.task
            if task is None or task.step is None or worker.sentence:
                continue
            limit = self._hang_limit.seconds(task.step)
            if self._crew.is_excused(worker):
                worker.seen = time.monotonic()
            if time.monotonic() - worker.seen > limit:
                self._crew.kill(worker, f"made no progress for {limit:.0f} s and was killed")

    def _dispatch(self) -> None:
        draining = self._drain_until is not None
        if not draining:
            self._replace_grown()
        idle = self._crew.list_idle()
        while idle and self._start_next(idle):
            pass
        if not idle or draining:
            return
        if self._queue.wants_fresh and not any(w.tasks == 0 or w.dismissed for w in self._crew.workers.values()):
            self._crew.dismiss(idle[0], "made room for a fresh one")
        elif self._queue and not self._crew.list_busy():
            self._start_unfit(next((worker for worker in idle if worker.tasks == 0), idle[0]))

    def _replace_grown(self) -> None:
        for worker in self._crew.list_idle():
            if worker.rest > 2 * worker.first_rest + self._growth:
                self._growth *= 2  # what each of them comes to keep is not worth replacing them for ever
                self._notice(f"{worker.name}: had {worker.rest / 1e6:.0f} MB without a job; replaced")
                self._crew.dismiss(worker, "grew without a job")

    def _start_next(self, idle: list[Worker]) -> bool:
        """Gives one of the idle workers the next task that may start; False if none may."""
        fresh = next((worker for worker in idle if worker.tasks == 0), None)
        worker = fresh or idle[0]
        closing = self._drain_until is not None
        task = self._queue.pop(fresh is not None, closing, self._select)
        if task is None and not self._crew.list_busy():  # then nobody makes more of what others wait for
            task = self._queue.pop(fresh is not None, closing, partial(self._select, waiting=False))
        if task is None:
            return False
        if task.begin():
            idle.remove(worker)
            self._starving = None
            self._give(worker, self._join_others(task))
        return True

    def _join_others(self, task: Task) -> Task:
        """The task, with others of its engine that it takes in one go. Towards the end of a run every worker gets a
        share of what is left."""
        most = self._batches.get(task.engine, 0.0)
        if not most or not task.can_join:
            return task
        assert self.plan is not None
        if not self._queue.splits[task.engine]:
            most = min(most, (task.seconds + self._queue.seconds[task.engine]) / self.plan.workers)
        parts = [task, *self._queue.pop_more(task, most)]
        while len(parts) > 1:
            joined = bundle(parts)
            if self.governor.select(iter([joined]), self._list_holders()) is not None:
                return joined
            half = len(parts) // 2
            self._queue.push(*parts[half:])
            parts = parts[:half]
        return task

    @property
    def _batches(self) -> Mapping[str, float]:
        """By engine: seconds of audio that it takes in one go; 0 if it does one segment after the other."""
        return self.inventory.batches if self.inventory is not None else {}

    def _list_filling(self) -> set[str]:
        """Engines whose next batch is not full yet, while more for it is about to come. Servers fill their own."""
        if self._crew.servers is not None:
            return set()
        queue = self._queue
        splitting = {w.task.engine for w in self._crew.list_busy() if w.task and w.task.name == "split"}
        coming = (engine for engine in self._batches if queue.splits[engine] or engine in splitting)
        return {engine for engine in coming if queue.seconds[engine] < self._batches[engine]}

    def _select(self, tasks: Iterator[Task], waiting: bool = True) -> Task | None:
        """One that must run alone has to wait for all others, and they for it. waiting: for fuller batches."""
        if self._drain_until is not None:  # only what saves the work that is done, and takes next to nothing
            return next(tasks, None)
        busy = self._crew.list_busy()
        if any(other.task.alone for other in busy if other.task):
            return None
        if self._queue.wants_alone:
            settling = any(worker.settling for worker in self._crew.workers.values())
            wait = busy or settling or self.governor.level > Level.EASY
            return None if wait else next((task for task in tasks if task.alone), None)
        filling = self._list_filling() if waiting else set()
        ready = (task for task in tasks if not (task.engine in filling and task.can_join))
        return self.governor.select(ready, self._list_holders())

    def _list_holders(self) -> list[Holder]:
        return [Holder(w.memory.uss if w.memory else 0, w.predicted) for w in self._crew.list_busy()]

    def _start_unfit(self, worker: Worker) -> None:
        """Nothing runs, and nothing that waits fits: better times are waited for, but not for ever. After that, one
        task at a time is tried until they come: a prediction may be wrong, and nothing else can be done."""
        self._starving = self._starving or time.monotonic()
        if time.monotonic() - self._starving < (_PATIENCE if self.governor.level > Level.EASY else _SETTLE_SECONDS):
            return
        task = self._queue.pop(worker.tasks == 0, closing=False)
        if task is None or not task.begin():
            return
        self._notice(f"{task.label}: runs alone, because it may not fit: {self.governor.explain(task)}")
        task.alone = True
        self._give(worker, task)

    def _give(self, worker: Worker, task: Task) -> None:
        worker.task, worker.seen, task.position = task, time.monotonic(), 0.0
        worker.predicted = self.governor.admit(task, worker.name, worker.rest)
        worker.channel.post(task.describe())
        self._loop.flush(worker.channel)

    # -- memory ----------------------------------------------------------------------------------------------

    def _watch_memory(self) -> None:
        if self.inventory is None or not self.governor.look(self._crew.list_pids()):
            return
        for worker in self._crew.workers.values():
            worker.memory = self.governor.find_memory(worker.name) or worker.memory
            if worker.task and worker.memory:
                worker.task.peak = max(worker.task.peak, worker.memory.uss)
        if self._drain_until is None:
            self._fit_crew()

    def _fit_crew(self) -> None:
        """As many workers as memory allows: fewer when it is short, more again when it is not."""
        assert self.plan is not None
        governor, crew = self.governor, self._crew
        busy, size = crew.list_busy(), crew.size
        if governor.must_stop() and not self.exhausted:
            self.exhausted = governor.why
            self._notice(f"stopping: {governor.why} (--mem-guard)")
            self.drain(_GUARD_SECONDS)
        elif busy and governor.must_end_one([worker.memory.uss for worker in busy if worker.memory]):
            worker = max(busy, key=lambda w: w.memory.uss - w.predicted if w.memory else 0)
            worker.starved = True
            crew.kill(worker, f"was ended, because memory was too short ({governor.why})")
        elif size > 1 and len(crew.workers) <= size and governor.must_shrink():
            governor.shrink(size - 1)
            size -= 1
        elif 0 < size < self.plan.workers and governor.may_grow(self.plan):
            governor.grow(size + 1)
            size += 1
        crew.resize(size)


def _print(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
