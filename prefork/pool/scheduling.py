"""The scheduler of a pool: which worker gets which task, and what becomes of it. Pure: see `prefork.pool.state`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from prefork.engines.base import LoadError
from prefork.errors import OutOfMemory, WorkerDied
from prefork.memory.admission import Holder, Level
from prefork.pool.actions import Complete, Interrupt, Outbox, PassOn, SendWorker
from prefork.pool.call_scheduling import CallScheduler
from prefork.pool.events import CallEnded, CallGave
from prefork.pool.models import Models
from prefork.pool.nearness import put_near_first
from prefork.pool.policy import Policy
from prefork.pool.tasks import ATTEMPTS, CANCELLED, HangLimit, NotBegun, Task, TaskQueue, bundle
from prefork.pool.workers import Death, Worker
from prefork.wire.exceptions import unpickle_error
from prefork.wire.messages import (
    ItemFailed,
    RunTask,
    TaskDone,
    TaskFailed,
    TaskOutOfMemory,
    TaskProgress,
    TaskUsage,
    Usage,
)

_PATIENCE = 60.0  # seconds that a run waits for memory with nothing to do, before it tries all the same
_SETTLE_SECONDS = 1.0  # for the memory of what has just ended to be there again
_MOST_GROWTH = 64_000_000  # bytes that a worker may keep beyond twice what it had after its first task

FromTask = TaskProgress | ItemFailed | TaskDone | TaskFailed | TaskOutOfMemory | TaskUsage


def _ignore(*_: object) -> None: ...


class Scheduler:
    """Gives tasks to workers. fail: called with an error that every other task would meet too, which ends the run."""

    def __init__(
        self,
        outbox: Outbox,
        models: Models,
        policy: Policy,
        hang_limit: HangLimit,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.queue = TaskQueue()
        self.steps: Counter[tuple[str, str]] = Counter()  # seconds of all workers together, by engine and step of a job
        self.drain_until: float | None = None
        self._outbox = outbox
        self._models = models
        self._workers = models.workers
        self._policy = policy
        self._hang_limit = hang_limit
        self._fail = fail
        self._unfit_since: float | None = None  # since when nothing has started because nothing fits
        self._growth = _MOST_GROWTH
        self.calls = CallScheduler(outbox, self._workers, self.queue)
        self._is_cancelling = False

    @property
    def is_draining(self) -> bool:
        return self.drain_until is not None

    def drain(self, until: float) -> None:
        """Starts nothing new but what saves work that is done."""
        self.drain_until = min(until, self.drain_until or until)
        self._workers.is_closed = True
        self.calls.take_back()
        self._outbox.do(Interrupt())

    def cancel_waiting(self) -> None:
        self._is_cancelling = True
        self.calls.take_back()
        for task in self.queue.clear():
            self._outbox.do(Complete(task, None, NotBegun(CANCELLED)))

    # -- what workers report -----------------------------------------------------------------------------------

    def handle(self, worker: Worker, message: FromTask) -> None:
        match message:
            case TaskProgress(item, position, result):
                if worker.task is not None:
                    worker.task.position = position
                    worker.task.take(item, result)
                    self._models.note_success(worker)
            case ItemFailed(item, error):
                if worker.task is not None:
                    self._refuse_item(worker.task, item, unpickle_error(error))
            case TaskUsage(usage, steps):
                self._handle_usage(worker, usage, steps)
            case TaskDone() | TaskFailed() | TaskOutOfMemory():
                self._handle_end(worker, message)

    def handle_call(self, worker: Worker, event: CallEnded) -> None:
        """What came of one of the calls that it was given."""
        task = self.calls.end(worker, event.number)
        self._models.note_success(worker)
        error = self.calls.endings.explain(worker, task, event)
        if worker.interrupted is not None:
            self._workers.retire(worker)
        elif event.reason:
            reason = f"{worker.name} (pid {worker.pid}): {event.reason}"
            self.lose(Death(task, reason, out_of_memory=True))
            return
        if error is not None:
            self._policy.lose(task, str(error), out_of_memory=False)
        elif not worker.calls:
            blank = Task(task.name, (), _ignore, label=task.label)  # what has come of the other is the program's alone
            worker.measured = (blank, worker.predicted)
        self._outbox.do(Complete(task, event.result, error))

    def pass_on(self, worker: Worker, event: CallGave) -> None:
        """What a call has yielded, or reported; nothing of one that has ended for who asked."""
        call = worker.calls[event.number]
        if call.ended is None:
            self._outbox.do(PassOn(call, event.thing, event.yielded))

    def push_back(self, worker: Worker, numbers: Sequence[int]) -> None:
        """A worker will not begin these of the calls that it was given."""
        calls = [worker.end_call(number) for number in numbers]
        for call in calls:
            call.give_back()
            if self._is_cancelling:
                self._outbox.do(Complete(call, None, NotBegun(CANCELLED)))
        if calls and not self._is_cancelling:
            self.queue.push_calls_back(calls)
            self.calls.endings.tick()
            self.dispatch()

    def _refuse_item(self, task: Task, item: int, error: BaseException) -> None:
        """One of the items of a worker's task can never be done; it goes on with those of other jobs."""
        self._policy.lose(task, str(error), out_of_memory=False)
        self._check_fatal(error)
        owner = task.refuse(item)
        if owner is not None:
            self._outbox.do(Complete(owner, None, error))

    def _handle_end(self, worker: Worker, message: TaskDone | TaskFailed | TaskOutOfMemory) -> None:
        task, worker.task = worker.task, None
        worker.tasks += 1
        self._models.note_success(worker)
        if task is None:
            return
        worker.measuring = True
        worker.measured = (task, worker.predicted) if isinstance(message, TaskDone) else None
        match message:
            case TaskOutOfMemory(reason):
                self.lose(Death(task, f"{worker.name} (pid {worker.pid}): {reason}", out_of_memory=True))
            case _ if task.cancelled:
                return
            case TaskDone(result):
                self._outbox.do(Complete(task, result, None))
            case TaskFailed(pickled):
                error = unpickle_error(pickled)
                self._policy.lose(task, str(error), out_of_memory=False)
                if task.name != "call":
                    self._check_fatal(error)
                if task.parts:
                    self._separate(task)
                else:
                    self._outbox.do(Complete(task, None, error))

    def _check_fatal(self, error: BaseException) -> None:
        """Ends the run if every other job would meet the error too."""
        if isinstance(error, LoadError):
            self._fail(error)

    def _handle_usage(self, worker: Worker, usage: Usage | None, steps: Mapping[tuple[str, str], float]) -> None:
        """What its last task took, and what it has kept of it."""
        self.steps.update(dict(steps))
        worker.measuring = False
        if usage is None:
            return
        if worker.measured is not None:
            task, predicted = worker.measured
            self._policy.measure(task, worker.name, predicted, usage)
            worker.measured = None
        self._policy.note_memory(worker.name, worker.pid, usage.memory)
        self._policy.look_again()
        if worker.task:  # it was given on the strength of what the worker had before
            worker.predicted += usage.memory.uss - worker.idle_bytes
        worker.memory, worker.idle_bytes = usage.memory, usage.memory.uss
        worker.first_idle_bytes = worker.first_idle_bytes or worker.idle_bytes

    def lose(self, death: Death) -> None:
        """A task has lost its worker. One that did not fit into memory has it all to itself the next time."""
        task, reason, out_of_memory = death.task, death.reason, death.out_of_memory
        self._policy.lose(task, reason, out_of_memory)
        if task.cancelled:
            return
        if task.ended is not None:
            self._outbox.do(Complete(task, None, task.ended))
            return
        if not task.options.retry:
            kind = OutOfMemory if out_of_memory else WorkerDied
            self._outbox.do(Complete(task, None, kind(f"{reason}; the call is not tried again (retry=False)")))
            return
        if task.parts:
            self._outbox.notify(f"{task.label}: {reason}; retrying them one by one")
            self._separate(task)
            return
        if death.crashed and self._models.note_crash(task, reason):
            task.attempts = 0
            self.queue.push_again(task)
            return
        task.attempts += not out_of_memory
        if out_of_memory and not task.alone:
            task.alone = True
            self._outbox.notify(f"{task.label}: {reason}; retrying it with no other task running")
            self.queue.push_again(task)
        elif out_of_memory:
            text = f"{reason}, with no other task running; {self._policy.explain(task)}"
            self._outbox.do(Complete(task, None, OutOfMemory(text)))
        elif task.attempts < ATTEMPTS:
            self._outbox.notify(f"{task.label}: {reason}; retrying it on a new worker")
            self.queue.push_again(task)
        elif death.crashed and self._models.may_stop_forking and not task.is_last:
            task.is_last = True  # by then it shows whether the others crash too
            self._outbox.notify(f"{task.label}: {reason}; retrying it after all others")
            self.queue.push_last(task)
        else:
            error = WorkerDied(f"{reason}; its worker died twice with nothing done in between")
            self._outbox.do(Complete(task, None, error))

    def start_over(self, task: Task, reason: str) -> None:
        """It was begun, and was not to blame for its end."""
        if task.ended is not None or not task.options.retry:
            self.lose(Death(task, reason, out_of_memory=False))
        else:
            self.queue.push_again(task)

    def give_back(self, tasks: Sequence[Task], unbegun: Sequence[Task]) -> None:
        """Their workers have ended with the zygote. unbegun: calls that they were given too."""
        for call in unbegun:
            call.give_back()
        self.queue.push_calls_back(unbegun)
        for task in tasks:
            self.start_over(task, f"{task.label}: its worker ended with the zygote")

    def _separate(self, task: Task) -> None:
        """Several were done in one go, and one of them has ended it: those that were not done are done one by one."""
        finished, rest = task.split_parts()
        for part in finished:
            self._outbox.do(Complete(part, b"", None))
        for part in rest:
            part.single = True
            self.queue.push_again(part)

    # -- who gets what -----------------------------------------------------------------------------------------

    def kill_hung(self) -> None:
        servers = self._models.servers
        for worker in self._workers.list_busy():
            task = worker.task
            if task is None or task.step is None or worker.kill_reason:
                continue
            limit = self._hang_limit.seconds(task.step)
            if servers is not None and servers.is_busy(worker):
                worker.last_message = self._outbox.now
            if self._outbox.now - worker.last_message > limit:
                self._workers.kill(worker, f"made no progress for {limit:.0f} s and was killed")

    def dispatch(self) -> None:
        """Gives idle workers what may start."""
        idle = self._workers.list_idle()
        if not self.is_draining:
            idle = self._replace_used(idle)
        while idle and self.queue and self._start_next(idle):
            pass
        if not idle and self.queue.calls and self._may_give_ahead:
            self.calls.give_ahead()
        elif idle and not self.queue.calls:
            self.calls.take_back()
        if not idle or self.is_draining:
            return
        workers = self._workers.all.values()
        if self.queue.wants_fresh and not any(w.tasks == 0 or w.retired for w in workers):
            self._workers.retire(idle[0])  # a second attempt needs a new one
        elif self.queue and not self._workers.list_busy():
            self._start_unfit(next((worker for worker in idle if worker.tasks == 0), idle[0]))

    @property
    def _may_give_ahead(self) -> bool:
        return not (self.is_draining or self.queue.wants_alone or self._policy.level > Level.EASY)

    def _replace_used(self, idle: list[Worker]) -> list[Worker]:
        """Those that are not."""
        limit = self._workers.max_tasks
        for worker in idle:
            if limit is not None and worker.tasks >= limit:
                self._workers.retire(worker)
            elif worker.idle_bytes > 2 * worker.first_idle_bytes + self._growth:
                self._growth *= 2  # what each of them comes to keep is not worth replacing them for ever
                self._outbox.notify(f"{worker.name}: still used {worker.idle_bytes / 1e6:.0f} MB while idle; replaced")
                self._workers.retire(worker)
        return [worker for worker in idle if worker.is_open]

    def _start_next(self, idle: list[Worker]) -> bool:
        """Gives one of the idle workers the next task that may start; False if none may."""
        fresh = next((worker for worker in idle if worker.tasks == 0), None)
        worker = fresh or idle[0]
        task = self.queue.pop(fresh is not None, self.is_draining, partial(self._select, worker=worker))
        if task is None and not self._workers.list_busy():  # then nobody makes more of what others wait for
            select = partial(self._select, waiting=False, worker=worker)
            task = self.queue.pop(fresh is not None, self.is_draining, select)
        if task is None:
            return False
        if task.begin():
            idle.remove(worker)
            self._unfit_since = None
            self._give(worker, self._join_others(task), len(idle))
        else:
            self._outbox.do(Complete(task, None, NotBegun(CANCELLED)))
        return True

    def _join_others(self, task: Task) -> Task:
        """The task, with others of its engine that it takes in one go. Towards the end of a run every worker gets a
        share of what is left."""
        most = self._batches.get(task.engine, 0.0)
        if not most or not task.can_join:
            return task
        if not self.queue.splits[task.engine]:
            most = min(most, (task.seconds + self.queue.seconds[task.engine]) / self._workers.plan.workers)
        parts = [task, *self.queue.pop_more(task, most)]
        while len(parts) > 1:
            joined = bundle(parts)
            if self._policy.select(iter([joined]), self._list_holders()) is not None:
                return joined
            half = len(parts) // 2
            self.queue.push(*parts[half:])
            parts = parts[:half]
        return task

    @property
    def _batches(self) -> Mapping[str, float]:
        """By engine: seconds of audio that it takes in one go; 0 if it does one segment after the other."""
        return self._models.inventory.batches if self._models.inventory is not None else {}

    def _list_filling(self) -> set[str]:
        """Engines whose next batch is not full yet, while more for it is about to come. Servers fill their own."""
        if self._models.servers is not None or not self._batches:
            return set()
        queue = self.queue
        splitting = {w.task.engine for w in self._workers.list_busy() if w.task and w.task.name == "split"}
        coming = (engine for engine in self._batches if queue.splits[engine] or engine in splitting)
        return {engine for engine in coming if queue.seconds[engine] < self._batches[engine]}

    def _select(self, tasks: Iterator[Task], waiting: bool = True, worker: Worker | None = None) -> Task | None:
        """One that must run alone has to wait for all others, and they for it. waiting: for fuller batches. worker:
        that it is for."""
        if self.is_draining:  # only what saves the work that is done, and takes next to nothing
            return next(tasks, None)
        busy = self._workers.list_busy()
        if any(other.task.alone for other in busy if other.task):
            return None
        if self.queue.wants_alone:
            wait = busy or self._workers.is_measuring or self._policy.level > Level.EASY
            return None if wait else next((task for task in tasks if task.alone), None)
        filling = self._list_filling() if waiting else set()
        ready: Iterator[Task] = (task for task in tasks if not (task.engine in filling and task.can_join))
        if worker is not None:
            others = [other.near for other in self._workers.all.values() if other is not worker]
            ready = put_near_first(ready, worker.near, others)
        return self._policy.select(ready, self._list_holders())

    def _list_holders(self) -> list[Holder]:
        return [Holder(w.memory.uss if w.memory else 0, w.predicted) for w in self._workers.list_busy()]

    def _start_unfit(self, worker: Worker) -> None:
        """Nothing runs, and nothing that waits fits: better times are waited for, but not for ever. After that, one
        task at a time is tried until they come: a prediction may be wrong, and nothing else can be done."""
        if self._unfit_since is None:
            self._unfit_since = self._outbox.now
        patience = _PATIENCE if self._policy.level > Level.EASY else _SETTLE_SECONDS
        if self._outbox.now - self._unfit_since < patience:
            return
        task = self.queue.pop(worker.tasks == 0, closing=False)
        if task is None or not task.begin():
            return
        why = self._policy.explain(task)
        self._outbox.notify(f"{task.label}: runs alone, because it may not fit into memory: {why}")
        task.alone = True
        self._give(worker, task)

    def _give(self, worker: Worker, task: Task, idle: int = 0) -> None:
        """idle: workers besides this one."""
        worker.task, worker.last_message, task.position = task, self._outbox.now, 0.0
        worker.near.note(task)
        worker.predicted = self._policy.admit(task, worker.name, worker.idle_bytes)
        if task.name == "call":
            self.calls.give(worker, task, idle)
        else:
            self._outbox.do(SendWorker(worker.number, RunTask(task.describe())))
