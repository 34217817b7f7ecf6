"""What a run computes with: a Runtime of this machine, or what stands for many machines."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from prefork.engines.base import LoadError
from prefork.memory.tally import Tally
from prefork.platform_matrix.matrix import Plan
from prefork.pool.pipeline import Pipeline
from prefork.pool.status import WorkerStatus
from prefork.wire.specification import Inventory


class HasTally(Protocol):
    @property
    def tally(self) -> Tally: ...


class HasWorkers(Protocol):
    @property
    def workers(self) -> int: ...


class Control(Protocol):
    """As `Supervisor` has it."""

    loaded: threading.Event

    @property
    def failure(self) -> BaseException | None: ...
    @property
    def plan(self) -> Plan | None: ...
    @property
    def inventory(self) -> Inventory | None: ...
    @property
    def governor(self) -> HasTally: ...
    @property
    def steps(self) -> Counter[tuple[str, str]]: ...
    @property
    def deaths(self) -> int: ...
    @property
    def exhausted(self) -> str: ...
    def status(self) -> Sequence[WorkerStatus]: ...
    def drain(self, seconds: float) -> None: ...
    def give_up(self, error: LoadError) -> None: ...


class Computer(Protocol):
    """As `Runtime` has it."""

    pipeline: Pipeline

    @property
    def supervisor(self) -> Control: ...
    @property
    def fingerprints(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def plan(self) -> HasWorkers: ...
    def wait_until_loaded(self) -> None: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]: ...
    def shutdown(self, wait: bool = True) -> None: ...
