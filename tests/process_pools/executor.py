"""`Runtime` with the arguments and the insides of `ProcessPoolExecutor`, for the tests that others have of that."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import psutil

from prefork import Runtime

ALL: weakref.WeakSet[RuntimeExecutor] = weakref.WeakSet()  # to be ended where a test has failed before it did


class RuntimeExecutor(Runtime):
    """mp_context: nothing that `Runtime` could use; how its processes start is `strategy`."""

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
        self._max_workers = max_workers or len(os.sched_getaffinity(0))
        ALL.add(self)
        super().__init__(
            workers=self._max_workers,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
            notice=lambda _: None,
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
