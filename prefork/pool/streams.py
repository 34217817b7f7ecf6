"""What a call yields, one by one, as it is yielded."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from prefork.pool.calls import Unreadable
from prefork.wire.calls import MOST_YIELDED

T_co = TypeVar("T_co", covariant=True)
_END = object()


class Source(Protocol):
    """The runtime that the call is of."""

    def cancel(self, future: Future[Any]) -> bool: ...

    def _continue(self, future: Future[Any], count: int) -> None: ...


class _Progress:
    """Of one stream. The worker yields MOST_YIELDED ahead of what was taken, and no more."""

    def __init__(self, source: Source, put: Callable[[Any], None]) -> None:
        self.future: Future[Any] | None = None
        self.put = put
        self._source = source
        self._taken = 0

    def begin(self, future: Future[Any]) -> None:
        self.future, put = future, self.put
        future.add_done_callback(lambda _: put(_END))  # which does not hold this: it is dropped with its stream

    def take(self, item: Any) -> Any:
        if isinstance(item, Unreadable):
            self.close()
            raise item.error
        self._taken += 1
        if self._taken >= MOST_YIELDED // 2 and self.future is not None:
            self._source._continue(self.future, self._taken)
            self._taken = 0
        return item

    def end(self) -> None:
        """Nobody takes any more."""
        if self.future is not None and not self.future.done():
            self._source.cancel(self.future)

    def close(self) -> None:
        """Nobody takes any more, nor waits for the end."""
        self.end()
        self.future = None

    def finish(self, future: Future[Any] | None) -> None:
        """All is taken. Raises what the call has raised."""
        self.future = None
        if future is not None:
            future.result()

    def __del__(self) -> None:
        self.end()


class Stream(Generic[T_co]):
    """An iterator. Closed, or dropped, before its end, it cancels the call, as `Runtime.cancel` does."""

    def __init__(self, source: Source) -> None:
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._items = items
        self._progress = _Progress(source, items.put)

    def __iter__(self) -> Stream[T_co]:
        return self

    def __next__(self) -> T_co:
        future = self._progress.future
        item = _END if future is None else self._items.get()
        if item is _END:
            self._progress.finish(future)
            raise StopIteration
        found: T_co = self._progress.take(item)
        return found

    def close(self) -> None:
        self._progress.close()


class AsyncStream(Generic[T_co]):
    """An asynchronous iterator, of one event loop. Otherwise as Stream."""

    def __init__(self, source: Source) -> None:
        items: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        self._items = items
        self._progress = _Progress(source, put)

    def __aiter__(self) -> AsyncStream[T_co]:
        return self

    async def __anext__(self) -> T_co:
        future = self._progress.future
        item = _END if future is None else await self._wait()
        if item is _END:
            self._progress.finish(future)
            raise StopAsyncIteration
        found: T_co = self._progress.take(item)
        return found

    async def _wait(self) -> Any:
        try:
            return await self._items.get()
        except asyncio.CancelledError:
            self._progress.end()
            raise

    async def aclose(self) -> None:
        self._progress.close()
