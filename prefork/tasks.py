"""Tasks: what workers are given to do, in which order, and what may become of them."""

from __future__ import annotations

import heapq
import itertools
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

ATTEMPTS = 2  # a task whose worker dies is tried once more


class WorkerDied(Exception):
    """A task's worker died, twice: by a signal, an exit, or because it made no progress and was killed."""


class Stopped(Exception):
    """The run was stopped before the task was done."""


@dataclass(frozen=True, slots=True)
class HangLimit:
    """Seconds without progress after which a worker counts as hung, as a function of the audio it works on."""

    base: float = 60.0
    per_audio_second: float = 20.0  # a large model on one slow core stays well below that

    def seconds(self, audio: float) -> float:
        return self.base + self.per_audio_second * audio


@dataclass(slots=True, eq=False)
class Task:
    """Something for one worker to do.

    order: smaller ones go first. step: seconds of audio between two signs of life, None for a task that gives none
    and may take for ever. items: what it goes through one by one, the last of its arguments; what came of each is
    kept in `finished`, and after a death only the others are done again. attempts: deaths since the last sign of
    life. closing: still started while the run drains, because it saves what has been done. begin: asked before it is
    given to a worker; False if nobody wants it any more. done: called with the pickled result, or an exception. Both
    in the supervisor's thread.
    """

    name: str
    arguments: tuple[Any, ...]
    done: Callable[[bytes | None, BaseException | None], None]
    order: tuple[int, ...] = ()
    label: str = ""
    items: Sequence[bytes] | None = None
    finished: list[bytes] = field(default_factory=list)
    step: float | None = None
    closing: bool = False
    begin: Callable[[], bool] = lambda: True
    attempts: int = 0
    position: float = 0.0  # seconds in the recording
    cancelled: bool = False

    def describe(self) -> bytes:
        """What the worker is sent: the task's name and its arguments."""
        rest = () if self.items is None else (self.items[len(self.finished) :],)
        return pickle.dumps((self.name, (*self.arguments, *rest)), pickle.HIGHEST_PROTOCOL)


class TaskQueue:
    """Tasks that wait for a worker: those whose worker died first, then by their order."""

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[int, ...], int, Task]] = []
        self._again: deque[Task] = deque()
        self._numbers = itertools.count()

    def push(self, *tasks: Task) -> None:
        for task in tasks:
            heapq.heappush(self._waiting, (task.order, next(self._numbers), task))

    def push_again(self, task: Task) -> None:
        """A task that was begun, and whose worker is gone."""
        self._again.append(task)

    def pop(self, fresh: bool, closing: bool) -> Task | None:
        """The next one to start. fresh: there is a worker that has done nothing yet, which a second attempt needs.
        closing: only tasks that save what has been done."""
        for task in list(self._again):
            if task.cancelled or ((fresh or not task.attempts) and (task.closing or not closing)):
                self._again.remove(task)
                if not task.cancelled:
                    return task
        passed_over: list[tuple[tuple[int, ...], int, Task]] = []
        found: Task | None = None
        while self._waiting and found is None:
            entry = heapq.heappop(self._waiting)
            if closing and not entry[2].closing:
                passed_over.append(entry)
            elif not entry[2].cancelled:
                found = entry[2]
        for entry in passed_over:
            heapq.heappush(self._waiting, entry)
        return found

    def clear(self) -> list[Task]:
        """Empties the queue; those that were in it and not cancelled."""
        tasks = [*self._again, *(task for _, _, task in sorted(self._waiting, key=lambda entry: entry[:2]))]
        self._again.clear()
        self._waiting.clear()
        return [task for task in tasks if not task.cancelled]

    def __bool__(self) -> bool:
        return any(not task.cancelled for task in self._all())

    @property
    def has_closing(self) -> bool:
        return any(task.closing and not task.cancelled for task in self._all())

    @property
    def wants_fresh(self) -> bool:
        return any(task.attempts and not task.cancelled for task in self._again)

    def _all(self) -> itertools.chain[Task]:
        return itertools.chain(self._again, (task for _, _, task in self._waiting))


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in a worker, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def pickle_error(error: BaseException, trace: str) -> bytes:
    """For the way from a worker to who asked: the exception, what it says, and its traceback."""
    try:
        itself = pickle.dumps(error)
    except Exception:  # noqa: BLE001  an exception class may fail to pickle in any way it likes
        itself = b""
    return pickle.dumps((itself, f"{type(error).__name__}: {error}", trace))


def unpickle_error(data: bytes) -> BaseException:
    """The exception itself, or, if it does not survive the way, a RuntimeError that says the same."""
    itself, text, trace = pickle.loads(data)
    try:
        error = pickle.loads(itself)
    except Exception:  # noqa: BLE001  nor need it be one that can be made again
        error = RuntimeError(text)
    error.__cause__ = RemoteTraceback(trace)
    return error  # type: ignore[no-any-return]
