"""The pool as a state machine: (event, time) -> actions.

Who is started, killed and retried, who is given what, and what is overdue is decided here, and in what it is made of:

    Models      which processes load and hold the models, and what takes their place        models.py, servers.py
    Workers     which workers there are                                                     workers.py
    Scheduler   which worker gets which task, and what becomes of it                        scheduling.py, tasks.py
    Fitting     how many workers memory allows                                              fitting.py

None of them starts a process, reads a socket or a clock: that is `prefork.pool.processes`, which turns what happens
into events (events.py) and does what comes out (actions.py). What memory allows is asked of a policy (policy.py): the
governor, which has a clock and a log of its own, or a test's.
"""

from __future__ import annotations

from prefork.engines.base import LoadError
from prefork.errors import Stopped
from prefork.platform_matrix.matrix import Plan
from prefork.pool.actions import Action, Complete, Outbox
from prefork.pool.events import (
    Aborted,
    CallCancelled,
    CallContinued,
    CallEnded,
    CallGave,
    CallsSubmitted,
    CallsTakenBack,
    CloseRequested,
    DrainRequested,
    Event,
    MemoryMeasured,
    OwnerExited,
    OwnerSent,
    ReloadRequested,
    ServerExited,
    ServerSent,
    Started,
    TasksSubmitted,
    Tick,
    WaitingCancelled,
    WorkerClosed,
    WorkerReaped,
    WorkerSent,
    WorkerStarted,
    ZygoteExited,
    ZygoteSent,
)
from prefork.pool.fitting import Fitting
from prefork.pool.models import Models
from prefork.pool.policy import Policy
from prefork.pool.scheduling import Scheduler
from prefork.pool.tasks import HangLimit
from prefork.wire.exceptions import unpickle_error
from prefork.wire.messages import (
    FromWorker,
    InitializerFailed,
    LoadFailed,
    ModelsLoaded,
    WeightsCorrupted,
    WorkerBroken,
    WorkerInitializes,
    WorkerReady,
)
from prefork.wire.specification import Specification

STOPPED = "the run was stopped before this was done"
_STUCK_SECONDS = 5.0
_MOST_TOLD = 4  # processes that a user is told of


