"""The supervisor: runs a pool in a thread of its own. Never imports torch."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from prefork.engines.base import LoadError
from prefork.errors import Stopped
from prefork.memory.governor import Governor
from prefork.platform_matrix.matrix import Plan
from prefork.platform_matrix.systems import SYSTEM
from prefork.pool.calls import Call
from prefork.pool.events import (
    Aborted,
    CallCancelled,
    CallContinued,
    CallsSubmitted,
    CloseRequested,
    DrainRequested,
    Event,
    MemoryMeasured,
    ReloadRequested,
    Started,
    TasksSubmitted,
    Tick,
    WaitingCancelled,
)
from prefork.pool.processes import Processes
from prefork.pool.state import STOPPED, Pool
from prefork.pool.status import RuntimeState, RuntimeStatus, WorkerStatus, describe_worker
from prefork.pool.stopped import StoppedProcesses
from prefork.pool.tasks import CANCELLED, HangLimit, NotBegun, Task, TaskQueue
from prefork.pool.watch import Reporter, Watch
from prefork.wire.loop import Loop
from prefork.wire.messages import Memory
from prefork.wire.specification import Inventory, Specification

_TICK_SECONDS = 0.25
_ENDING_SECONDS = 0.02  # between two looks at a process that is about to be gone


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
        max_tasks: int | None = None,
    ) -> None:
        """make_plan: called once, first thing in the supervisor's thread: to look at the machine takes a while.
        notice: gets what happens to workers; by default a warning of the logger `prefork`. log: gets what the
        processes print; by default it comes out as it is, on stdout and stderr. max_tasks: that a worker does before
        another takes its place."""
        self._max_tasks = max_tasks
        self._make_plan = make_plan
        self._specification = specification
        self._hang_limit = hang_limit or HangLimit()
        self._failure: BaseException | None = None  # of this thread itself
        self.loaded = threading.Event()  # set when the models are loaded, or never will be
        self.loading: Future[None] = Future()  # done then, for asyncio
        self.ending: Future[None] = Future()  # done when every process is gone
        self.memory: dict[str, Memory] = {}  # the last measurement of all processes, made at the end
        self.governor = governor or Governor()
        self.governor.notice = notify = notice or logging.getLogger("prefork").warning
        self.interrupted = threading.Event()  # set when nothing new may begin
        self.is_closing = False
        self.before_close: Callable[[], None] = lambda: None  # has submitted whatever is still to be
        self._reporter = Reporter(
            announce=self._announce,
            interrupt=self.interrupted.set,
            notify=notify,
            log=log or _print,
            inherits_stdout=log is None,
        )
        self.pool: Pool | None = None  # once there is a plan
        self._processes: Processes | None = None
        self._events: deque[Event] = deque()
        self._is_handling = False
        self._calls: deque[Call] = deque()  # that were submitted and not yet collected
        self._is_collecting = False
        self._loop = Loop()
        self._elsewhere = 0  # pieces of work that are done outside of the workers
        self._lock = threading.RLock()  # of that number
        self._thread = threading.Thread(target=self._run, name="prefork-supervisor", daemon=True)

    @property
    def is_own_thread(self) -> bool:
        """Whether this is called in the supervisor's thread, which nothing may wait for there."""
        return threading.current_thread() is self._thread

    # -- from any thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        _running.add(self)
        self._thread.start()

    def submit(self, *tasks: Task) -> None:
        if not self._send(TasksSubmitted(tasks)):
            for task in tasks:
                task.done(None, self.failure or Stopped(STOPPED))

    def submit_call(self, call: Call) -> None:
        self._calls.append(call)
        if self._is_collecting:  # the thread has not come to those before it
            return
        self._is_collecting = True
        if not self._loop.call_soon(lambda: self._feed(CallsSubmitted(self._collect()))):
            for left in self._collect():
                left.end(None, self.failure or Stopped(STOPPED))

    def _collect(self) -> list[Call]:
        """The calls that were submitted since the last time."""
        self._is_collecting = False  # first: what is submitted from here on is collected again
        calls = []
        with contextlib.suppress(IndexError):
            while True:
                calls.append(self._calls.popleft())
        return calls

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Those that are running run on; the others are never started and their `done` is never called."""
        for task in tasks:
            task.cancelled = True

    def cancel_call(self, future: object) -> None:
        """Ends the call that has this future, if it runs."""
        self._send(CallCancelled(future))

    def continue_call(self, future: object, count: int) -> None:
        """So many of the things that the call has yielded which has this future were taken."""
        self._send(CallContinued(future, count))

    def reload(self, load: bytes, task: Task) -> None:
        """Replaces the weights by those that another function loads, which is pickled. task: ends with it."""
        if not self._send(ReloadRequested(load, task)):
            task.done(None, self.failure or Stopped(STOPPED))

    def cancel_waiting(self) -> None:
        """Gives every task that has not begun its end now."""
        self._send(WaitingCancelled())

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

        if not self._loop.call_soon(take):
            take()

    def give_up(self, error: LoadError) -> None:
        """Ends everything at once: nothing can be done without what was not to be had."""
        self._send(Aborted(error))

    def close(self) -> None:
        """Ends everything once all tasks are done."""
        self.is_closing = True
        self.before_close()
        self._send(CloseRequested())

    def drain(self, seconds: float) -> None:
        """Starts nothing new; ends everything when what runs is done, or after so many seconds."""
        self.interrupted.set()
        self._send(DrainRequested(time.monotonic() + seconds))

    def forget(self) -> None:
        """In a forked process: whatever is asked of this one there has no effect."""
        self.before_close = lambda: None
        self._loop.forget()

    def join(self, timeout: float | None = None) -> None:
        """Waits until every process is gone."""
        self._thread.join(timeout)

    def _send(self, event: Event) -> bool:
        """False if the loop has ended."""
        return self._loop.call_soon(lambda: self._feed(event))

    def status(self) -> list[WorkerStatus]:
        """One entry for each worker that has a process, by slot."""
        known = self.pool.workers.all.copy().values() if self.pool is not None else ()
        workers = [worker for worker in known if worker.pid]  # a signal to 0 would reach the program itself
        return [describe_worker(worker) for worker in sorted(workers, key=lambda worker: worker.slot)]

    def count_waiting(self) -> int:
        """Calls and other tasks that no worker has."""
        return len(self._calls) + (len(self.pool.scheduler.queue) if self.pool is not None else 0)

    def list_pids(self) -> dict[str, int]:
        """Of all processes, by name: "zygote", "worker 0" ..."""
        return self._processes.list_pids() if self._processes is not None else {}

    def zygote_pid(self) -> int | None:
        return self.list_pids().get("zygote")

    @property
    def failure(self) -> BaseException | None:
        """Why nothing can run."""
        return self._failure or (self.pool.failure if self.pool is not None else None)

    @property
    def plan(self) -> Plan | None:
        """Known from `loaded` on, unless that could not be."""
        return self.pool.models.plan if self.pool is not None else None

    @property
    def inventory(self) -> Inventory | None:
        return self.pool.models.inventory if self.pool is not None else None

    @property
    def reloads(self) -> int:
        """How often the weights were replaced."""
        return self.pool.models.reloading.count if self.pool is not None else 0

    @property
    def deaths(self) -> int:
        """Workers and servers that died and were needed."""
        return self.pool.models.deaths if self.pool is not None else 0

    @property
    def steps(self) -> Counter[tuple[str, str]]:
        """Seconds of all workers together, by engine and step of a job."""
        return self.pool.scheduler.steps if self.pool is not None else Counter()

    @property
    def exhausted(self) -> str:
        """Why the run was stopped, if memory was too short."""
        return self.pool.fitting.exhausted if self.pool is not None else ""

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            plan = self._make_plan()
            limits = SYSTEM.max_descriptors(), self._max_tasks
            self.pool = pool = Pool(self._specification, plan, self.governor, self._hang_limit, *limits)
            self._processes = processes = Processes(Watch(pool, self._loop, self.governor, self._feed, self._reporter))
            stopped = StoppedProcesses(self._reporter.notify)
            self._feed(Started())
            while not pool.is_finished(time.monotonic(), bool(self._elsewhere or self._loop.has_actions)):
                most = _ENDING_SECONDS if processes.workers.is_ending else _TICK_SECONDS
                self._loop.turn(pool.find_wait(most, time.monotonic()))
                processes.reap(time.monotonic())
                stopped.end(processes.list_pids, time.monotonic())
                self._measure(pool, processes)
                self._feed(Tick())
            pids = processes.list_pids()
            self.memory = {n: m for n, pid in pids.items() if (m := self.governor.measure_memory(n, pid))}
        except BaseException as error:  # noqa: BLE001  nobody else is there to say that the loop has ended
            self._failure = self.failure or error
        finally:
            self._end()

    def _feed(self, event: Event) -> None:
        """Has the pool handle an event, and does what it wants; what comes of that is handled after it."""
        self._events.append(event)
        if self._is_handling or self.pool is None or self._processes is None:
            return
        self._is_handling = True
        try:
            while self._events:
                for action in self.pool.handle(self._events.popleft(), time.monotonic()):
                    self._processes.do(action)
        finally:
            self._is_handling = False

    def _measure(self, pool: Pool, processes: Processes) -> None:
        """Looks at the memory of the machine and of all processes, if it is time to; gives back what is not needed."""
        if pool.models.inventory is None or not self.governor.look(processes.list_pids):
            return
        processes.workers.trim()
        found = {w.number: self.governor.find_memory(w.name) for w in pool.workers.all.values()}
        self._feed(MemoryMeasured({number: memory for number, memory in found.items() if memory is not None}))

    def _end(self) -> None:
        """Ends every process and gives every task that is left its reason."""
        self.interrupted.set()
        try:
            if self._processes is not None:
                self._processes.end(at_once=self.failure is not None)
            self._is_handling = True  # nothing is started any more: what still comes waits in self._events
            self._loop.end()
            self.governor.end()
            for action in self.pool.end(self.failure) if self.pool is not None else ():
                action.complete()
            self._end_submitted()
        finally:
            self._announce()
            self._loop.close()
            _running.discard(self)
            self.ending.set_result(None)

    def _announce(self) -> None:
        self.loaded.set()
        if not self.loading.done():
            self.loading.set_result(None)

    def _end_submitted(self) -> None:
        """What nobody has handled any more, or ever, if there was no plan and so no pool."""
        queue = TaskQueue()
        for event in self._events:
            if isinstance(event, TasksSubmitted):
                queue.push(*event.tasks)
            elif isinstance(event, ReloadRequested):
                queue.push(event.task)
            elif isinstance(event, CallsSubmitted):
                queue.push_calls(event.calls)
            elif isinstance(event, WaitingCancelled):
                for task in queue.clear():
                    task.done(None, NotBegun(CANCELLED))
        for task in queue.clear():
            task.done(None, self.failure or Stopped(STOPPED))


def describe_supervisor(supervisor: Supervisor, is_shut_down: bool) -> RuntimeStatus:
    """is_shut_down: it is given nothing more."""
    if supervisor.failure is not None:
        state = RuntimeState.FAILED
    elif supervisor.ending.done():
        state = RuntimeState.ENDED
    elif is_shut_down or supervisor.is_closing:
        state = RuntimeState.CLOSING
    else:
        state = RuntimeState.RUNNING if supervisor.loaded.is_set() else RuntimeState.LOADING
    workers, inventory = tuple(supervisor.status()), supervisor.inventory
    return RuntimeStatus(
        state=state,
        workers=workers,
        running=sum(bool(worker.label) for worker in workers),
        waiting=supervisor.count_waiting(),
        deaths=supervisor.deaths,
        reloads=supervisor.reloads,
        weights=inventory.weights if inventory is not None else None,
        failure=supervisor.failure,
    )


_running: set[Supervisor] = set()  # whoever has started them may be gone: what was submitted is done all the same


@atexit.register
def _finish_all() -> None:
    """Before the program ends."""
    for supervisor in list(_running):
        supervisor.close()
        supervisor.join()


def _forget_all() -> None:
    """In a process that the program forks: its threads and workers are another's, and so are the sockets to them."""
    for supervisor in list(_running):
        supervisor.forget()
    _running.clear()


SYSTEM.run_at_fork(after_in_child=_forget_all)


def _print(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
