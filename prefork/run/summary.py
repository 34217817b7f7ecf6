"""The summary of a run, its progress, and the interface of what shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prefork.pool.jobs import JobResult
from prefork.pool.status import WorkerStatus


@dataclass(frozen=True, slots=True)
class GPULoad:
    """Of one GPU in a run. busy: percent of the time, used, memory: bytes, at the most and in all, whoever has them."""

    name: str
    busy: float
    used: int
    memory: int


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One machine of a cluster, and what it has done. state: loading, refused, lost, left, or how it shares weights.
    busy: workers that have something to do. memory: bytes of its workers together. seconds: of audio."""

    name: str
    state: str
    workers: int = 0
    busy: int = 0
    memory: int = 0
    files: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a run. Seconds, and bytes."""

    done: int
    skipped: int  # done by an earlier run
    failed: Mapping[str, str]  # by job: the reason
    unfinished: int  # not begun, or not done, when the run was stopped
    notices: Mapping[str, str]  # inputs that were not used, and why; no errors
    warnings: Mapping[str, Sequence[str]]  # by job: what to look at in its output
    audio_seconds: float
    utterances: int  # and
    words: int  # whose grammar was analysed
    wall_seconds: float
    load_seconds: float
    strategy: str  # fork, spawn ...
    workers: int
    threads: int
    shared: bool  # whether all workers use one copy of the weights
    weights: int  # bytes of one copy
    private: int  # bytes, the largest worker's own
    total: int  # bytes, everything together at the most, shared pages counted once
    measured: int  # tasks whose peak of private memory is known
    close: int  # of these, those that were predicted to within a fifth
    throttles: int  # times that nothing new was started because memory was short
    throttled: float  # seconds
    shrinks: int  # workers stopped because memory was short
    starved: int  # tasks whose worker was stopped because memory was short
    deaths: int  # of workers, and of servers
    target: str
    recovery: Mapping[str, int] = field(default_factory=dict)  # utterances timed, found, missing; empty without UTR
    gpus: Sequence[GPULoad] = ()  # that have computed and can be asked
    servers: int = 0  # processes that have the model for the workers
    server_threads: int = 0  # of each
    unit: str = "files"  # what was done, skipped, failed and unfinished
    kept_files: int = 0  # of those done: nothing of them was computed
    kept_segments: int = 0  # of the other files: that were not computed,
    segments: int = 0  # of so many
    saved_seconds: float = 0.0  # that all these took when they were computed
    machines: Sequence[MachineStatus] = ()  # of a cluster

    @property
    def speed(self) -> float:
        """Audio seconds per second, or, without audio, words; loading included."""
        return (self.audio_seconds or self.words) / self.wall_seconds if self.wall_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a live view shows now."""

    workers: Sequence[WorkerStatus]
    audio_done: float  # seconds
    audio_total: float  # seconds
    files_done: int
    files_total: int
    timed: bool = True  # False: there is no audio, and its seconds stand for text
    machines: Sequence[MachineStatus] = ()  # of a cluster, in place of workers


class Report:
    """Shows nothing; subclasses show more."""

    def note(self, text: str) -> None:
        """Something that happened on the way, such as the death of a worker."""

    def load(self, names: Sequence[str]) -> None:
        """The models of these engines begin to be loaded."""

    def begin(self, get_progress: Callable[[], Progress]) -> None:
        """The models are loaded and the jobs known."""

    def refresh(self) -> None:
        """Some time has passed."""

    def finish_job(self, result: JobResult, reason: str | None) -> None:
        """A job is done, or has failed for a reason."""

    def close(self) -> None:
        """Nothing more happens, in whatever way the run has ended."""

    def end(self, summary: Summary) -> None:
        """The run has ended in order."""