class Pool:
    """failure: why nothing can run any more."""

    def __init__(
        self,
        specification: Specification,
        plan: Plan,
        policy: Policy,
        hang_limit: HangLimit,
        descriptors: int,
        max_tasks: int | None = None,
    ) -> None:
        """descriptors: files that a process may have open. max_tasks: that a worker does, None for no limit."""
        self._outbox = outbox = Outbox()
        self.failure: BaseException | None = None
        self.models = Models(outbox, specification, plan, policy, hang_limit, self._fail_loading, descriptors)
        self.workers = self.models.workers
        self.workers.max_tasks = max_tasks
        self.scheduler = Scheduler(outbox, self.models, policy, hang_limit, self._fail)
        self.fitting = Fitting(outbox, self.workers, self.scheduler, policy)
        self._closing = False
        self._stuck_since: float | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        """What is to be done, in that order. now: seconds, by a clock that never goes back."""
        self._outbox.now = now
        match event:
            case CallEnded():
                self.scheduler.handle_call(self.workers.all[event.worker], event)
            case CallGave():
                self.scheduler.pass_on(self.workers.all[event.worker], event)
            case Tick():
                self._tick()
            case CallsSubmitted(calls):
                self.scheduler.queue.push_calls(calls)
            case CallsTakenBack(number, numbers):
                self.scheduler.push_back(self.workers.all[number], numbers)
            case WorkerSent(number, message):
                self._handle_worker(number, message)
            case MemoryMeasured(memory):
                self.fitting.take(memory)
            case (
                TasksSubmitted()
                | CallCancelled()
                | CallContinued()
                | ReloadRequested()
                | WaitingCancelled()
                | CloseRequested()
                | DrainRequested()
                | Aborted()
                | Started()
            ):
                self._handle_request(event)
            case _:
                self._handle_process(event)
        return self._outbox.take()

    def find_wait(self, most: float, now: float) -> float:
        """Seconds until something is to be done though nothing happens; at most so many."""
        self._outbox.now = now
        return self.scheduler.calls.endings.find_wait(most)

    def _handle_request(self, event: Event) -> None:
        match event:
            case Started():
                self.models.start(self.models.plan)
            case TasksSubmitted(tasks):
                self.scheduler.queue.push(*tasks)
            case WaitingCancelled():
                self.scheduler.cancel_waiting()
            case CallCancelled(future):
                self.scheduler.calls.endings.cancel(future)
            case CallContinued(future, count):
                self.scheduler.calls.go_on(future, count)
            case CloseRequested():
                self._closing = True
            case ReloadRequested(load, task):
                self.models.reloading.begin(load, task, self.models.specification, self.models.inventory)
            case DrainRequested(until):
                if until > self._outbox.now:
                    self._tell_what_runs()
                self.scheduler.drain(until)
            case Aborted(error):
                self._fail(error)

    def _handle_process(self, event: Event) -> None:
        """What a process has sent, or its end."""
        match event:
            case ZygoteSent(message, generation):
                self.models.handle_zygote(message, generation)
            case ZygoteExited():
                self.scheduler.give_back(*self.workers.drop_all(event))
                self.models.handle_zygote_exit(event)
            case WorkerStarted(number, pid):
                self.workers.all[number].pid = pid
            case WorkerClosed(number):
                self.workers.close(self.workers.all[number])
            case WorkerReaped():
                worker = self.workers.all[event.number]
                worker.closed = True  # it is given nothing more
                self.models.devices.note_failed_start(worker)
                first = next(iter(worker.calls), None)  # it begins one call after it has answered the one before
                self.scheduler.push_back(worker, [n for n in worker.calls if n != first or n in event.unbegun])
                if (death := self.workers.reap(event)) is not None:
                    if self.models.devices.excuses(death):
                        self.scheduler.start_over(death.task, death.reason)
                    else:
                        self.scheduler.lose(death)
                self.workers.refill()
            case ServerSent() | ServerExited():
                self.models.handle_server(event)
            case OwnerSent(place, message):
                self.models.handle_owner(place, message)
            case OwnerExited():
                self.models.handle_owner_exit(event)

    def _handle_worker(self, number: int, message: FromWorker) -> None:
        worker = self.workers.all[number]
        worker.last_message = self._outbox.now
        match message:
            case ModelsLoaded(inventory):
                self.models.handle_loaded(inventory)
            case LoadFailed():
                self.models.handle_failure(message, self.workers.find_place(worker.slot))
            case WorkerReady(pid):
                worker.pid = worker.pid or pid
                self.models.handle_ready(worker)
            case WorkerInitializes():
                worker.initializing = self._outbox.now
            case InitializerFailed(error):
                self.workers.note_failed_initializer(worker, unpickle_error(error))
            case WeightsCorrupted(reason):
                self.models.start_over(reason)
            case WorkerBroken():
                worker.broken = message
            case _:
                self.scheduler.handle(worker, message)

    def _tick(self) -> None:
        self.models.tick()
        self.scheduler.calls.endings.tick()
        self.scheduler.kill_hung()
        self.scheduler.dispatch()
        self._check_stuck()

    def _check_stuck(self) -> None:
        """Work that is left is done by workers, or by what is started and has a time limit; with none of them there is
        nobody who could do it, or say that he cannot."""
        if self.workers.all or self.models.is_starting or not self.scheduler.queue or self.scheduler.is_draining:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = self._outbox.now
        elif self._outbox.now - self._stuck_since > _STUCK_SECONDS:
            self._fail_loading("no process is left that could do what waits, and none is about to start")

    def _tell_what_runs(self) -> None:
        """To a user who stops a run, perhaps because nothing seems to happen."""
        busy = [f"{worker.name} is at {worker.task.label}" for worker in self.workers.list_busy() if worker.task]
        work = self._describe_loading() + busy
        more = [f"{len(work) - _MOST_TOLD} more"] if len(work) > _MOST_TOLD else []
        if work:
            self._outbox.notify(f"under way: {', '.join([*work[:_MOST_TOLD], *more])}")

    def _describe_loading(self) -> list[str]:
        """Who loads the models now, since when, and how long that may take."""
        models, now = self.models, self._outbox.now
        since = {"the zygote": models.loading_since}
        if models.servers is not None:
            since |= {f"the {s.name}": s.started for s in models.servers.all if s.inventory is None}
        since |= {worker.name: worker.loading for worker in self.workers.all.values() if worker.ready is None}
        limit = models.find_loading_limit()
        return [
            f"{name} loads the models ({now - began:.0f} s; at most {limit:.0f} s)"
            for name, began in since.items()
            if began is not None
        ]

    def is_finished(self, now: float, pending: bool) -> bool:
        """Whether all is done that was asked for. pending: something else is under way that may bring more tasks."""
        if self.failure is not None:
            return True
        running, queue = bool(self.workers.list_busy()), self.scheduler.queue
        until = self.scheduler.drain_until
        if until is not None:
            return now > until or not (running or queue.has_closing)
        return self._closing and not (running or self.workers.is_measuring or queue or pending)

    def end(self, failure: BaseException | None) -> list[Complete]:
        """Every process has been ended: the tasks that are left end, with the failure if there was one."""
        self.models.reloading.end(failure or Stopped(STOPPED))
        given = [task for worker in self.workers.all.values() for task in worker.list_tasks()]
        left = [task for task in given if not task.cancelled]
        self.workers.all.clear()
        for task in [*left, *self.scheduler.queue.clear()]:
            self._outbox.do(Complete(task, None, failure or Stopped(STOPPED)))
        return [action for action in self._outbox.take() if isinstance(action, Complete)]

    def _fail_loading(self, reason: str, error: BaseException | None = None) -> None:
        self.workers.is_closed = True
        self._fail(error or LoadError(reason))

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
