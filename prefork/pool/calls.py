"""Calls: what a program has submitted, while it waits, and the future it waits for.

A hundred thousand of them may wait: a future of the standard library takes 1.5 kB from the start, because of its lock
and its lists, and a task has a field for everything that may become of a job. Here neither is made before it is needed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from dataclasses import dataclass
from typing import Any, TypeVar

from prefork.platform_matrix.systems import SYSTEM
from prefork.pool.call_options import CallOptions, tell
from prefork.pool.tasks import NotBegun, Task
from prefork.wire.blocks import Place
from prefork.wire.pickling import Pickled

T = TypeVar("T")
_lock = threading.RLock()  # of all futures that have no condition yet; what is collected meanwhile may ask for it too
_logger = logging.getLogger("prefork")


class CallFuture(Future[T]):
    """As in the standard library. What nobody waits for yet has no condition and no lists. owner: of the runtime that
    it is of."""

    __slots__ = ("owner",)
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None

    def __init__(self, owner: object) -> None:
        """Nothing else is made here."""
        self.owner = owner

    def __getattr__(self, name: str) -> Any:
        """Makes what somebody asks for the first time."""
        if name not in ("_condition", "_waiters", "_done_callbacks"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _lock:
            made = self.__dict__
            if "_condition" not in made:
                made["_waiters"], made["_done_callbacks"] = [], []
                made["_condition"] = threading.Condition()
            return made[name]

    def result(self, timeout: float | None = None) -> T:
        if self._state == FINISHED and self._exception is None:
            found: T = self._result
            return found
        return super().result(timeout)

    def set_running_or_notify_cancel(self) -> bool:
        return self._change(PENDING, RUNNING) or super().set_running_or_notify_cancel()

    def set_result(self, result: T) -> None:
        with _lock:
            if self._state == RUNNING and "_condition" not in self.__dict__:
                self._result = result
                self._state = FINISHED
                return
        super().set_result(result)

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError("a future is its own process's: wait for its result, and pass that on")

    def withdraw(self) -> None:
        """It was about to run and has not begun: it can be cancelled again."""
        if not self._change(RUNNING, PENDING):
            with self._condition:
                if self._state == RUNNING:
                    self._state = PENDING

    def abandon(self) -> bool:
        """Cancels it, though it may run; False if it has ended."""
        if not self.cancel():
            self.withdraw()
            if not self.cancel():
                return False
        return True

    def _change(self, before: str, after: str) -> bool:
        """False if somebody waits, who has to be told under the condition."""
        with _lock:
            if self._state != before or "_condition" in self.__dict__:
                return False
            self._state = after
            return True


class Call:
    """One call of a function in a worker.

    pickled: function and arguments; their large buffers until they have been placed. places: where those lie, for the
    worker, from the first attempt to the end.
    """

    __slots__ = ("future", "label", "options", "pickled", "places", "rank")

    def __init__(self, future: CallFuture[Any], pickled: Pickled, label: str, rank: int, options: CallOptions) -> None:
        self.future = future
        self.pickled = pickled
        self.label = label
        self.rank = rank
        self.options = options
        self.places: Sequence[Place] = ()

    @property
    def priority(self) -> int:
        return self.options.priority

    def make_task(self) -> Task:
        return Task(
            "call",
            (self,),
            self.end,
            (self.rank,),
            self.label,
            begin=self.begin,
            withdraw=self.future.withdraw,
            options=self.options,
        )

    def begin(self) -> bool:
        """From here on it cannot be cancelled; False if it was. A second attempt finds it running."""
        state = self.future._state
        if state == RUNNING:
            return True
        return state != CANCELLED_AND_NOTIFIED and self.future.set_running_or_notify_cancel()

    def take_report(self, report: Pickled) -> None:
        """What it has reported while it runs."""
        listener = self.options.on_progress
        if listener is not None:
            tell(lambda made: listener(made.load()), self.label, report)

    def take_yielded(self, item: Pickled) -> None:
        """What it has yielded while it runs; nobody asks for that."""

    def end(self, result: Any, error: BaseException | None) -> None:
        """result: pickled."""
        future = self.future
        value: Any = None
        if error is None:
            try:
                value = result.load()
            except BaseException as problem:  # noqa: BLE001  what cannot be unpickled here is this call's error alone
                error = problem
        try:
            if isinstance(error, NotBegun):
                future.withdraw()
                future.cancel()
            if not self.begin():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        except InvalidStateError:
            return  # it was cancelled this moment
        except BaseException:  # what a callback raises that is no Exception: of no concern to the other calls
            _logger.exception("a callback of a future has failed")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of something that was yielded and cannot be unpickled here."""

    error: BaseException


class StreamedCall(Call):
    """One of a generator function. take: gets what it yields, in the supervisor's thread."""

    __slots__ = ("_take",)

    def __init__(
        self,
        future: CallFuture[Any],
        pickled: Pickled,
        label: str,
        rank: int,
        options: CallOptions,
        take: Callable[[Any], None],
    ) -> None:
        super().__init__(future, pickled, label, rank, options)
        self._take = take

    def take_yielded(self, item: Pickled) -> None:
        try:
            thing = item.load()
        except BaseException as error:  # noqa: BLE001  it is the stream's error
            thing = Unreadable(error)
        self._take(thing)


# Whoever held it at the fork is not in the child to release it.
SYSTEM.run_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]
