"""The ways to give calls to a runtime: at once, mapped, streamed, and from asyncio."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from prefork.pool.arguments import check_model
from prefork.pool.call_options import USUAL, CallOptions
from prefork.pool.streams import AsyncStream, Stream

if TYPE_CHECKING:
    from prefork.pool.runtime import Runtime

T = TypeVar("T")
_SAME: Any = object()


class Submitter(Executor, ABC):
    """A `concurrent.futures.Executor` whose calls have the same options; a Runtime is one, and `with_options` gives
    others. Each method calls fn(model, *args, **kwargs) in a worker; without a model, fn(*args, **kwargs)."""

    _options: CallOptions = USUAL

    @property
    @abstractmethod
    def _runtime(self) -> Runtime: ...

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs fn(model, *args, **kwargs) in a worker; without a model, fn(*args, **kwargs).

        If the worker dies, the call is retried on a new one; if that dies too, the future raises WorkerDied, and the
        pool lives on. Raises RuntimeError after `shutdown`, and in a process that was forked since.
        """
        return self._runtime._submit(self._options, fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As ProcessPoolExecutor does it. timeout: seconds until the results must be there; that of a call is one of
        the options. chunksize: calls that go to a worker together. buffersize: results, or chunks of them, that are
        made ahead of what is consumed; by default all, or 1,024 where no iterable has a length, so that one may be
        endless."""
        if not callable(fn):
            raise TypeError(f"map takes a function, and {type(fn).__name__} is none; jobs go to the Runtime's own map")
        return self._runtime._map(self.submit, fn, iterables, timeout, chunksize, buffersize)

    def stream(self, fn: Callable[..., Iterable[T]], /, *args: Any, **kwargs: Any) -> Iterator[T]:
        """What a generator function yields, as it does: at most 16 things ahead of what is taken. An iterator that is
        closed or dropped before its end cancels the call. It is not tried again if its worker dies."""
        stream: Stream[T] = Stream(self._runtime)
        stream._progress.begin(self._runtime._submit(self._stream_options, fn, args, kwargs, stream._progress.put))
        return stream

    @property
    def _stream_options(self) -> CallOptions:
        return replace(self._options, stream=True, retry=False)

    async def asubmit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """The result, without blocking the event loop. To cancel the task that waits for it cancels the call too, as
        `Runtime.cancel` does."""
        future = self.submit(fn, *args, **kwargs)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._runtime.cancel(future)
            raise

    def astream(self, fn: Callable[..., Iterable[T]], /, *args: Any, **kwargs: Any) -> AsyncIterator[T]:
        """As `stream`, for `async for`. To cancel the task that waits for it cancels the call too."""
        stream: AsyncStream[T] = AsyncStream(self._runtime)
        stream._progress.begin(self._runtime._submit(self._stream_options, fn, args, kwargs, stream._progress.put))
        return stream

    def with_options(
        self,
        *,
        timeout: float | None = _SAME,
        retry: bool = _SAME,
        priority: int = _SAME,
        model: str | None = _SAME,
        on_progress: Callable[[Any], object] | None = _SAME,
    ) -> Submitter:
        """An executor on the same workers whose calls have these options; what is left out is as it is here.

        timeout: seconds from the moment a call begins; after that it is ended, and raises CallTimedOut. retry: whether
        a call is tried once more if its worker dies; False for calls that must not run twice. priority: calls of a
        higher one begin first; 0 by default. model: which of several models the function gets, by name. on_progress:
        called with what the function gives to `prefork.report_progress`, in a thread of the runtime's: it must not
        block.
        """
        given: dict[str, Any] = {
            "timeout": timeout,
            "retry": retry,
            "priority": priority,
            "model": model,
            "on_progress": on_progress,
        }
        options = replace(self._options, **{name: value for name, value in given.items() if value is not _SAME})
        check_model(options.model, self._runtime._model_names)
        return OptionedSubmitter(self._runtime, options)


class OptionedSubmitter(Submitter):
    """Does not end anything: the runtime's own `shutdown` does."""

    def __init__(self, runtime: Runtime, options: CallOptions) -> None:
        self._given = runtime
        self._options = options

    @property
    def _runtime(self) -> Runtime:
        return self._given

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: the workers are the Runtime's."""
