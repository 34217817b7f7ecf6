"""One job's way through the stages: split, segments wherever there is room, join; and the next stage."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from prefork.cache.pieces import DescribedSegment, Piece, PieceCache, Savings, SplitJob, StageCache, count
from prefork.engines.base import Job
from prefork.engines.parquet.row_path import find_place
from prefork.engines.text.document import Document
from prefork.outputs import JobOutput, WrittenFile
from prefork.platform_matrix.matrix import Plan
from prefork.pool.pipeline import Pipeline, Stage
from prefork.pool.remote import Remote
from prefork.pool.tasks import Task

CHUNK_SECONDS = 20.0  # audio that a worker takes of a job at a time: little to lose, and no long wait for the last one


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job: a document, or an error. passed: the pickled document, where the pipeline goes on in
    another runtime. tagged: as `Document.count_tagged` has it, where the document is without its utterances."""

    job: Job
    document: Document | None = None
    files: tuple[WrittenFile, ...] = ()
    error: BaseException | None = None
    passed: bytes | None = None
    tagged: Mapping[str, int] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be looked at in its files, and in its output."""
        return (*self.job.warnings, *(self.document.warnings if self.document is not None else ()))

    def count_tagged(self) -> Mapping[str, int]:
        """How many utterances, and words of them, have an analysis."""
        return self.document.count_tagged() if self.tagged is None and self.document is not None else self.tagged or {}


@dataclass(frozen=True, slots=True)
class Course:
    """What jobs go through. target: where their outputs are written, None if they are not. passing: the pipeline goes
    on elsewhere, so that the last document is passed on instead. advance: called with seconds of audio as they are
    worked off. cache: of segments that were computed before; first: the number of the pipeline's first stage among
    those that it knows."""

    pipeline: Pipeline
    target: Path | None = None
    passing: bool = False
    advance: Callable[[float], None] = lambda _: None
    cache: PieceCache = field(default_factory=PieceCache)
    first: int = 0


class TaskRunner(Protocol):
    """Whoever runs the tasks of jobs, as `Supervisor` does."""

    @property
    def plan(self) -> Plan | None: ...
    def submit(self, *tasks: Task) -> None: ...
    def cancel(self, tasks: Iterable[Task]) -> None: ...


class JobRun:
    """Takes one job through the stages of a pipeline. Every chunk of a stage's segments may go to another worker; all
    see the same bytes, so that the result does not depend on which.

    Lives in the supervisor's thread.
    """

    def __init__(
        self,
        supervisor: TaskRunner,
        remote: Remote | None,
        course: Course,
        job: Job,
        rank: int,
        done: Callable[[JobResult], None],
        document: bytes | None = None,
    ) -> None:
        """remote: the services of the pipeline, if it has any. document: what is known of the job, pickled; None for no
        more than its source says."""
        self._supervisor = supervisor
        self._remote = remote
        self._course = course
        self._job = job
        self._rank = rank
        self._done = done
        self._document = document
        self._place = find_place(job.media)
        self._number = 0  # of the stage
        self._over = False
        self._left = job.seconds  # audio that is not worked off
        self._segments: Sequence[DescribedSegment] = ()
        self._pieces: list[Piece | None] = []  # by segment
        self._chunks: list[list[int]] = []  # segments that are computed together
        self._waiting: dict[int, Task] = {}  # chunks that are not done, by number
        self._kept: StageCache | None = None  # of the stage
        self._savings = Savings()

    @property
    def _stage(self) -> Stage:
        return self._course.pipeline[self._number]

    @property
    def _is_last(self) -> bool:
        return self._number == len(self._course.pipeline) - 1

    def start(self) -> None:
        if self._stage.is_remote:
            assert self._remote is not None
            self._remote.submit(self._stage.engine, self._job, self._document, self._take_document)
        else:
            cache = self._course.cache
            self._kept = cache.open(self._job, self._course.first + self._number)
            self._savings.recording = self._savings.recording or cache.recall(self._job)
            arguments = (self._document, self._kept is not None, self._savings.recording)
            self._submit("split", arguments, 0, self._job.seconds, self._take_segments, pickle.loads)

    def _submit(
        self,
        name: str,
        arguments: tuple[object, ...],
        index: int,
        step: float,
        take: Callable[[Any], None],
        load: Callable[[bytes], Any] = lambda result: result,
        items: Sequence[int] | None = None,
        size: float = 0.0,
        seconds: float = 0.0,
        closing: bool = False,
    ) -> Task:
        """items: the numbers of segments."""

        def done(result: bytes | None, error: BaseException | None) -> None:
            if result is None:
                self._fail(error)
                return
            try:
                loaded = load(result)
            except Exception as problem:  # noqa: BLE001  there may be anything in what another package's engine makes
                self._fail(problem)
                return
            take(loaded)

        task = Task(
            name,
            (self._stage.engine, *((self._job, *arguments) if items is None else ())),
            done,
            order=(self._rank, self._number, index),
            label=self._job.id,
            engine=self._stage.engine,
            items=None if items is None else [self._make_item(self._segments[number]) for number in items],
            size=size,
            seconds=seconds,
            segment=step if items is not None else 0.0,
            audio=self._job.seconds,
            step=step,
            closing=closing,
            place=self._place,
        )
        self._supervisor.submit(task)
        return task

    def _make_item(self, segment: DescribedSegment) -> tuple[object, ...]:
        """As `run_segments` of a worker takes it."""
        return self._job, segment.data, self._kept.make_order(segment) if self._kept is not None else None

    def _fail(self, error: BaseException | None) -> None:
        if self._over:  # another chunk failed before this one
            return
        self._over = True
        self._supervisor.cancel(self._waiting.values())
        self._course.advance(self._left)
        self._done(JobResult(self._job, error=error))

    def _take_segments(self, split: SplitJob) -> None:
        self._segments = split.segments
        self._savings.recording = split.recording or self._savings.recording
        if not split.keeps:
            self._kept = None
        self._pieces = [None] * len(split.segments) if self._kept is None else self._kept.find(split)
        self._savings.complete = self._savings.complete and split.keeps
        missing = [number for number, piece in enumerate(self._pieces) if piece is None]
        places = divide([split.segments[number].seconds for number in missing], CHUNK_SECONDS)
        self._chunks = [missing[start:end] for start, end in places]
        if not self._chunks:
            self._join()
        for number, chunk in enumerate(self._chunks):
            segments = [split.segments[place] for place in chunk]
            step, size = max(segment.seconds for segment in segments), max(segment.size for segment in segments)
            take, seconds = partial(self._take_chunk, number), sum(segment.seconds for segment in segments)
            self._waiting[number] = self._submit("run", (), number, step, take, items=chunk, size=size, seconds=seconds)

    def _take_chunk(self, number: int, _: bytes) -> None:
        for place, data in zip(self._chunks[number], self._waiting[number].finished, strict=True):
            piece: Piece = pickle.loads(data)
            if self._is_elsewhere and not piece.found:  # its key says what was to compute it
                piece = replace(piece, key=b"")
            self._pieces[place] = piece
            if self._kept is not None:
                self._kept.keep(place, piece)
        stages = len(self._course.pipeline) - self._number  # those that are left, this one included
        self._work_off(self._left / (stages * len(self._waiting)))
        del self._waiting[number]
        if not self._waiting:
            self._join()

    @property
    def _is_elsewhere(self) -> bool:
        """Whether a device was given up, and another computes than the one that the cache knows of."""
        plan = self._supervisor.plan
        return plan is not None and plan.facts.devices.has_failed

    def _work_off(self, seconds: float) -> None:
        self._left -= seconds
        self._course.advance(seconds)

    def _join(self) -> None:
        pieces = [piece for piece in self._pieces if piece is not None]
        self._savings.add(count(pieces))
        writing = self._is_last and not self._course.passing
        segments = [segment.data for segment in self._segments]
        arguments = (self._document, segments, pieces, writing, self._course.target)
        if writing:
            self._submit("join", arguments, 0, self._job.seconds, self._finish, pickle.loads, closing=True)
        else:
            self._submit("join", arguments, 0, self._job.seconds, partial(self._take_document, error=None))

    def _take_document(self, document: bytes | None, error: BaseException | None) -> None:
        """A stage is over: with what it has made, or an error."""
        if document is None:
            self._fail(error)
            return
        self._document = document
        self._close_stage()
        if self._is_last:  # so the pipeline goes on elsewhere
            self._work_off(self._left)
            self._course.cache.note(self._job, self._savings)
            self._done(JobResult(self._job, passed=document))
            return
        self._number += 1
        self.start()

    def _close_stage(self) -> None:
        if self._kept is not None:
            self._kept.close()

    def _finish(self, output: JobOutput) -> None:
        self._close_stage()
        self._work_off(self._left)
        self._course.cache.note(self._job, self._savings)
        self._done(JobResult(self._job, output.document, output.files))


def divide(seconds: Sequence[float], most: float) -> list[tuple[int, int]]:
    """Cuts a list of segments into runs of at most so many seconds, each of one segment at least.

    >>> divide([20.0, 20.0, 20.0, 90.0, 5.0], 60.0)
    [(0, 3), (3, 4), (4, 5)]
    """
    chunks: list[tuple[int, int]] = []
    start, total = 0, 0.0
    for index, length in enumerate(seconds):
        if index > start and total + length > most:
            chunks.append((start, index))
            start, total = index, 0.0
        total += length
    return [*chunks, (start, len(seconds))] if seconds else []
