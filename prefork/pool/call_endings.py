"""Calls that are ended while they run: past their timeout, or because they were cancelled. Pure: see
`prefork.pool.state`.

The worker interrupts the call, as Ctrl-C would: KeyboardInterrupt is raised where it is, so that `with` and `finally`
release what it holds. If that has not ended it after a while, its worker is killed. Either way the worker is replaced:
nobody knows what the call has left half done there.
"""

from __future__ import annotations

from prefork.errors import CallTimedOut, Stopped
from prefork.pool.actions import Outbox, TakeCallsBack
from prefork.pool.events import CallEnded
from prefork.pool.tasks import Task
from prefork.pool.workers import Worker, Workers

_GRACE_SECONDS = 2.0  # for a call that was interrupted to release what it holds


class CallEndings:
    """Nothing but the call itself is ended: what its worker was given besides is taken back first, and a worker that
    was told to interrupt a call is given no other."""

    def __init__(self, outbox: Outbox, workers: Workers) -> None:
        self._outbox = outbox
        self._workers = workers
        self._is_needed = False  # calls are looked at, from the first one that may have to be ended

    def watch(self, call: Task) -> None:
        """It is given to a worker."""
        self._is_needed = self._is_needed or call.options.timeout is not None

    def cancel(self, future: object) -> None:
        """The call that has this future is not wanted any more; it may have ended, or wait."""
        for worker in self._workers.list_busy():
            for call in worker.calls.values():
                if call.arguments[0].future is future and call.ended is None:
                    call.ended = Stopped(f"{call.label} was cancelled")
                    self._is_needed = True
        self.tick()

    def tick(self) -> None:
        """Ends what is to be ended by now."""
        if not self._is_needed:
            return
        now = self._outbox.now
        for worker in self._workers.list_busy():
            call = next(iter(worker.calls.values()), None)
            if call is None or worker.closed or worker.kill_reason:
                continue
            if worker.interrupted is not None:
                if now >= worker.interrupted + _GRACE_SECONDS:
                    reason = f"was killed, because its call went on for {_GRACE_SECONDS:.0f} s after it was interrupted"
                    self._workers.kill(worker, reason)
                continue
            limit = call.options.timeout
            if limit is not None and call.ended is None and now >= worker.begun + limit:
                call.ended = CallTimedOut(f"{call.label} was ended, because it had not ended after {limit:g} s")
            if call.ended is not None:
                self._end(worker)

    def _end(self, worker: Worker) -> None:
        """Ends the first of its calls, if that runs for certain: it may have ended just now, and the next one begun."""
        worker.is_ending = True
        if len(worker.calls) > 1:
            self._outbox.do(TakeCallsBack(worker.number))
        else:
            self._workers.interrupt(worker)

    def find_wait(self, most: float) -> float:
        """Seconds until there is something to end; at most so many."""
        if not self._is_needed:
            return most
        wait = most
        for worker in self._workers.list_busy():
            call = next(iter(worker.calls.values()), None)
            if call is None or worker.closed or worker.kill_reason:
                continue
            if worker.interrupted is not None:
                wait = min(wait, worker.interrupted + _GRACE_SECONDS - self._outbox.now)
            elif call.ended is None and call.options.timeout is not None:
                wait = min(wait, worker.begun + call.options.timeout - self._outbox.now)
        return max(0.0, wait)

    @staticmethod
    def explain(worker: Worker, call: Task, event: CallEnded) -> BaseException | None:
        """The error of a call that has answered: a result that came just in time counts."""
        if worker.interrupted is None or call.ended is None or event.result is not None:
            return event.error
        call.ended.__cause__ = event.error
        return call.ended
