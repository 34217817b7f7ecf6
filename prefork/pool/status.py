"""What a pool is doing now, for whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from prefork.pool.workers import Worker
from prefork.wire.messages import Memory


class RuntimeState(StrEnum):
    """loading: nothing can run yet. closing: what was submitted is done, and nothing more is taken. failed: nothing can
    run any more; see `RuntimeStatus.failure`."""

    LOADING = "loading"
    RUNNING = "running"
    CLOSING = "closing"
    ENDED = "ended"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What one worker is doing now. slot: its number, which the worker that takes its place has too. label: of the call
    or job that it is at, empty if it waits. position: seconds in the recording of a job. memory: in bytes, as last
    measured. ready_seconds: from the request for it to its first message. tasks: that it has done."""

    slot: int
    pid: int
    label: str
    position: float
    memory: Memory | None
    ready_seconds: float | None
    tasks: int = 0


def describe_worker(worker: Worker) -> WorkerStatus:
    task = worker.task
    label, position = (task.label, task.position) if task is not None else ("", 0.0)
    return WorkerStatus(worker.slot, worker.pid, label, position, worker.memory, worker.ready, worker.tasks)


@dataclass(frozen=True, slots=True)
class RuntimeStatus:
    """What a Runtime is doing now. running, waiting: calls and parts of jobs that workers have, and that wait for one.
    deaths: of workers and servers that were needed. reloads: how often `reload` has given it other weights. weights:
    bytes that are shared, None until they are loaded. failure: why nothing can run, if that is so."""

    state: RuntimeState
    workers: tuple[WorkerStatus, ...]
    running: int
    waiting: int
    deaths: int
    reloads: int
    weights: int | None
    failure: BaseException | None = None
