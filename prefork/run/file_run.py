"""A run over files: each is a job, looked up in the journal and the result cache, run, and recorded."""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress

from prefork.engines.base import InputError, Job, LoadError
from prefork.errors import Stopped
from prefork.fingerprint import list_files
from prefork.outputs import OutputFolder
from prefork.pool.jobs import Course, JobResult, divide
from prefork.pool.pipeline import Intake
from prefork.run.corpus import Corpus, find_jobs
from prefork.run.fingerprints import Fingerprint, complete_all
from prefork.run.headers import narrow
from prefork.run.journal import Journal
from prefork.run.problems import find_reason, strip_name
from prefork.run.runner import Run
from prefork.run.runtimes import plan_runtime
from prefork.run.summary import Progress

_POLL_SECONDS = 0.1
_ROUND_SECONDS = 7200.0  # of audio that goes through all phases before more of it begins


class FileRun(Run):
    """One command's work on a folder of files, or on a single one."""

    def _find_jobs(self) -> Corpus:
        request = self._request
        return find_jobs(
            request.source,
            request.target,
            request.formats,
            request.media,
            request.intake,
            selection=request.selection,
            follow_links=request.follow_links,
            layout=request.layout,
            language=request.language,
        )

    def _work(self, corpus: Corpus, folder: OutputFolder, journal: Journal) -> int:
        """Runs what is still to do; the number of jobs that an earlier run has done. Where nothing is, no model is
        loaded.

        Where models take turns, so many jobs go through all phases before others begin that little is lost if the run
        ends in between.
        """
        jobs = self._restore(corpus.jobs, folder, journal)
        if not jobs:
            self._skipped = len(corpus.jobs) - self._count_over(corpus.jobs)
            return self._skipped
        idle = not self._request.redo and all(map(journal.may_be_done, jobs))
        if not idle and not self._load_phase(self._phases[0]):
            return 0
        fingerprint = self._find_fingerprint()
        if self._cache.fingerprint is None:  # else it has been asked
            jobs = self._find_undone(jobs, journal, fingerprint)
        skipped = self._skipped = len(corpus.jobs) - self._count_over(corpus.jobs) - len(jobs)
        if not jobs:
            return skipped
        if self._cache.is_on and self._await(fingerprint):
            self._cache.fingerprint = fingerprint.result()
        begun = [*(result.job for result in self._account.done), *jobs]
        self._report.begin(lambda: self._measure_progress(begun))
        rounds = divide([job.seconds for job in jobs], _ROUND_SECONDS if len(self._phases) > 1 else math.inf)
        for start, end in rounds:
            left, documents = jobs[start:end], dict[str, bytes]()
            for phase in self._phases:
                if not self._load_phase(phase):
                    break
                results = self._run_phase(left, folder, documents)
                documents = {}
                for some in results:
                    documents |= {result.job.id: result.passed for result in some if result.passed is not None}
                    self._record([result for result in some if result.passed is None], journal, fingerprint, folder)
                left = [job for job in left if job.id in documents]
        self._end_runtime()
        return skipped

    def _count_over(self, jobs: Sequence[Job]) -> int:
        """Those that this run has done, or that have failed in it."""
        return len(self._account.done) + sum(job.id in self._account.failed for job in jobs)

    def _restore(self, corpus: Sequence[Job], folder: OutputFolder, journal: Journal) -> list[Job]:
        """Writes what was computed before, without looking at a model; the jobs that are left to be looked at."""
        known = self._cache.recall_models(self._phases, lambda phase: plan_runtime(phase, self._request))
        if known is None:
            return list(corpus)
        self._model_files = list_files(known)
        fingerprint: Future[Fingerprint] = Future()
        self._cache.fingerprint = complete_all([stage.engine for stage in self._request.pipeline], known)
        fingerprint.set_result(self._cache.fingerprint)
        jobs = self._find_undone(corpus, journal, fingerprint)
        if jobs and self._cache.looks:
            self._report.begin(lambda: self._measure_progress(jobs))
        left = []
        for job in jobs:
            self._handle_signals()
            result = None if self._signals else self._cache.restore(job, folder)
            if result is None:
                left.append(job)
            else:
                self._record([result], journal, fingerprint, folder)
        return left

    def _run_phase(
        self, jobs: list[Job], folder: OutputFolder, documents: Mapping[str, bytes]
    ) -> Iterator[list[JobResult]]:
        """Results, as they come: all that there are."""
        runtime = self._runtime
        assert runtime is not None
        results: queue.SimpleQueue[JobResult] = queue.SimpleQueue()
        passing = runtime.pipeline != self._phases[-1]
        first = sum(map(len, self._phases[: self._phases.index(runtime.pipeline)]))
        course = Course(runtime.pipeline, folder.root, passing, self._advance, self._cache.pieces, first)
        self._begin_jobs(jobs, course, results.put, documents)
        waiting = len(jobs)
        while waiting:
            self._handle_signals()
            with suppress(queue.Empty):
                some = [results.get(timeout=_POLL_SECONDS)]
                with suppress(queue.Empty):
                    while True:
                        some.append(results.get_nowait())
                waiting -= len(some)
                yield some

    def _record(
        self, results: Sequence[JobResult], journal: Journal, fingerprint: Future[Fingerprint], folder: OutputFolder
    ) -> None:
        """Results that came together: what came of jobs is in the journal before anything says so."""
        # Nothing is wrong with a job that was stopped; it is left for the next run.
        results = [result for result in results if not isinstance(result.error, Stopped | LoadError)]
        if any(result.error is None for result in results) and (changed := self._find_changed_model()):
            problem = LoadError(f"{changed}: has changed since this run began; start again")
            if self._runtime is None:
                raise problem
            self._runtime.supervisor.give_up(problem)
            results = [result for result in results if result.error is not None]
        if not results or not self._await(fingerprint):  # then the journal cannot say what it was made with
            return
        reasons = [
            None if result.error is None else strip_name(result.job.id, find_reason(result.error)) for result in results
        ]
        with journal.together():
            for result, reason in zip(results, reasons, strict=True):
                made_with = narrow(fingerprint.result(), self._request.pipeline, result.job)
                journal.record(result.job, made_with, () if result.error else result.files, reason)
        for result, reason in zip(results, reasons, strict=True):
            self._finish(result, reason, folder)

    def _finish(self, result: JobResult, reason: str | None, folder: OutputFolder) -> None:
        """A job that is in the journal. reason: why it was set aside."""
        job, error = result.job, result.error
        if error is None:
            self._account.add_done(result)
            if job.id not in self._cache.restored:
                self._cache.keep(result, folder)
        else:
            if error.__cause__ is not None and not isinstance(error, InputError):
                self._log.write(f"{job.id}: {error.__cause__}\n")
            self._account.failed[job.id] = str(reason)
        self._report.finish_job(result, reason)

    def _measure_progress(self, jobs: list[Job]) -> Progress:
        finished = len(self._account.done) + sum(job.id in self._account.failed for job in jobs)
        total = sum(job.seconds for job in jobs)
        workers = self._runtime.supervisor.status() if self._runtime is not None else []
        timed = self._request.intake is not Intake.TEXTS
        return Progress(workers, min(self._audio_begun, total), total, finished, len(jobs), timed)
