"""`Runtime` with the arguments and the insides of `ProcessPoolExecutor`, for the tests that others have of that."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import psutil

from prefork import Runtime

ALL: weakref.WeakSet[RuntimeExecutor] = weakref.WeakSet()  # to be ended where a test has failed before it did


class RuntimeExecutor(Runtime):
    """mp_context: nothing that `Runtime` could use; how its processes start is `strategy`. initializer: called once, as
    `load`, in the process that the workers are forked from."""

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_tasks_per_child is not None:
            raise NotImplementedError(
                "workers are replaced by what they keep of memory, not by how many calls they had"
            )
        self._max_workers = max_workers or len(os.sched_getaffinity(0))
        self._has_model = initializer is not None
        load = partial(_initialize, initializer, initargs) if initializer is not None else None
        ALL.add(self)
        super().__init__(workers=self._max_workers, load=load, notice=lambda _: None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return (
            super().submit(_drop_model, fn, *args, **kwargs) if self._has_model else super().submit(fn, *args, **kwargs)
        )

    @property
    def _processes(self) -> dict[int, _Process]:
        until = time.monotonic() + 30
        while len(workers := self.supervisor.status()) < self._max_workers and time.monotonic() < until:
            time.sleep(0.01)
        return {worker.pid: _Process(worker.pid) for worker in workers}

    @property
    def _executor_manager_thread(self) -> Any:
        return self.supervisor._thread

    @property
    def _call_queue(self) -> _CallQueue:
        return _CallQueue()


class _Process(psutil.Process):  # type: ignore[misc]
    def join(self) -> None:
        self.wait(30)


class _CallQueue:
    def join_thread(self) -> None:
        """There is no such thread."""


def _initialize(initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    initializer(*initargs)


def _drop_model(_: None, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)
