"""Jobs of a run become units of work when machines are about to need them: there may be millions."""

from __future__ import annotations

import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from prefork.cluster.dispatching import Dispatch, Unit
from prefork.cluster.messages import SEND_BYTES, Answer, JobOrder
from prefork.cluster.work import Done, LongJob, Work, Writer, make_absolute
from prefork.engines.base import Job
from prefork.pool.jobs import Course, JobResult, JobRun

LONG_SECONDS = 600.0  # of a recording whose segments go to all machines


@dataclass(slots=True)
class _Source:
    """Jobs that have not begun."""

    jobs: Iterator[Job]
    course: Course
    done: Done
    documents: Mapping[str, bytes]


class Intake:
    """All is of the cluster's thread. drop: has a unit forgotten."""

    def __init__(self, dispatch: Dispatch, writer: Writer, drop: Callable[[Unit], None]) -> None:
        self._dispatch = dispatch
        self._writer = writer
        self._drop = drop
        self._sources: deque[_Source] = deque()
        self._rank = 0
        self._refusal: BaseException | None = None

    def add(self, jobs: Iterable[Job], course: Course, done: Done, documents: Mapping[str, bytes]) -> None:
        """jobs: the longest first. documents: what is known of them, by their ids, pickled."""
        self._sources.append(_Source(iter(jobs), course, done, documents))

    def begin(self, most: int) -> None:
        """The next jobs, until so many units wait."""
        while self._sources and self._dispatch.waiting < most:
            source = self._sources[0]
            job = next(source.jobs, None)
            if job is None:
                self._sources.popleft()
            else:
                self._begin(make_absolute(job), source)

    def refuse(self, error: BaseException) -> None:
        """Nothing new begins; whatever has not begun, or comes later, fails with that."""
        self._refusal = self._refusal or error
        self.begin(sys.maxsize)

    def _begin(self, job: Job, source: _Source) -> None:
        self._rank += 1
        course, document = source.course, source.documents.get(job.id)
        if self._refusal is not None:
            source.done(JobResult(job, error=self._refusal))
        elif job.seconds > LONG_SECONDS and job.states and not self._is_any_blind:
            runner, finish = LongJob(job, self._dispatch.add, self._drop), self._writer.finish(job, course, source.done)
            JobRun(runner, None, replace(course, target=None), job, self._rank, finish, document).start()
        else:
            order = JobOrder(job, document, course.passing)
            work = Work(order, partial(self._take, job, source), partial(self._fail, job, source))
            sendable = bool(job.states) and sum(state.size for state in job.states) <= SEND_BYTES
            self._dispatch.add(Unit((self._rank, 0, 0), job.seconds, work, sendable))

    @property
    def _is_any_blind(self) -> bool:
        return any(machine.blind for machine in self._dispatch.usable)

    def _take(self, job: Job, source: _Source, answer: Answer) -> None:
        document, passed = pickle.loads(answer.value or b"")
        source.course.advance(job.seconds)
        self._writer.finish(job, source.course, source.done)(JobResult(job, document, passed=passed))

    def _fail(self, job: Job, source: _Source, error: BaseException) -> None:
        source.course.advance(job.seconds)
        source.done(JobResult(job, error=error))
