"""Tasks: what workers are given to do, in which order, and what may become of them."""

from __future__ import annotations

import bisect
import heapq
import itertools
import pickle
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefork.errors import Stopped
from prefork.pool.call_options import USUAL, CallOptions

CANCELLED = "it was cancelled before it began"
ATTEMPTS = 2  # a task whose worker dies is tried once more


PER_AUDIO_SECOND = 20.0  # a large model on one slow core stays well below that
PER_TEXT_SECOND = 1.0  # the same for text, whose seconds are those that it would take to say it
_LOADING = 30  # times the base: half an hour, in which a model may be downloaded too
_LOADING_BYTES = 5e6  # a second: a slow disk of the network


class NotBegun(Stopped):
    """It was cancelled before it began."""


@dataclass(frozen=True, slots=True)
class HangLimit:
    """Seconds without progress after which a process counts as hung: a worker, as a function of the audio it works on.
    base: also of an answer that takes no time. most: for the audio, however much it is said to be."""

    base: float = 60.0
    per_audio_second: float = PER_AUDIO_SECOND
    most: float = 6 * 3600.0

    def seconds(self, audio: float) -> float:
        return self.base + min(self.per_audio_second * audio, self.most)

    def loading(self, size: int) -> float:
        """For models of so many bytes."""
        return _LOADING * self.base + size / _LOADING_BYTES


@dataclass(slots=True, eq=False)
class Task:
    """Something for one worker to do.

    order: smaller ones go first. engine: the one that it is for, if any. size: bytes that its largest segment takes as
    the model's configuration suggests; segment, audio: seconds of that segment, and of the whole recording. step:
    seconds of audio between two signs of life, None for a task that gives none and may take for ever. items: what it
    goes through, the last of its arguments; what came of each, in whatever order, is kept in `pieces`, and after a
    death only the others are done again. origins: of a bundle, the task that each item is from, and its number there.
    single: it was part of one that failed, and is no more to be part of any. attempts: deaths since the last sign of
    life. alone: nothing may run beside it, because it did not fit into memory. is_last: it has crashed forked workers,
    and is tried once more after all others. passed: when others first passed it. peak: bytes of its worker's own,
    the most that was seen. closing: still started while the run drains, because it saves what has been done. place:
    the part of a data set that its worker reads; a worker is given tasks of the part that it has already. options: of
    a call. ended: why a call is ended while it runs.

    Called in the supervisor's thread: begin, before it is given to a worker, returns False if nobody wants it any more;
    withdraw, if it was given and has not begun; done, with the pickled result or an exception.
    """

    name: str
    arguments: tuple[Any, ...]
    done: Callable[[Any, BaseException | None], None]
    order: tuple[int, ...] = ()
    label: str = ""
    engine: str = ""
    items: Sequence[Any] | None = None
    pieces: dict[int, bytes] = field(default_factory=dict)  # by the number of the item
    size: float = 0.0
    segment: float = 0.0
    audio: float = 0.0
    seconds: float = 0.0
    step: float | None = None
    closing: bool = False
    place: str = ""
    begin: Callable[[], bool] = lambda: True
    withdraw: Callable[[], None] = lambda: None
    attempts: int = 0
    alone: bool = False
    origins: Sequence[tuple[Task, int]] = ()
    single: bool = False
    passed: float | None = None
    peak: int = 0
    position: float = 0.0  # seconds in the recording
    cancelled: bool = False
    is_last: bool = False
    options: CallOptions = USUAL
    ended: BaseException | None = None

    def give_back(self) -> None:
        """A worker was given this call and has not begun it."""
        self.ended = None
        self.withdraw()

    @property
    def job(self) -> tuple[int, ...]:
        """The rank of the job that it is a task of."""
        return self.order[:1]

    def describe(self) -> bytes:
        """What the worker is sent: the task's name and its arguments. Items come with their numbers."""
        rest = () if self.items is None else (self.rest,)
        return pickle.dumps((self.name, (*self.arguments, *rest)), pickle.HIGHEST_PROTOCOL)

    @property
    def rest(self) -> list[tuple[int, Any]]:
        """Its items that are not done, with their numbers."""
        wanted = enumerate(self.items or ())
        return [(number, item) for number, item in wanted if number not in self.pieces and self._is_wanted(number)]

    def _is_wanted(self, number: int) -> bool:
        return not (self.origins and self.origins[number][0].cancelled)

    def take(self, number: int, piece: bytes) -> None:
        """What came of one of its items."""
        self.pieces[number] = piece
        self.attempts = 0
        if self.origins:
            part, own = self.origins[number]
            part.take(own, piece)

    def refuse(self, number: int) -> Task | None:
        """One of its items can never be done: that ends the task, or of a bundle the one that it is from. That one, if
        it was still wanted."""
        owner = self.origins[number][0] if self.origins else self
        if owner.cancelled:
            return None
        owner.cancelled = True
        return owner

    @property
    def parts(self) -> list[Task]:
        """The tasks whose items these are, if it is a bundle."""
        return list(dict.fromkeys(part for part, _ in self.origins))

    def split_parts(self) -> tuple[list[Task], list[Task]]:
        """Those that are still wanted: the finished ones, and the others."""
        return split_finished(self.parts)

    @property
    def is_finished(self) -> bool:
        return self.items is not None and len(self.pieces) == len(self.items)

    @property
    def finished(self) -> list[bytes]:
        """What came of its items, in their order."""
        return [self.pieces[number] for number in sorted(self.pieces)]

    @property
    def can_join(self) -> bool:
        """Whether it may be done in one go with others of its kind."""
        return self.items is not None and not (self.origins or self.single or self.alone or self.attempts)


