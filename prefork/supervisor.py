"""The supervisor: an event loop over workers and their zygote, in a thread of its own. Never imports torch."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from engines.base import LoadError
from platform_matrix.canary import describe_exit
from platform_matrix.matrix import Plan, Strategy
from prefork import process
from prefork.admission import Holder, Level
from prefork.channel import Channel
from prefork.child import ChildProcess, Output
from prefork.faults import find_last_words
from prefork.governor import ZYGOTE, Governor
from prefork.loading import Inventory, Specification, make_environment
from prefork.loop import Loop
from prefork.process import Memory, MemoryFile, Usage
from prefork.tasks import ATTEMPTS, HangLimit, OutOfMemory, Stopped, Task, TaskQueue, WorkerDied, unpickle_error

_BARREN_STARTS = 3  # zygotes, or workers, that may die in a row before anything gets done
_TICK_SECONDS = 0.25
_ENDING_SECONDS = 0.02  # between two looks at a process that is about to be gone
_LAST_WORDS = 8192  # bytes kept of what a worker wrote to stderr
_BOOT_SECONDS = 30.0  # from the request to fork to a worker's first message; it takes 20 ms
_PATIENCE = 60.0  # seconds that a run waits for memory with nothing to do, before it tries all the same
_SETTLE_SECONDS = 1.0  # for the memory of what has just ended to be there again
_GUARD_SECONDS = 4.0  # that what runs may go on for when memory gets too short and --mem-guard stops the run
_MOST_GROWTH = 64_000_000  # bytes that a worker may keep beyond twice what it had after its first task
_EXIT_SECONDS = 2.0  # how long a process may take to end by itself


@dataclass(slots=True, eq=False)
class _Worker:
    slot: int  # 0 .. workers-1: what the user sees
    number: int  # never used again in a run
    channel: Channel
    errors: Output
    born: float
    child: ChildProcess | None = None  # if it was not forked by the zygote
    told: bool = True  # what to load; one that was forked has it loaded
    pid: int = 0
    ready: float | None = None  # seconds from the request to the message that says so
    task: Task | None = None
    tasks: int = 0
    seen: float = 0.0  # when it last made progress
    last_words: bytearray = field(default_factory=bytearray)
    ended: bool = False  # its channel is at its end: it is dead, or will be
    sentence: str = ""  # why we killed it
    starved: bool = False  # we killed it for want of memory
    measured: tuple[Task, int] | None = None  # its last task, and what that was predicted to take
    predicted: int = 0  # bytes of its own at the peak of its task
    memory: Memory | None = None
    rest: int = 0  # bytes of its own after its last task
    first_rest: int = 0  # and after its first
    dismissed: bool = False  # we ended it, and it had nothing to do

    @property
    def name(self) -> str:
        return f"worker {self.slot}"


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
        self._specification = specification
        self._make_plan = make_plan
        self._hang_limit = hang_limit or HangLimit()
        self._notice = notice or logging.getLogger("prefork").warning
        self._log = log or _print
        self._talkative = log is None
        self.plan: Plan | None = None  # known from `loaded` on, unless that could not be
        self.inventory: Inventory | None = None
        self.failure: BaseException | None = None  # why nothing can run
        self.loaded = threading.Event()  # set when the zygote is ready, or never will be
        self.memory: dict[str, Memory] = {}  # the last measurement of all processes, made at the end
        self.governor = governor or Governor()
        self.governor.notice = self._notice
        self.exhausted = ""  # why the run was stopped: memory was too short
        self.steps: Counter[str] = Counter()  # seconds that all workers together have spent in each step of a job
        self.deaths = 0
        self._loop = Loop()
        self._numbers = itertools.count()
        self._workers: dict[int, _Worker] = {}
        self._queue = TaskQueue()
        self._zygote: ChildProcess | None = None
        self._arena: MemoryFile | None = None
        self._barren = 0
        self._closing = False
        self._drain_until: float | None = None
        self._size = 0  # workers that there are to be
        self._starving: float | None = None  # since when nothing runs because nothing fits
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

    def close(self) -> None:
        """Ends everything once all tasks are done."""
        self._loop.tell(lambda: setattr(self, "_closing", True))

    def drain(self, seconds: float) -> None:
        """Starts nothing new; ends everything when what runs is done, or after so many seconds."""
        until = time.monotonic() + seconds
        self._loop.tell(lambda: setattr(self, "_drain_until", min(until, self._drain_until or until)))

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
            for w in sorted(self._workers.copy().values(), key=lambda w: w.slot)
            for t in [w.task]
        ]

    def zygote_pid(self) -> int | None:
        return self._zygote.pid if self._zygote else None

    def _reason(self) -> BaseException:
        return self.failure or Stopped("the run was stopped before this was done")

    # -- the loop --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._start(self._make_plan())
            while not self._finished():
                self._loop.turn(self._timeout())
                self._bury()
                self._tell_next()
                self._kill_hung()
                self._watch_memory()
                self._dispatch()
            self._measure_all()
        except BaseException as error:  # noqa: BLE001  nobody else is there to say that the loop has ended
            self.failure = self.failure or error
        finally:
            self._end()

    def _finished(self) -> bool:
        if self.failure is not None:
            return True
        running = any(worker.task for worker in self._workers.values())
        if self._drain_until is not None:
            return time.monotonic() > self._drain_until or not (running or self._queue.has_closing)
        return self._closing and not (running or self._queue or self._loop.has_actions)

    def _timeout(self) -> float:
        ending = any(worker.child is not None and worker.ended for worker in self._workers.values())
        return _ENDING_SECONDS if ending else _TICK_SECONDS

    def _drop_waiting(self) -> None:
        for task in self._queue.clear():
            task.done(None, Stopped("it was cancelled before it began"))

    def _end(self) -> None:
        """Ends every process and gives every task that is left its reason."""
        for worker in list(self._workers.values()):
            self._forget(worker)
        children = [worker.child for worker in self._workers.values() if worker.child is not None]
        until = time.monotonic() + (_EXIT_SECONDS if self.failure is None else 0.0)
        for child in children:
            child.end(max(0.0, until - time.monotonic()))
        if self._zygote is not None:
            self._end_zygote(self._zygote)
        if self._arena is not None:
            self._arena.close()
        self._loop.end()
        self.governor.end()
        left = [worker.task for worker in self._workers.values() if worker.task and not worker.task.cancelled]
        self._workers.clear()
        for task in [*left, *self._queue.clear()]:
            task.done(None, self._reason())
        self.loaded.set()
        self._loop.close()

    def _start(self, plan: Plan) -> None:
        """Has the models loaded as the plan says: by a zygote, or by the first of the workers itself."""
        self.plan = plan = self.governor.recall(plan)
        if plan.refusal:
            self.failure = LoadError(plan.refusal)
        elif plan.strategy is Strategy.FORK:
            self._start_zygote()
        else:
            if plan.shared and self._arena is None:
                self._arena = MemoryFile()
            self._spawn(0)

    def _specify(self) -> Specification:
        inventory, arena = self.inventory, self._arena
        return replace(
            self._specification,
            plan=self.plan,
            arena=arena.path if arena else None,
            manifest=inventory.manifest if inventory else None,
        )

    # -- the zygote ------------------------------------------------------------------------------------------

    def _start_zygote(self) -> None:
        assert self.plan is not None
        self._zygote = zygote = ChildProcess("zygote", make_environment(self.plan), self._talkative)
        zygote.channel.post(self._specify())
        self._loop.watch(zygote.channel, self._on_zygote)
        self._loop.watch(zygote.errors, self._on_zygote_errors)
        self._loop.flush(zygote.channel)

    def _post_zygote(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        assert self._zygote is not None
        self._zygote.channel.post(message, fds)
        self._loop.flush(self._zygote.channel)

    def _on_zygote(self) -> None:
        zygote = self._zygote
        assert zygote is not None
        self._loop.flush(zygote.channel)
        try:
            for kind, *content in zygote.channel.poll():
                getattr(self, f"_on_{kind}")(*content)
                if self._zygote is not zygote:  # it is not needed any more
                    return
        except EOFError:
            self._lose_zygote()

    def _on_zygote_errors(self) -> None:
        assert self._zygote is not None
        self._read_errors(self._zygote.errors, self._zygote.last_words)

    def _on_loaded(self, inventory: Inventory) -> None:
        """Now that the weights are known, so is how many workers fit. The first of them, if it has loaded the models
        itself, is there already."""
        if self.inventory is None or self._zygote is not None:
            self._take_inventory(inventory)
            for slot in self._list_free_slots()[: self._size - len(self._workers)]:
                self._add_worker(slot)
        self.loaded.set()

    def _take_inventory(self, inventory: Inventory) -> None:
        assert self.plan is not None
        private = inventory.private if self.plan.request.private is None else None
        self.plan = replace(self.plan.learn(inventory.weights, private), refusal="")  # they are loaded: one does fit
        if self.plan.capped and self.inventory is None:
            self._notice(self.plan.capped)
        loaded = self._zygote or next(iter(self._workers.values()))
        memory = process.measure_memory(loaded.pid)
        if memory is not None:
            self.governor.note_loaded(memory.pss, inventory.weights, forks=self._zygote is not None)
        if self.inventory is None:
            self.governor.begin(self.plan, inventory.weights)
            self._size = self.plan.workers
        self.inventory = inventory

    def _list_free_slots(self) -> list[int]:
        assert self.plan is not None
        taken = {worker.slot for worker in self._workers.values()}
        return [slot for slot in range(self.plan.workers) if slot not in taken]

    def _on_unsafe(self, why: str) -> None:
        """The zygote must not fork. If nobody insisted on it, workers load by themselves."""
        assert self.plan is not None and self._zygote is not None
        self._end_zygote(self._zygote)
        self.inventory = None  # of a zygote before it, which could fork
        other = self.plan.learn(unsafe=why)
        if not other.refusal:
            self._notice(f"cannot fork: {why}; the workers are spawned instead")
        self._start(other)

    def _on_failed(self, text: str, trace: str) -> None:
        if trace:
            self._log(trace)
        self.failure = LoadError(text)

    def _lose_zygote(self) -> None:
        """Its workers die with it. Their tasks are not to blame and lose no attempt."""
        assert self._zygote is not None
        if self.failure is not None:
            return
        while self._read_errors(self._zygote.errors, self._zygote.last_words):
            pass
        words = self._zygote.last_words.decode(errors="replace").strip().rpartition("\n")[2]
        reason = describe_exit(self._end_zygote(self._zygote))
        for worker in list(self._workers.values()):
            with contextlib.suppress(EOFError):
                self._hear(worker)  # it may have finished something before it died
            self._forget(worker)
            del self._workers[worker.number]
            if worker.task:
                self._queue.push_again(worker.task)
        self._barren += 1
        if self._barren >= _BARREN_STARTS:
            text = f"the process that loads the models {reason} {self._barren} times in a row"
            self.failure = LoadError(f"{text}: {words}" if words else text)
            return
        self._notice(f"the zygote {reason}; loading the models again")
        self._start_zygote()

    def _end_zygote(self, zygote: ChildProcess) -> int:
        """Its exit status."""
        self._loop.ignore(zygote.channel)
        self._loop.ignore(zygote.errors)
        self._zygote = None
        return zygote.end(_EXIT_SECONDS if self.inventory else 0.0)

    # -- the workers -----------------------------------------------------------------------------------------

    def _add_worker(self, slot: int) -> None:
        assert self.plan is not None
        if self.plan.strategy is Strategy.FORK:
            self._fork(slot)
        else:
            self._spawn(slot)

    def _fork(self, slot: int) -> None:
        assert self.plan is not None
        channel, there = Channel.pair()
        errors, writing = Output.pipe()
        worker = _Worker(slot, next(self._numbers), channel, errors, time.monotonic())
        self._adopt(worker)
        self._post_zygote(("fork", worker.number, self.plan.threads), (there.detach(), writing))

    def _spawn(self, slot: int) -> None:
        """Starts a process that will load, once it is told what: see _tell_next."""
        assert self.plan is not None
        child = ChildProcess("spawned", make_environment(self.plan), self._talkative)
        number, now = next(self._numbers), time.monotonic()
        self._adopt(_Worker(slot, number, child.channel, child.errors, now, child, told=False, pid=child.pid))

    def _adopt(self, worker: _Worker) -> None:
        self._workers[worker.number] = worker
        self._loop.watch(worker.channel, partial(self._on_worker, worker))
        hear = partial(self._read_errors, worker.errors, worker.last_words)
        self._loop.watch(worker.errors, hear)

    def _tell_next(self) -> None:
        """One worker loads at a time: memory for one copy more than is shared is all that is needed."""
        waiting = [worker for worker in self._workers.values() if not worker.told and not worker.ended]
        if waiting and not any(w.told and w.ready is None for w in self._workers.values()):
            waiting[0].told = True
            waiting[0].channel.post(self._specify())
            self._loop.flush(waiting[0].channel)

    def _bury(self) -> None:
        """Sees which of the processes that were spawned have ended; for the others, the zygote does."""
        for worker in list(self._workers.values()):
            if worker.child is not None and (worker.ended or worker.sentence):
                status = worker.child.poll()
                if status is not None:
                    self._on_exited(worker.number, status)

    def _on_forked(self, number: int, pid: int) -> None:
        self._workers[number].pid = pid

    def _on_exited(self, number: int, status: int) -> None:
        worker = self._workers[number]
        with contextlib.suppress(EOFError):
            self._hear(worker)  # it may have finished something before it died
        while self._read_errors(worker.errors, worker.last_words):
            pass
        self._forget(worker)
        del self._workers[number]
        if worker.dismissed:
            self._refill()
            return
        self.deaths += 1
        starved = worker.starved or self._was_starved(worker, status)
        words = find_last_words(worker.last_words.decode(errors="replace"))
        reason = worker.sentence or (
            "was ended by the kernel: out of memory" if starved else words or describe_exit(status)
        )
        if worker.ready is None:
            self._lose_unready(reason)
        elif worker.task:
            self._bereave(worker.task, f"{worker.name} (pid {worker.pid}): {reason}", starved)
        else:
            self._notice(f"{worker.name} (pid {worker.pid}): {reason}; replaced")
        self._refill()

    def _was_starved(self, worker: _Worker, status: int) -> bool:
        return status == -signal.SIGKILL and not worker.sentence and self.governor.was_killed_for_memory()

    def _lose_unready(self, reason: str) -> None:
        """A worker died before it could do anything. If that goes on, there are as many as there are."""
        self._barren += 1
        if self._barren < _BARREN_STARTS:
            return
        self._barren, self._size = 0, len(self._workers)
        if self._workers:
            self._notice(f"workers die before they are ready: {reason}; going on with {self._size}")
        else:
            self.failure = LoadError(f"workers die before they are ready: {reason}")

    def _refill(self) -> None:
        if self.failure is None and self._drain_until is None and len(self._workers) < self._size:
            self._add_worker(self._list_free_slots()[0])

    def _bereave(self, task: Task, reason: str, starved: bool) -> None:
        """A task has lost its worker. One that did not fit into memory has it all to itself the next time."""
        self.governor.lose(task, reason, starved)
        if task.cancelled:
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

    def _on_worker(self, worker: _Worker) -> None:
        self._loop.flush(worker.channel)
        try:
            self._hear(worker)
        except EOFError:
            worker.ended = True
            self._loop.ignore(worker.channel)
            self._kill(worker, "")  # most often it is dead already, and the zygote will say of what

    def _hear(self, worker: _Worker) -> None:
        for kind, *content in worker.channel.poll():
            worker.seen = time.monotonic()
            if kind in ("loaded", "failed"):
                getattr(self, f"_on_{kind}")(*content)
            elif kind == "ready":
                worker.ready = worker.seen - worker.born
            elif kind == "progress" and worker.task:
                worker.task.position, piece = content
                worker.task.finished.append(piece)
                worker.task.attempts = 0
            elif kind == "measured":
                self._take_measure(worker, *content)
            else:
                self._take_result(worker, kind, content[0])

    def _take_result(self, worker: _Worker, kind: str, result: bytes) -> None:
        task, worker.task = worker.task, None
        worker.tasks += 1
        self._barren = 0
        if task is None:
            return
        worker.measured = (task, worker.predicted)
        if kind == "starved":
            self._bereave(task, f"{worker.name} (pid {worker.pid}): {result.decode()}", starved=True)
        elif task.cancelled:
            return
        elif kind == "done":
            task.done(result, None)
        else:
            error = unpickle_error(result)
            self.governor.lose(task, str(error), starved=False)
            task.done(None, error)

    def _take_measure(self, worker: _Worker, usage: Usage | None, steps: dict[str, float]) -> None:
        """What its last task took, and what it has kept of it."""
        self.steps.update(steps)
        if usage is None:
            return
        if worker.measured is not None:
            task, predicted = worker.measured
            self.governor.measure(task, worker.name, predicted, usage)
        self.governor.look_again()
        worker.memory, worker.rest = usage.memory, usage.memory.uss
        worker.first_rest = worker.first_rest or worker.rest

    def _kill(self, worker: _Worker, sentence: str) -> None:
        worker.sentence = worker.sentence or sentence
        if worker.child is not None:
            worker.child.kill()
        else:
            self._post_zygote(("kill", worker.number))

    def _kill_hung(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            task = worker.task
            if worker.sentence:
                continue
            if worker.child is None and worker.ready is None and now - worker.born > _BOOT_SECONDS:
                self._kill(worker, f"was not ready {_BOOT_SECONDS:.0f} s after it was forked and was killed")
            elif task is not None and task.step is not None:
                limit = self._hang_limit.seconds(task.step)
                if now - worker.seen > limit:
                    self._kill(worker, f"made no progress for {limit:.0f} s and was killed")

    def _forget(self, worker: _Worker) -> None:
        self._loop.ignore(worker.channel)
        self._loop.ignore(worker.errors)
        worker.channel.close()
        worker.errors.close()

    def _read_errors(self, errors: Output, words: bytearray) -> bool:
        """Passes on some of what a process has printed; False if there is nothing more for now."""
        data = errors.read(_LAST_WORDS)
        if not data:
            if data is not None:
                self._loop.ignore(errors)
            return False
        words += data
        del words[:-_LAST_WORDS]
        self._log(data.decode(errors="replace"))
        return True

    # -- the tasks -------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._replace_grown()
        idle = self._list_idle()
        while idle and self._start_next(idle):
            pass
        if not idle:
            return
        if self._queue.wants_fresh and not any(w.tasks == 0 or w.dismissed for w in self._workers.values()):
            self._dismiss(idle[0], "made room for a fresh one")
        elif self._queue and not self._list_busy():
            self._start_unfit(idle[0])
        else:
            self._starving = None

    def _replace_grown(self) -> None:
        for worker in self._list_idle():
            if worker.rest > 2 * worker.first_rest + _MOST_GROWTH:
                self._notice(f"{worker.name}: had {worker.rest / 1e6:.0f} MB without a job; replaced")
                self._dismiss(worker, "grew without a job")

    def _start_next(self, idle: list[_Worker]) -> bool:
        """Gives one of the idle workers the next task that may start; False if none may."""
        fresh = next((worker for worker in idle if worker.tasks == 0), None)
        worker = fresh or idle[0]
        task = self._queue.pop(fresh is not None, self._drain_until is not None, self._select)
        if task is None:
            return False
        if task.begin():
            idle.remove(worker)
            self._give(worker, task)
        return True

    def _select(self, tasks: Iterator[Task]) -> Task | None:
        """One that must run alone has to wait for all others, and they for it."""
        busy = self._list_busy()
        if any(other.task.alone for other in busy if other.task):
            return None
        if self._queue.wants_alone:
            return None if busy else next((task for task in tasks if task.alone), None)
        holders = [Holder(w.memory.uss if w.memory else 0, w.predicted) for w in busy]
        return self.governor.select(tasks, holders)

    def _start_unfit(self, worker: _Worker) -> None:
        """Nothing runs, and nothing that waits fits: better times are waited for, but not for ever."""
        self._starving = self._starving or time.monotonic()
        if time.monotonic() - self._starving < (_PATIENCE if self.governor.level > Level.EASY else _SETTLE_SECONDS):
            return
        task = self._queue.pop(worker.tasks == 0, self._drain_until is not None)
        if task is None or not task.begin():
            return
        if self.governor.is_hopeless(task):
            self.governor.lose(task, "does not fit", starved=False)
            task.done(None, OutOfMemory(f"does not fit into memory: {self.governor.explain(task)}"))
            return
        self._notice(f"{task.label}: runs alone, because it may not fit: {self.governor.explain(task)}")
        task.alone = True
        self._give(worker, task)

    def _give(self, worker: _Worker, task: Task) -> None:
        self._starving = None
        worker.task, worker.seen, task.position = task, time.monotonic(), 0.0
        worker.predicted = self.governor.admit(task, worker.name, worker.rest)
        worker.channel.post(task.describe())
        self._loop.flush(worker.channel)

    def _list_idle(self) -> list[_Worker]:
        alive = (w for w in self._workers.values() if w.ready is not None and not (w.ended or w.sentence))
        return [worker for worker in alive if worker.task is None]

    def _list_busy(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.task]

    # -- memory ----------------------------------------------------------------------------------------------

    def _watch_memory(self) -> None:
        pids = {worker.name: worker.pid for worker in self._workers.values() if worker.pid}
        if self._zygote is not None:
            pids[ZYGOTE] = self._zygote.pid
        if self.inventory is None or not self.governor.look(pids):
            return
        for worker in self._workers.values():
            worker.memory = self.governor.find_memory(worker.name) or worker.memory
            if worker.task and worker.memory:
                worker.task.peak = max(worker.task.peak, worker.memory.uss)
        self._fit_pool()

    def _fit_pool(self) -> None:
        """As many workers as memory allows: fewer when it is short, more again when it is not."""
        assert self.plan is not None
        governor, busy = self.governor, self._list_busy()
        if governor.limits.guard and governor.level >= Level.CRITICAL and not self.exhausted:
            self.exhausted = governor.why
            self._notice(f"stopping: {governor.why} (--mem-guard)")
            self.drain(_GUARD_SECONDS)
        elif busy and governor.must_end_one(len(busy)):
            worker = max(busy, key=lambda w: w.memory.uss - w.predicted if w.memory else 0)
            worker.starved = True
            self._kill(worker, f"was ended, because memory was too short ({governor.why})")
        elif self._size > 1 and governor.must_shrink():
            self._size -= 1
            governor.shrink(self._size)
        elif 0 < self._size < self.plan.workers and governor.may_grow:
            self._size += 1
            governor.grow(self._size)
            self._refill()
        surplus = sum(not worker.sentence for worker in self._workers.values()) - self._size
        for worker in self._list_idle()[: max(0, surplus)]:
            self._dismiss(worker, "was ended, because memory was short")

    def _dismiss(self, worker: _Worker, sentence: str) -> None:
        """Ends a worker that has nothing to do."""
        worker.dismissed = True
        self._kill(worker, sentence)

    def _measure_all(self) -> None:
        pids = {w.name: w.pid for w in self._workers.values() if w.pid}
        if self._zygote is not None:
            pids[ZYGOTE] = self._zygote.pid
        self.memory = {name: memory for name, pid in pids.items() if (memory := process.measure_memory(pid))}


def _print(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
