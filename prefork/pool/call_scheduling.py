"""Calls, several at a time: how many of them a worker is given, and who gets what another has not begun. Pure."""

from __future__ import annotations

from prefork.pool.actions import Complete, Outbox, SendCalls, SendWorker, TakeCallsBack
from prefork.pool.call_endings import CallEndings
from prefork.pool.tasks import CANCELLED, NotBegun, Task, TaskQueue
from prefork.pool.workers import Worker, Workers
from prefork.wire.calls import CAN_TAKE_BACK, ContinueCall

_AHEAD_SECONDS = 0.005  # that the calls may take which a worker is given before it has answered the one that it runs
_MOST_AHEAD = 64
_SMOOTHING = 0.1  # the weight of the last call, of all that came before


class CallScheduler:
    """As long as calls take next to no time, a worker has some more of them, so that it need not wait for the
    supervisor."""

    def __init__(self, outbox: Outbox, workers: Workers, queue: TaskQueue) -> None:
        self.endings = CallEndings(outbox, workers)
        self._outbox = outbox
        self._workers = workers
        self._queue = queue
        self._pace = _AHEAD_SECONDS  # seconds that a call takes, the last ones above all

    def give(self, worker: Worker, call: Task, idle: int) -> None:
        """A call, and more if there are enough. idle: other workers, each of which gets one first."""
        ahead = 0 if call.attempts or self._fills(call) else self._count_ahead(worker, idle)
        self._send(worker, [call, *self._pop(ahead)])

    def give_ahead(self) -> None:
        """All workers have something to do: those that run short calls get more of them in time."""
        for worker in self._workers.list_busy():
            ahead = len(worker.calls) - 1
            is_quick = self._outbox.now - worker.last_message < _AHEAD_SECONDS
            if ahead >= 0 and worker.is_open and is_quick and worker.task and not self._fills(worker.task):
                count = self._count_ahead(worker)
                if count > ahead:  # not one by one
                    self._send(worker, self._pop(count))

    def end(self, worker: Worker, number: int) -> Task:
        """It has answered one of its calls, which is this one."""
        now = self._outbox.now
        self._pace += _SMOOTHING * (now - worker.last_message - self._pace)
        worker.last_message = worker.begun = now
        worker.tasks += 1
        return worker.end_call(number)

    @staticmethod
    def _fills(call: Task) -> bool:
        """Whether its worker is given nothing else meanwhile."""
        return call.alone or call.options.stream

    def go_on(self, future: object, count: int) -> None:
        """So many of the things that the call has yielded which has this future were taken."""
        for worker in self._workers.list_busy():
            for number, call in worker.calls.items():
                if call.arguments[0].future is future:
                    self._outbox.do(SendWorker(worker.number, ContinueCall(number, count)))

    def take_back(self) -> None:
        """What workers have not begun may be begun by others, or never."""
        for worker in self._workers.list_busy():
            if len(worker.calls) > 1:
                self._outbox.do(TakeCallsBack(worker.number))

    def _count_ahead(self, worker: Worker, idle: int = 0) -> int:
        """Calls that a worker may be given beyond the one that it runs: as many as its share of what waits."""
        most = min(_MOST_AHEAD, int(_AHEAD_SECONDS / max(self._pace, 1e-6))) if CAN_TAKE_BACK else 1
        share = -(-(self._queue.calls - idle) // max(1, len(self._workers.all)))
        left = min(most - 1 - max(0, len(worker.calls) - 1), share)
        if (limit := self._workers.max_tasks) is not None:
            left = min(left, limit - worker.tasks - max(1, len(worker.calls)))
        return max(0, left)

    def _pop(self, count: int) -> list[Task]:
        """The next ones, so many at most, that somebody still wants."""
        found: list[Task] = []
        while len(found) < count and (task := self._queue.peek_call()) is not None and not task.options.stream:
            self._queue.pop_call()
            if task.begin():
                found.append(task)
            else:
                self._outbox.do(Complete(task, None, NotBegun(CANCELLED)))
        return found

    def _send(self, worker: Worker, calls: list[Task]) -> None:
        if not calls:
            return
        self._outbox.do(SendCalls(worker.number, worker.given, calls, at_once=not worker.calls))
        if not worker.calls:
            worker.begun = self._outbox.now
        for call in calls:
            self.endings.watch(call)
            worker.calls[worker.given] = call
            worker.given += 1
        worker.task = worker.task or calls[0]
