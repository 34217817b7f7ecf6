"""`Runtime.map`: calls for what iterables yield, with their results in order.

What has a length is submitted at once, as `ProcessPoolExecutor` does it. What has none (a generator,
itertools.count()) is taken in the consumer's thread, a window ahead of what has been consumed, so that memory stays
constant. It is done to its end all the same: what has not been taken is a `Rest`, which the supervisor expects, so that
no worker ends before it. When its iterator is dropped before the first result, the runtime is shut down or the program
ends, one thread of the runtime takes and submits what is left; for ever, if it has no end. An iterator that was begun,
and then closed or dropped, cancels what has not begun. `buffersize` is as in Python 3.14: nothing is done that nobody
asks for.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from typing import Any, Protocol

from prefork.wire.wrapped import ChunkOf

WINDOW = 1024  # calls, or chunks, ahead of what was consumed: enough to keep many workers busy with tiny ones
_MOMENT = 0.05  # seconds
_logger = logging.getLogger("prefork")

Submit = Callable[..., "Future[Any]"]
Arguments = Iterator[tuple[Any, ...]]


class Ends(Protocol):
    """What a supervisor is asked to wait for."""

    interrupted: threading.Event

    def expect(self) -> None: ...

    def deliver(self, action: Callable[[], None]) -> None: ...


class Mappings:
    """Those of one runtime."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._lock = threading.RLock()  # `finish` may be called wherever a runtime is collected
        self._rests: weakref.WeakSet[Rest] = weakref.WeakSet()
        self._left: queue.SimpleQueue[Rest | None] = queue.SimpleQueue()  # put() may be called wherever one is dropped
        self._thread: threading.Thread | None = None
        self._local = threading.local()

    def map(
        self,
        submit: Submit,
        function: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """submit: the runtime's; the iterator keeps it until it has taken everything."""
        _check(chunksize, buffersize)
        until = None if timeout is None else time.monotonic() + timeout
        arguments: Arguments = zip(*iterables, strict=False)
        if chunksize > 1:
            function, arguments = ChunkOf(function), _cut(arguments, chunksize)
        has_end = buffersize is not None or not iterables or any(map(_has_length, iterables))
        futures: _Buffer | Rest
        if has_end:
            futures = _Buffer(arguments, partial(submit, function), buffersize)
            results = _list_results(futures, until)
        else:
            futures = self._follow(Rest(arguments, partial(submit, function), self._local, self._ends))
            results = _list_results(futures, until)
            weakref.finalize(results, _leave, futures, self._left).atexit = False
        return results if chunksize == 1 else _unpack(results)

    def _follow(self, rest: Rest) -> Rest:
        """Has it taken to its end, whoever consumes it."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=_finish, args=(self._left,), name="prefork-map", daemon=True)
                self._thread.start()
            self._rests.add(rest)
        rest.begin()
        return rest

    @property
    def is_submitting(self) -> bool:
        """Whether this thread submits what was given to `map` before: it may, after a shutdown."""
        return getattr(self._local, "is_submitting", False)

    def finish(self) -> None:
        """Nothing else is to come: what has not been taken is taken now."""
        with self._lock:
            for rest in list(self._rests):
                self._left.put(rest)
        self._left.put(None)

    def cancel(self) -> None:
        """What has not been taken never will be."""
        with self._lock:
            rests = list(self._rests)
        for rest in rests:
            rest.cancel()


def _check(chunksize: int, buffersize: int | None) -> None:
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def _has_length(iterable: Iterable[Any]) -> bool:
    try:
        len(iterable)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # it has none, or what it is made of has none
        return False
    return True


def _cut(arguments: Arguments, size: int) -> Arguments:
    while chunk := tuple(itertools.islice(arguments, size)):
        yield (chunk,)


class _Buffer:
    """What was submitted and not consumed: everything, or with `size` so many calls, as Python 3.14 has it."""

    def __init__(self, arguments: Arguments, submit: Submit, size: int | None) -> None:
        self._arguments = arguments
        self._submit = None if size is None else submit  # with it goes the runtime, which then may end
        self._futures = deque(submit(*given) for given in itertools.islice(arguments, size))

    def refill(self) -> bool:
        """Takes one more, in place of the next that is popped; False if there is none to pop."""
        if self._futures and self._submit is not None:
            for given in itertools.islice(self._arguments, 1):
                self._futures.append(self._submit(*given))
        return bool(self._futures)

    def pop(self) -> Future[Any]:
        return self._futures.popleft()

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()


class Rest:
    """What of an iterable without a length was submitted, and what was not taken yet."""

    def __init__(self, arguments: Arguments, submit: Submit, local: threading.local, ends: Ends) -> None:
        self._arguments = arguments
        self._submit: Submit | None = submit  # until all was taken, or nothing more will be
        self._local = local  # of the runtime's: says whether a thread is submitting
        self._ends = ends
        self._lock = threading.RLock()  # the iterable, which is called with it, may come back here
        self._futures: deque[Future[Any]] = deque()
        self._error: BaseException | None = None  # raised after the results of what was yielded before it
        self._is_known = False  # the first window was taken: to take more is allowed after a shutdown
        self._is_begun = False  # somebody consumes
        self._is_left = False  # nobody ever will

    def begin(self) -> None:
        """Takes the first window. Raises what the iterable raises, or submitting it."""
        self._ends.expect()
        self._fill()
        if self._error is not None:
            raise self._error
        self._is_known = True

    def _fill(self) -> None:
        """Up to a window; no longer than a moment if a result is there to be had meanwhile."""
        until = time.monotonic() + _MOMENT
        while len(self._futures) < WINDOW and self._take():
            if time.monotonic() > until and self._futures[0].done():
                break

    def _take(self) -> bool:
        """One more; False if there is none."""
        if self._submit is None:
            return False
        try:
            given = next(self._arguments)
            self._local.is_submitting = self._is_known
            try:
                self._futures.append(self._submit(*given))
            finally:
                self._local.is_submitting = False
        except StopIteration:
            self._end()
        except Exception as error:  # noqa: BLE001  whatever it is, it comes after the results that come before it
            self._error = error
            self._end()
        except BaseException:
            self._end()
            raise
        return self._submit is not None

    def _end(self) -> None:
        if self._submit is not None:
            self._submit = None
            self._arguments = iter(())
            self._ends.deliver(lambda: None)

    def refill(self) -> bool:
        """Takes as many as there is room for. False after the last; raises what the iterable has raised after it."""
        with self._lock:
            self._is_begun = True
            self._fill()
            if not self._futures and self._error is not None:
                error, self._error = self._error, None
                raise error
            return bool(self._futures)

    def pop(self) -> Future[Any]:
        with self._lock:
            return self._futures.popleft()

    def leave(self) -> bool:
        """Nobody has the iterator any more. Whether what it would have given is to be done all the same."""
        self._is_left = True
        return not self._is_begun

    def finish(self) -> None:
        """Takes all. What nobody will ever consume is forgotten a window behind."""
        while not self._ends.interrupted.is_set():
            oldest = None
            with self._lock:
                if not self._take():
                    break
                if self._is_left and len(self._futures) > WINDOW:
                    oldest = self._futures.popleft()
            if oldest is not None:
                wait([oldest])
        with self._lock:
            self._end()
            if self._is_left and self._error is not None:
                _logger.error("an iterable that was given to map has failed", exc_info=self._error)

    def cancel(self) -> None:
        """Nothing more is taken, and what has not begun never begins."""
        with self._lock:
            if self._submit is not None:
                self._error = CancelledError() if self._error is None else self._error
            self._end()
            for future in self._futures:
                future.cancel()


def _list_results(futures: _Buffer | Rest, until: float | None) -> Iterator[Any]:
    try:
        while futures.refill():
            yield _wait_or_cancel(futures.pop(), until)  # nothing here keeps a result that the consumer has
    finally:
        futures.cancel()


def _wait_or_cancel(future: Future[Any], until: float | None) -> Any:
    try:
        return future.result(None if until is None else until - time.monotonic())
    finally:
        future.cancel()
        del future  # whose exception has this frame in its traceback


def _unpack(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _leave(rest: Rest, left: queue.SimpleQueue[Rest | None]) -> None:
    if rest.leave():
        left.put(rest)


def _finish(left: queue.SimpleQueue[Rest | None]) -> None:
    """In a thread of its own: takes what nobody takes any more."""
    while (rest := left.get()) is not None:
        rest.finish()
        del rest
