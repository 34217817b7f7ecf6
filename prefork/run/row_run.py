"""The rows of row groups on their way through the pipeline, a few of each of some groups at a time.

    row group -> rows, opened by a worker -> jobs of the pool -> results

So each worker reads a row group of its own, and a data set of any size takes the memory of a few groups' rows. What
comes of a group when it is complete, `DataRun` does.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.base import InputError, Job, LoadError
from prefork.engines.parquet.data_set import DataFile
from prefork.engines.parquet.options import RowOptions
from prefork.engines.parquet.row_path import RowAddress
from prefork.errors import Stopped
from prefork.pool.jobs import Course, JobResult
from prefork.pool.pipeline import Intake
from prefork.run.problems import find_reason, strip_name
from prefork.run.request import RunRequest
from prefork.run.row_results import RowResult, describe_document
from prefork.run.row_work import ChosenRows, OpenedRow, open_rows
from prefork.run.runner import Run
from prefork.run.summary import Progress, Report

_ROWS_AHEAD = 256  # of a row group, that are given to the pool at a time
_POLL_SECONDS = 0.1
_USUAL_SECONDS = 10.0  # of a recording whose length is not known yet


@dataclass(slots=True, eq=False)
class GroupRun:
    """A row group that is to be done.

    rows: those that were opened and wait; passed: those that wait for another phase. documents: pickled, of both. ids:
    by row; numbers: the reverse. results: by row.
    """

    file: DataFile
    number: int
    job: Job
    chosen: ChosenRows = field(default_factory=lambda: ChosenRows(()))
    rows: deque[Job] = field(default_factory=deque)
    ids: dict[int, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    passed: list[Job] = field(default_factory=list)
    results: dict[int, RowResult] = field(default_factory=dict)
    under_way: int = 0
    opening: int = 0
    is_opened: bool = False

    @property
    def is_complete(self) -> bool:
        return len(self.results) == len(self.chosen.rows)

    @property
    def seconds(self) -> float:
        lengths = self.chosen.lengths
        return sum(lengths) / SAMPLE_RATE if lengths else _USUAL_SECONDS * len(self.chosen.rows)


class RowRun(Run):
    """A run whose jobs are rows."""

    def __init__(self, request: RunRequest, options: RowOptions, report: Report) -> None:
        super().__init__(request, report)
        self._options = options
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._under_way = 0  # events that will come
        self._is_halted = False  # nothing more can be done
        self._total = 0  # rows
        self._seconds = 0.0  # of audio in all rows, as far as it is known

    def _write(self, group: GroupRun) -> None:
        """It is complete."""
        raise NotImplementedError

    def _run_groups(self, groups: Sequence[GroupRun], is_last: bool) -> None:
        """Takes the rows of groups through the phase that is loaded; some groups at a time, so that each worker reads
        one of its own."""
        waiting, active = deque(groups), list[GroupRun]()
        for group in groups:
            group.rows.extend(group.passed)
            group.passed = []
        most = self._runtime.plan.workers + 1 if self._runtime is not None else 0
        while True:
            self._handle_signals()
            active = [group for group in active if group.opening or group.rows or group.under_way]
            while waiting and len(active) < most and not self._is_over:
                active.append(waiting.popleft())
                self._open(active[-1])
            for group in active:
                self._feed(group, is_last)
            if not self._under_way and (self._is_over or not (waiting or active)):
                return
            with suppress(queue.Empty):
                self._events.get(timeout=_POLL_SECONDS)()
                while True:
                    self._events.get_nowait()()

    @property
    def _is_over(self) -> bool:
        """Nothing more is to begin."""
        return self._is_halted or bool(self._signals)

    def _submit(self, take: Callable[[Future[Any]], None], work: Callable[..., Any], **values: Any) -> None:
        """Has a worker do something; `take` is called in this thread when it is done."""
        assert self._runtime is not None
        self._under_way += 1

        def finish(future: Future[Any]) -> None:
            self._under_way -= 1
            if isinstance(future.exception(), Stopped | LoadError):
                self._is_halted = True
            else:
                take(future)

        future = self._runtime.submit(work, **values)
        future.add_done_callback(lambda done: self._events.put(partial(finish, done)))

    def _open(self, group: GroupRun) -> None:
        if group.is_opened:
            return
        group.is_opened = True
        group.ids = dict(zip(group.chosen.rows, group.chosen.ids, strict=False))
        if not group.chosen.rows:
            self._write(group)
        else:
            self._open_rows(group, group.chosen.rows)

    def _open_rows(self, group: GroupRun, rows: Sequence[int]) -> None:
        group.opening += 1
        intake = self._request.intake

        def take(future: Future[Any]) -> None:
            group.opening -= 1
            error = future.exception()
            if error is None:
                for row in future.result():
                    self._take_row(group, row)
            elif len(rows) > 1:  # the others do not share the fate of a row that ends its worker
                for row in rows:
                    self._open_rows(group, (row,))
            else:
                self._take_row(group, OpenedRow(rows[0], error=find_reason(error)))

        self._submit(
            take,
            open_rows,
            file=group.file.narrow(group.number),
            group=group.number,
            rows=rows,
            selection=self._request.selection,
            with_text=intake is not Intake.RECORDINGS,
            with_audio=intake is not Intake.TEXTS,
            language=self._request.language or "",
        )

    def _take_row(self, group: GroupRun, row: OpenedRow) -> None:
        name = group.ids.get(row.row, f"{group.job.id[:-1]}:{row.row}]")
        column = group.file.columns.audio or group.file.columns.text
        path = RowAddress(group.file.path, column, group.number, row.row).path
        media = path if self._request.intake is not Intake.TEXTS else None
        job = Job(name, path, media, (), row.seconds, (), row.warnings, row.selection)
        group.numbers[name] = row.row
        if row.error is not None or row.document is None:
            self._finish_row(group, JobResult(job), row.error or "holds nothing")
        else:
            group.documents[name] = row.document
            group.rows.append(job)
        if group.is_complete:
            self._write(group)

    def _feed(self, group: GroupRun, is_last: bool) -> None:
        assert self._runtime is not None
        course = Course(self._runtime.pipeline, None, not is_last, self._advance)
        while group.rows and group.under_way < _ROWS_AHEAD and not self._is_over:
            job = group.rows.popleft()
            group.under_way += 1
            self._under_way += 1
            known = {job.id: group.documents.pop(job.id)}
            self._begin_jobs([job], course, lambda result: self._events.put(partial(self._take, group, result)), known)

    def _take(self, group: GroupRun, result: JobResult) -> None:
        """What became of a row in this phase."""
        group.under_way -= 1
        self._under_way -= 1
        error, job = result.error, result.job
        if isinstance(error, Stopped | LoadError):  # nothing is wrong with the row; it is left for the next run
            self._is_halted = True
            return
        if result.passed is not None:
            group.documents[job.id] = result.passed
            group.passed.append(job)
            return
        if error is None and (changed := self._find_changed_model()):
            assert self._runtime is not None
            self._runtime.supervisor.give_up(LoadError(f"{changed}: has changed since this run began; start again"))
            return
        if error is not None and error.__cause__ is not None and not isinstance(error, InputError):
            self._log.write(f"{job.id}: {error.__cause__}\n")
        self._finish_row(group, result, strip_name(job.id, find_reason(error)) if error is not None else None)
        if group.is_complete:
            self._write(group)

    def _finish_row(self, group: GroupRun, result: JobResult, reason: str | None) -> None:
        row = group.numbers[result.job.id]
        if reason is None:
            assert result.document is not None
            group.results[row] = describe_document(result.document, self._request.intake)
            self._account.add_done(result)
        else:
            group.results[row] = RowResult(error=reason)
            self._account.failed[result.job.id] = reason
        self._report.finish_job(result, reason)

    def _measure(self) -> Progress:
        finished = len(self._account.done) + len(self._account.failed)
        workers = self._runtime.supervisor.status() if self._runtime is not None else []
        timed = self._request.intake is not Intake.TEXTS
        return Progress(workers, min(self._audio_begun, self._seconds), self._seconds, finished, self._total, timed)

    def _fail_group(self, group: GroupRun, error: BaseException) -> None:
        if isinstance(error, Stopped | LoadError):
            self._is_halted = True
            return
        reason = strip_name(group.file.name, find_reason(error))
        self._account.failed[group.job.id] = reason
        self._report.finish_job(JobResult(group.job), reason)
