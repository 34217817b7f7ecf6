"""One job's way through the workers: split, segments wherever there is room, join."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engines.base import Job
from engines.document import Document
from prefork.outputs import JobOutput, WrittenFile
from prefork.supervisor import Supervisor
from prefork.tasks import Task

CHUNK_SECONDS = 20.0  # audio that a worker takes of a job at a time: little to lose, and no long wait for the last one


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job: a document, or an error."""

    job: Job
    document: Document | None = None
    files: tuple[WrittenFile, ...] = ()
    error: BaseException | None = None


class JobRun:
    """Takes one job through its steps. Every chunk of segments may go to another worker; all see the same bytes,
    so that the result does not depend on which.

    Lives in the supervisor's thread.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        engine: str,
        job: Job,
        rank: int,
        target: Path | None,
        done: Callable[[JobResult], None],
        advance: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._supervisor = supervisor
        self._engine = engine
        self._job = job
        self._rank = rank
        self._target = target
        self._done = done
        self._advance = advance
        self._over = False
        self._left = job.seconds  # audio that is not worked off
        self._segments: list[bytes] = []
        self._pieces: list[list[bytes]] = []
        self._waiting: dict[int, Task] = {}  # chunks that are not done, by number

    def start(self) -> None:
        self._submit("split", (), 0, self._job.seconds, self._take_segments)

    def _submit(
        self,
        name: str,
        arguments: tuple[object, ...],
        index: int,
        step: float,
        take: Callable[[bytes], None],
        items: Sequence[bytes] | None = None,
        size: float = 0.0,
        closing: bool = False,
    ) -> Task:
        def done(result: bytes | None, error: BaseException | None) -> None:
            if result is None:
                self._fail(error)
            else:
                take(result)

        task = Task(
            name,
            (self._engine, self._job, *arguments),
            done,
            order=(self._rank, index),
            label=self._job.id,
            items=items,
            size=size,
            segment=step if items is not None else 0.0,
            audio=self._job.seconds,
            step=step,
            closing=closing,
        )
        self._supervisor.submit(task)
        return task

    def _fail(self, error: BaseException | None) -> None:
        if self._over:  # another chunk failed before this one
            return
        self._over = True
        self._supervisor.cancel(self._waiting.values())
        self._advance(self._left)
        self._done(JobResult(self._job, error=error))

    def _take_segments(self, result: bytes) -> None:
        described: list[tuple[float, int, bytes]] = pickle.loads(result)
        self._segments = [segment for _, _, segment in described]
        chunks = divide([seconds for seconds, _, _ in described], CHUNK_SECONDS)
        self._pieces = [[] for _ in chunks]
        if not chunks:
            self._join()
        for number, (start, end) in enumerate(chunks):
            step = max(seconds for seconds, _, _ in described[start:end])
            size = max(size for _, size, _ in described[start:end])
            take = partial(self._take_chunk, number)
            items = self._segments[start:end]
            self._waiting[number] = self._submit("run", (), number, step, take, items, size)

    def _take_chunk(self, number: int, _: bytes) -> None:
        self._pieces[number] = self._waiting[number].finished
        share = self._left / len(self._waiting)
        self._left -= share
        self._advance(share)
        del self._waiting[number]
        if not self._waiting:
            self._join()

    def _join(self) -> None:
        pieces = [piece for chunk in self._pieces for piece in chunk]
        arguments = (self._segments, pieces, self._target)
        self._submit("join", arguments, 0, self._job.seconds, self._finish, closing=True)

    def _finish(self, result: bytes) -> None:
        output: JobOutput = pickle.loads(result)
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
