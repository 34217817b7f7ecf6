"""What the driver and its machines say to each other. Both are of the same version: a machine of another one is refused
before anything else is sent to it, by texts and numbers alone."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefork.engines.base import Job
from prefork.engines.batching import Batching
from prefork.fingerprint import OUTPUTS
from prefork.memory.tally import Tally
from prefork.platform_matrix.versions import read_versions
from prefork.pool.pipeline import Pipeline
from prefork.pool.tasks import HangLimit

TOPIC = "prefork"  # of Dask's events
PLUGIN = "prefork-machine"  # of its workers, and
WATCH = "prefork-watch"  # of its scheduler
ORDERS, ORDER, ANSWER = "prefork-orders", "prefork-order", "prefork-answer"  # of its streams
TASK_FIELDS = ("label", "engine", "size", "seconds", "segment", "audio", "step", "closing")
SEND_BYTES = 512_000_000  # files of a job that are sent to a machine which does not see them, at the most


def describe_version() -> str:
    """What must be the same in two processes for them to understand each other."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"prefork {read_versions().prefork or 'from a folder'} (outputs {OUTPUTS}), Python {python}"


@dataclass(frozen=True, slots=True)
class MachineOptions:
    """What a run asks of each machine, where that machine's own `prefork join` says nothing else."""

    workers: int | None = None
    threads: int | None = None
    strategy: str | None = None
    devices: tuple[str, ...] = ()
    force_cpu: bool = False
    no_mps: bool = False
    memory_limit: int | None = None

    def override(self, own: MachineOptions) -> MachineOptions:
        """The same, but for what a machine says itself."""
        return MachineOptions(*(getattr(own, name) or getattr(self, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Session:
    """What a run's machines are to load. fingerprint: of the pipeline's stages, as the driver has them. example: a job,
    by whose files a machine finds out whether it sees those of the driver. data: it is one of a data set, which must be
    seen. dry: the machine says what its plan is, and loads nothing."""

    id: str
    pipeline: Pipeline
    fingerprint: Sequence[Mapping[str, Any]]
    command: str
    options: MachineOptions = field(default_factory=MachineOptions)
    batching: Batching | None = None
    hang_limit: HangLimit = field(default_factory=HangLimit)
    mem_guard: bool = False
    memory_checkpoints: bool = False
    example: Job | None = None
    data: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A whole job. document: what is known of it, pickled. passing: it goes on in another session. contents: of the
    job's files, by path, where the machine does not see them."""

    job: Job
    document: bytes | None = None
    passing: bool = False
    contents: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskOrder:
    """A task of a long job, as `prefork.pool.tasks.Task` has its fields."""

    name: str
    arguments: tuple[Any, ...]
    items: Sequence[Any] | None
    label: str
    engine: str
    size: float
    seconds: float
    segment: float
    audio: float
    step: float | None
    closing: bool
    job: Job
    contents: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndOrder:
    """The run needs the machine no more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an order. value: of a job, what it has made, pickled; of a task, its result and its pieces; of the
    end, the machine's report, pickled. error: as `pickle_error` has it. unseen: a file of the job's that is not there.
    lost: the machine can do no more."""

    value: bytes | None = None
    pieces: Mapping[int, bytes] = field(default_factory=dict)
    error: bytes | None = None
    unseen: str = ""
    lost: bool = False


@dataclass(slots=True)
class MachineReport:
    """What a machine's work has come to: figures for the summary and for its performance log. seconds: of loading.
    memory_log: the file's content."""

    name: str
    strategy: str = ""
    device: str = ""
    workers: int = 0
    threads: int = 0
    weights: int = 0
    shared: bool = False
    seconds: float = 0.0
    deaths: int = 0
    tally: Tally = field(default_factory=Tally)
    steps: Mapping[tuple[str, str], float] = field(default_factory=dict)
    log: str = ""
    memory_log: bytes = b""