def bundle(parts: Sequence[Task]) -> Task:
    """One task that does the work of several of a kind, whose items a worker then gets together."""

    def done(_: bytes | None, error: BaseException | None) -> None:
        finished, rest = split_finished(parts)
        for part in finished:
            part.done(b"", None)
        for part in rest:
            part.done(None, error)

    first = parts[0]
    seconds = sum(part.seconds for part in parts)
    rest = [(part, number, item) for part in parts for number, item in part.rest]
    return Task(
        first.name,
        first.arguments,
        done,
        order=first.order,
        label=f"{first.label} and {len(parts) - 1} more",
        engine=first.engine,
        place=first.place,
        items=[item for _, _, item in rest],
        size=sum(part.size for part in parts),
        segment=max(part.segment for part in parts),
        audio=seconds,
        seconds=seconds,
        step=seconds,
        origins=[(part, number) for part, number, _ in rest],
    )


def split_finished(parts: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Of the parts of a bundle that are still wanted, those that are finished, and those that are not."""
    wanted = [part for part in parts if not part.cancelled]
    return [part for part in wanted if part.is_finished], [part for part in wanted if not part.is_finished]


Select = Callable[[Iterator[Task]], Task | None]


def take_first(tasks: Iterator[Task]) -> Task | None:
    return next(tasks, None)


class Waiting(Protocol):
    """A call of a function that waits; there may be very many. rank: its place among all tasks of its priority."""

    rank: int

    @property
    def priority(self) -> int: ...

    def make_task(self) -> Task: ...


class TaskQueue:
    """Tasks that wait for a worker: those whose worker died first, then by their order.

    Calls are made tasks when it is their turn, and come in the order in which they were submitted, those of a higher
    priority first. Jobs have priority 0.
    """

    def __init__(self) -> None:
        self._calls: dict[int, deque[Waiting | Task]] = {}  # by priority; some at the front are made tasks already
        self._priorities: list[int] = []  # a heap of their opposites: there may be as many as calls
        self.calls = 0  # that wait
        self._waiting: list[tuple[tuple[int, ...], int, Task]] = []  # sorted
        self._again: deque[Task] = deque()
        self._numbers = itertools.count()
        self.splits: Counter[str] = Counter()  # that wait, by engine
        self.seconds: defaultdict[str, float] = defaultdict(float)  # of audio in tasks that wait and may be joined

    def push(self, *tasks: Task) -> None:
        for task in tasks:
            bisect.insort(self._waiting, (task.order, next(self._numbers), task))
            self._count(task, 1)

    def push_calls(self, calls: Iterable[Waiting]) -> None:
        for call in calls:
            self._find_line(call.priority).append(call)
            self.calls += 1

    def _find_line(self, priority: int) -> deque[Waiting | Task]:
        line = self._calls.get(priority)
        if line is None:
            line = self._calls[priority] = deque()
            heapq.heappush(self._priorities, -priority)
        return line

    def push_calls_back(self, calls: Sequence[Task]) -> None:
        """They were given to a worker that has not begun them."""
        for call in reversed(calls):
            self._find_line(call.options.priority).appendleft(call)
            self.calls += 1

    def pop_call(self) -> Task | None:
        """The next one, whatever else waits; None if there is none."""
        call = self.peek_call()
        if call is not None:
            line = self._calls[call.options.priority]
            line.popleft()
            self.calls -= 1
            if not line:
                del self._calls[-heapq.heappop(self._priorities)]
        return call

    def peek_call(self) -> Task | None:
        """The same, which still waits."""
        if not self._calls:
            return None
        line = self._calls[-self._priorities[0]]
        first = line[0]
        if not isinstance(first, Task):
            first = line[0] = first.make_task()
        return first

    def _count(self, task: Task, sign: int) -> None:
        self.splits[task.engine] += sign * (task.name == "split")
        self.seconds[task.engine] += sign * task.seconds

    def push_again(self, task: Task) -> None:
        """A task that was begun, and whose worker is gone."""
        self._again.append(task)

    def push_last(self, task: Task) -> None:
        """After all that wait."""
        task.order = (sys.maxsize,)
        self.push(task)

    def pop(self, fresh: bool, closing: bool, select: Select = take_first) -> Task | None:
        """The next one to start. fresh: there is a worker that has done nothing yet, which a second attempt needs.
        closing: only tasks that save what has been done. select: takes one of those that may start, in their order."""
        if not (self._waiting or self._again):  # the most frequent case, and many times a second
            call = self.peek_call()
            found = select(iter((call,))) if call is not None and not closing else None
            return self.pop_call() if found is not None else None
        while self._waiting and self._waiting[0][2].cancelled:
            self._remove(0)
        again = (task for task in self._again if fresh or not task.attempts)
        ready = itertools.chain(again, self._list_waiting())
        found = select(task for task in ready if not task.cancelled and (task.closing or not closing))
        if found is None:
            return None
        if found is self.peek_call():
            self.pop_call()
        elif found in self._again:
            self._again.remove(found)
        else:
            self._remove(next(i for i, entry in enumerate(self._waiting) if entry[2] is found))
        return found

    def _list_waiting(self) -> Iterator[Task]:
        """In their order; of the calls the first, because all take the same, as far as anybody knows."""
        call = self.peek_call()
        for order, _, task in self._waiting:
            if call is not None and (-call.options.priority, call.order) < (0, order):
                yield call
                call = None
            yield task
        if call is not None:
            yield call

    def _remove(self, place: int) -> None:
        self._count(self._waiting.pop(place)[2], -1)

    def pop_more(self, task: Task, seconds: float) -> list[Task]:
        """Those that can be done in one go with a task that was popped, in their order: so many seconds of audio with
        it at most."""
        left, found = seconds - task.seconds, list[Task]()
        for _, _, other in self._waiting:
            alike = (other.name, other.engine, other.place) == (task.name, task.engine, task.place)
            if alike and other.can_join and not other.cancelled:
                left -= other.seconds
                if left < 0:
                    break
                found.append(other)
        for other in found:
            self._remove(next(i for i, entry in enumerate(self._waiting) if entry[2] is other))
        return found

    def clear(self) -> list[Task]:
        """Empties the queue; those that were in it and not cancelled."""
        tasks = list(self)
        self._calls.clear()
        self._priorities.clear()
        self.calls = 0
        self._again.clear()
        self._waiting.clear()
        self.splits.clear()
        self.seconds.clear()
        return tasks

    def __iter__(self) -> Iterator[Task]:
        lines = itertools.chain.from_iterable(self._calls[priority] for priority in sorted(self._calls, reverse=True))
        calls = (call if isinstance(call, Task) else call.make_task() for call in lines)
        everything = itertools.chain(self._again, (task for _, _, task in self._waiting), calls)
        return (task for task in everything if not task.cancelled)

    def __bool__(self) -> bool:
        return bool(self._calls) or any(True for _ in self)

    def __len__(self) -> int:
        """About how many wait, for any thread; those that were cancelled are counted until it is their turn."""
        return self.calls + len(self._waiting) + len(self._again)

    @property
    def has_closing(self) -> bool:
        return any(task.closing for _, _, task in self._waiting) or any(task.closing for task in self._again)

    @property
    def wants_fresh(self) -> bool:
        return bool(self._again) and any(task.attempts and not task.cancelled for task in self._again)

    @property
    def wants_alone(self) -> bool:
        """Whether one waits that nothing may run beside."""
        return bool(self._again) and any(task.alone and not task.cancelled for task in self._again)
