"""What the pool asks about memory: may this start, must something end? The governor answers; a test may too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prefork.memory.admission import Holder, Level
from prefork.platform_matrix.matrix import Plan
from prefork.pool.tasks import Task
from prefork.wire.messages import Memory, Usage


class Policy(Protocol):
    """level: how short memory is; why: in words."""

    level: Level
    why: str

    def recall(self, plan: Plan) -> Plan:
        """The plan with what earlier runs have measured."""

    def begin(self, plan: Plan, weights: int) -> None:
        """The models are loaded for the first time. weights: bytes."""

    def note_loaded(self, size: int, weights: int, forks: bool, shared: bool) -> None:
        """What the process takes that has loaded the models, in bytes. forks: the workers are forked from it. shared:
        all map the same weights."""

    def note_memory(self, worker: str, pid: int, memory: Memory) -> None:
        """What a worker has found of itself; nothing, when it is ready."""

    def select(self, tasks: Iterator[Task], holders: list[Holder]) -> Task | None:
        """The one that starts next; None if none may. holders: the workers that have one."""

    def explain_want(self, size: int) -> str:
        """Why there is no room for so many bytes more, for a while; empty if there is."""

    def explain(self, task: Task) -> str: ...

    def admit(self, task: Task, worker: str, rest: int) -> int:
        """A task starts on a worker that has so many bytes of its own; the bytes that it will have at its peak."""

    def learn_batch(self, engine: str, size: float, taken: int) -> None:
        """A batch of a server took so many bytes of its device. size: that the engine estimates."""

    def recall_batches(self) -> Mapping[str, Sequence[tuple[float, int]]]:
        """The same of all batches, of earlier runs too, by engine."""

    def note_kill(self) -> None:
        """A server has lost a batch for want of memory."""

    def lose(self, task: Task, reason: str, out_of_memory: bool) -> None: ...

    def measure(self, task: Task, worker: str, predicted: int, usage: Usage) -> None: ...

    def look_again(self) -> None:
        """A task is over: its memory may be there for another."""

    def must_stop(self) -> bool: ...

    def must_end_one(self, used: list[int]) -> bool: ...

    def must_shrink(self) -> bool: ...

    def may_grow(self, plan: Plan) -> bool: ...

    def shrink(self, workers: int) -> None: ...

    def grow(self, workers: int) -> None: ...
