"""A run over a data set: rows are jobs; a row group is what is written, and what is resumed.

    file -> row groups -> rows that pass, through the pipeline -> part of a group -> output of the file

The supervisor's process has the rows' numbers, lengths and results; what else they hold, workers read and write.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from prefork.engines.base import InputError, Job, Output
from prefork.engines.parquet.data_set import DataFile
from prefork.engines.parquet.options import RowOptions
from prefork.engines.parquet.rows import open_file
from prefork.outputs import OutputFolder, WrittenFile
from prefork.pool.jobs import divide
from prefork.run.corpus import Corpus
from prefork.run.data_files import find_files
from prefork.run.headers import narrow
from prefork.run.journal import FOLDER, Journal
from prefork.run.problems import Problem, find_reason, strip_name
from prefork.run.request import RunRequest
from prefork.run.row_results import ADDED
from prefork.run.row_run import GroupRun, RowRun
from prefork.run.row_work import choose_rows, join_parts, write_part
from prefork.run.status import Figures
from prefork.run.summary import Report, Summary

_ROUND_SECONDS = 7200.0  # of audio that goes through all phases before more of it begins
_POLL_SECONDS = 0.1
_PORTION = 64  # row groups whose rows are chosen at a time: of the others nothing is read once there are enough
PARTS = PurePath(FOLDER) / "parts"


class DataRun(RowRun):
    """One command's work on a data set."""

    def __init__(self, request: RunRequest, options: RowOptions, report: Report) -> None:
        remote = [stage.engine for stage in request.pipeline if stage.is_remote]
        if remote:
            raise InputError(f"--engine {remote[0]} takes files, and no data set; leave out --format parquet")
        super().__init__(request, options, report)
        self._files: dict[str, DataFile] = {}  # by name
        self._left: dict[str, int] = {}  # by file: row groups that are not done

    def _measure_job(self, job: Job) -> float:
        """Rows: how long their recordings are is not known of every file."""
        return float(self._files[job.id].rows)

    def _count(self) -> Figures:
        done, failed = len(self._account.done), len(self._account.failed)
        return Figures(max(self._total, done + failed) + self._skipped, self._skipped, done, failed, "rows")

    def _count_jobs(self, corpus: Corpus) -> int:
        return sum(self._files[job.id].rows for job in corpus.jobs)

    def _find_jobs(self) -> Corpus:
        """A job for each file."""
        request = self._request
        files, problems = find_files(
            request.source, request.target, self._options, request.intake, request.follow_links
        )
        self._files = {file.name: file for file in files}
        notices = []
        for file in self._files.values():
            if replaced := [name for name in ADDED if name in file.names]:
                notices.append(Problem(file.name, f"its columns {', '.join(replaced)} are replaced in the results"))
        jobs = [self._make_job(file, file.name, PurePath(file.name)) for file in self._files.values()]
        return Corpus(tuple(jobs), tuple(problems), tuple(notices))

    @staticmethod
    def _make_job(file: DataFile, id: str, output: PurePath) -> Job:
        return Job(id, file.path, file.path, (Output("parquet", Path(output)),), states=(file.state,))

    def _describe_inputs(self) -> Mapping[str, Any]:
        return {"data": self._options.describe()}

    def _summarise(self, corpus: Corpus, skipped: int) -> Summary:
        summary = super()._summarise(corpus, skipped)
        unfinished = max(0, self._total - len(self._account.done) - len(self._account.failed))
        return replace(summary, skipped=self._skipped, unfinished=unfinished, unit="rows")

    # -- what is to be done ------------------------------------------------------------------------------------------

    def _work(self, corpus: Corpus, folder: OutputFolder, journal: Journal) -> int:
        if not corpus.jobs:
            return 0
        self._folder, self._journal = folder, journal
        idle = not self._request.redo and all(map(journal.may_be_done, corpus.jobs))
        if not idle and not self._load_phase(self._phases[0]):
            return 0
        self._fingerprint = self._find_fingerprint()
        undone = self._find_undone(corpus.jobs, journal, self._fingerprint)
        wanted = {job.id for job in undone}
        for job in corpus.jobs:
            if job.id not in wanted:
                self._skipped += self._count_rows(job)
                self._remove_parts(job.id)
        if not undone or not self._load_phase(self._phases[0]):
            return len(corpus.jobs) - len(undone)
        groups = self._choose_groups(corpus, wanted)
        self._report.begin(self._measure)
        starts = divide([group.seconds for group in groups], _ROUND_SECONDS if len(self._phases) > 1 else 1e18)
        for start, end in starts:
            for phase in self._phases:
                if self._is_halted or not self._load_phase(phase):
                    break
                self._run_groups(groups[start:end], phase is self._phases[-1])
        self._run_groups([], True)  # files whose parts were all there
        self._end_runtime()
        return len(corpus.jobs) - len(undone)

    def _choose_groups(self, corpus: Corpus, undone: Set[str]) -> list[GroupRun]:
        """The row groups that are to be done, with the rows that pass. Files whose groups are all done are joined.
        Raises InputError if no row passes, or ids occur twice."""
        known = [self._files[job.id] for job in corpus.jobs if self._options.limit or job.id in undone]
        groups = [
            GroupRun(
                file, group.number, self._make_job(file, f"{file.name}[{group.number}]", _name_part(file, group.number))
            )
            for file in known
            for group in file.groups
        ]
        done = {id(group) for group in groups if group.file.name in undone and self._is_done(group)}
        needed = groups if self._options.limit or self._options.id_column else [g for g in groups if id(g) not in done]
        left = self._options.limit or sys.maxsize
        for portion in (needed[at : at + _PORTION] for at in range(0, len(needed), _PORTION)):
            if left:
                self._choose_rows(portion)
            for group in portion:
                group.chosen = group.chosen.take(left)
                left -= len(group.chosen.rows)
        self._check_ids(needed)
        self._skipped += sum(self._count_rows(group.job) for group in groups if id(group) in done)
        todo = [
            g for g in groups if id(g) not in done and g.file.name in undone and g.job.id not in self._account.failed
        ]
        self._left = {file.name: len(file.groups) for file in known}
        for group in groups:
            self._left[group.file.name] -= id(group) in done
        self._total = sum(len(group.chosen.rows) for group in todo)
        self._seconds = sum(group.seconds for group in todo)
        if not self._total and not self._skipped and not self._account.failed and not self._is_over:
            rows = sum(file.rows for file in known)
            raise InputError(f"{self._request.source}: none of its {rows} rows passes {self._name_filters()}")
        for file in known:
            if file.name in undone and not self._left[file.name]:
                self._join(file)
        return todo

    def _name_filters(self) -> str:
        options = self._options
        given = [
            f"--where {options.where!r}" if options.where else "",
            f"--min-audio-len {options.min_audio_len}" if options.min_audio_len is not None else "",
            f"--max-audio-len {options.max_audio_len}" if options.max_audio_len is not None else "",
        ]
        return " and ".join(filter(None, given)) or "the filters; it is empty"

    def _is_done(self, group: GroupRun) -> bool:
        if self._request.redo or not self._journal.has_done_any() or not self._await(self._fingerprint):
            return False
        return self._journal.is_done(group.job, self._get_fingerprint(group.job))

    def _get_fingerprint(self, job: Job) -> Mapping[str, Any]:
        return narrow(self._fingerprint.result(), self._request.pipeline, job)

    def _count_rows(self, job: Job) -> int:
        """In the output of a job that is done."""
        with open_file(self._folder.locate(job.outputs[0].path)) as file:
            return int(file.metadata.num_rows)

    def _choose_rows(self, groups: Sequence[GroupRun]) -> None:
        """By workers. Where that fails, so does the row group."""
        assert self._runtime is not None
        futures = [
            self._runtime.submit(
                choose_rows,
                file=group.file.narrow(group.number),
                group=group.number,
                options=self._options,
                selection=self._request.selection,
            )
            for group in groups
        ]
        for group, future in zip(groups, futures, strict=True):
            while not future.done():
                self._handle_signals()
                wait([future], _POLL_SECONDS)
            error = future.exception()
            if error is None:
                group.chosen = future.result()
            else:
                self._fail_group(group, error)

    def _check_ids(self, groups: Iterable[GroupRun]) -> None:
        """Raises InputError if two rows have the same."""
        seen: dict[str, str] = {}
        for group in groups:
            for row, id in zip(group.chosen.rows, group.chosen.ids, strict=False):
                where = f"row {row} of {group.job.id}"
                if id in seen:
                    raise InputError(
                        f"{self._request.source}: {where} and {seen[id]} have the same "
                        f"{self._options.id_column} {id!r}; make the ids unique, or leave out --id-column"
                    )
                seen[id] = where

    # -- what is written ---------------------------------------------------------------------------------------------

    def _write(self, group: GroupRun) -> None:
        """The part, by a worker; and the file, if this was the last of its parts."""
        results = sorted(group.results.items())
        group.results = {}
        path = PurePath(group.job.outputs[0].path)
        self._submit(
            partial(self._take_part, group),
            write_part,
            file=group.file.narrow(group.number),
            group=group.number,
            results=results,
            options=self._options,
            target=self._folder.root,
            path=path,
        )

    def _take_part(self, group: GroupRun, future: Future[Any]) -> None:
        if (error := future.exception()) is not None:
            self._fail_group(group, error)
            return
        self._note_done(group.job, (future.result(),))
        self._left[group.file.name] -= 1
        if not self._left[group.file.name]:
            self._join(group.file)

    def _join(self, file: DataFile) -> None:
        parts = [_name_part(file, group.number) for group in file.groups]
        take = partial(self._take_file, file)
        self._submit(take, join_parts, parts=parts, target=self._folder.root, path=PurePath(file.name))

    def _take_file(self, file: DataFile, future: Future[Any]) -> None:
        if (error := future.exception()) is not None:
            self._account.failed[file.name] = strip_name(file.name, find_reason(error))
            return
        if not file.state.is_current():
            self._account.failed[file.name] = "has changed since this run began, so nothing was recorded; run it again"
            return
        self._note_done(self._make_job(file, file.name, PurePath(file.name)), (future.result(),))
        self._remove_parts(file.name)

    def _note_done(self, job: Job, files: tuple[WrittenFile, ...]) -> None:
        if self._await(self._fingerprint):
            self._journal.record(job, self._get_fingerprint(job), files)

    def _remove_parts(self, name: str) -> None:
        shutil.rmtree(self._folder.root / PARTS / name, ignore_errors=True)


def _name_part(file: DataFile, group: int) -> PurePath:
    return PARTS / file.name / f"{group}.parquet"
