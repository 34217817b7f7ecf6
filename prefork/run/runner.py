"""A run: the jobs of a folder through the runtime, with a journal, a report and an orderly end."""

from __future__ import annotations

import math
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from prefork.engines.base import InputError, Job, LoadError
from prefork.errors import Stopped
from prefork.fingerprint import ModelFile, list_files, summarise
from prefork.memory import memlog
from prefork.outputs import OutputFolder
from prefork.pool.jobs import Course, JobResult, divide
from prefork.pool.pipeline import Intake, Pipeline, Residency, choose_languages, list_phases
from prefork.pool.runtime import Runtime, run_jobs
from prefork.run import performance
from prefork.run.account import Account, list_suspicions
from prefork.run.computer import Computer
from prefork.run.corpus import Corpus, find_jobs, find_languages
from prefork.run.fingerprints import Fingerprint, complete_all, note_models, plan_phase, start_completing
from prefork.run.headers import narrow
from prefork.run.journal import FOLDER, Journal
from prefork.run.log_file import LogFile
from prefork.run.problems import find_reason, strip_name
from prefork.run.request import RunRequest
from prefork.run.result_cache import CacheRequest, ResultCache
from prefork.run.shards import choose
from prefork.run.signals import catch_signals
from prefork.run.status import Figures, StatusFile
from prefork.run.summary import Progress, Report, Summary

DRAIN_SECONDS = 4.0  # after the first Ctrl-C; everything is to be over within 5
_POLL_SECONDS = 0.1
_ROUND_SECONDS = 7200.0  # of audio that goes through all phases before more of it begins


class Run:
    """One command's work, from finding the jobs to the summary. Lives in the main thread, which gets the signals."""

    def __init__(self, request: RunRequest, report: Report) -> None:
        look = partial(find_languages, request.source, request.target, request.follow_links)
        pipeline = choose_languages(request.pipeline, look)
        request = self._request = replace(request, pipeline=pipeline)
        self._report = report
        self._started = time.monotonic()
        self._suffix = request.shard.suffix if request.shard is not None else ""
        self._stamp = time.strftime("%Y-%m-%dT%H-%M-%S") + self._suffix
        self._logs = request.target / memlog.FOLDER
        self._signals: list[int] = []
        self._handled = 0  # of the signals, those that were acted on
        self._ends = math.inf  # when the run is over, once somebody has stopped it; seconds of time.monotonic
        self._log = LogFile(request.target / FOLDER / f"log{self._suffix}.txt")
        self._phases = list_phases(request.pipeline) if request.residency is Residency.STAGE else [request.pipeline]
        self._account = Account()
        self._model_files: set[ModelFile] = set()  # as they were when the run began
        self._audio_begun = 0.0  # seconds of audio done in jobs that are not
        self._runtime: Computer | None = None
        self._jobs = 0  # with those that cannot be used
        self._skipped = 0  # jobs that an earlier run has done
        self._status: StatusFile | None = None
        wanted = request.cache.refresh() if request.redo else request.cache
        self._cache = ResultCache(wanted, request.pipeline, report.note)

    def _make_runtime(self, pipeline: Pipeline) -> Computer:
        request = self._request
        self._load_started = time.monotonic()
        self._report.load([stage.engine for stage in pipeline if not stage.is_remote])
        return Runtime(
            pipeline,
            workers=request.workers,
            threads=request.threads,
            strategy=request.strategy,
            devices=request.devices or None,
            batching=request.batching,
            force_cpu=request.force_cpu,
            no_mps=request.no_mps,
            hang_limit=request.hang_limit,
            memory_limit=request.memory_limit,
            mem_guard=request.mem_guard,
            memory_log=self._logs / f"{self._stamp}{memlog.SUFFIX}",
            memory_checkpoints=request.memory_checkpoints,
            command=request.command,
            notice=self._report.note,
            log=self._log.write,
        )

    def execute(self) -> int:
        """The exit code: 0 if every job is done, 1 if one failed, 3 if memory was too short to go on, 128 + signal if
        it was stopped."""
        try:
            summary = self._execute()
        finally:
            self._end_runtime(at_once=True)
            self._cache.close()
            self._report.close()
            self._log.close()
        self._write_performance(summary)
        self._report.end(summary)
        if self._account.failure is not None:
            raise self._account.failure
        if self._signals and summary.unfinished:
            return 128 + self._signals[0]
        if self._account.exhausted and summary.unfinished:
            return 3
        return 1 if self._account.failed else 0

    def _execute(self) -> Summary:
        whole = self._find_jobs()
        shard = self._request.shard
        corpus = choose(whole, shard, self._measure_job) if shard is not None else whole
        problems = {p.id: strip_name(p.id, p.reason) for p in corpus.problems}
        self._account.failed |= problems
        folder = OutputFolder(self._request.target)
        journal = Journal(folder, self._report.note, self._suffix)
        try:
            status = self._status = StatusFile(folder.root, self._request.command, shard, self._report.note)
            status.begin(journal, whole.jobs, corpus.jobs, self._count_jobs(whole), problems)
            self._jobs = self._count_jobs(corpus)
            with catch_signals(self._signals):
                status.refresh(self._count)
                skipped = self._work(corpus, folder, journal)
            status.end(self._count())
            lost = sum(not all(map(folder.has, result.files)) for result in self._account.done)
            if lost or not journal.path.exists():
                raise InputError(f"{folder.root}: {lost} of its outputs were removed while this run wrote; start again")
        finally:
            journal.close()
        self._end_runtime()
        return self._summarise(corpus, skipped)

    def _measure_job(self, job: Job) -> float:
        """How long it takes compared to another, for shards."""
        return job.seconds

    def _count(self) -> Figures:
        return Figures(self._jobs, self._skipped, len(self._account.done), len(self._account.failed))

    def _count_jobs(self, corpus: Corpus) -> int:
        return len(corpus.jobs) + len(corpus.problems)

    def _find_jobs(self) -> Corpus:
        request = self._request
        more = {name: getattr(request, name) for name in ("selection", "follow_links", "layout", "language")}
        return find_jobs(request.source, request.target, request.formats, request.media, request.intake, **more)

    def _summarise(self, corpus: Corpus, skipped: int) -> Summary:
        seconds = time.monotonic() - self._started
        self._account.restored = self._cache.restored
        self._account.segments = self._cache.sum_up()
        return self._account.summarise(corpus, skipped, str(self._request.target), seconds)

    def _wait_until_loaded(self) -> bool:
        """Whether there is a runtime that can work. Raises LoadError if there cannot be."""
        assert self._runtime is not None
        while not self._runtime.supervisor.loaded.wait(_POLL_SECONDS):
            self._handle_signals()
        self._account.load_seconds += time.monotonic() - self._load_started
        if self._signals:
            return False
        self._runtime.wait_until_loaded()
        for text in list_suspicions(self._runtime):
            self._report.note(text)
        return True

    def _end_runtime(self, at_once: bool = False) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            if at_once:
                runtime.supervisor.drain(0)
            runtime.shutdown()
            self._account.add_runtime(runtime)

    def _describe_inputs(self) -> Mapping[str, Any]:
        """What of the inputs is used, if outputs depend on that; in JSON values."""
        return {}

    def _find_fingerprint(self) -> Future[Fingerprint]:
        request = self._request
        stages = tuple(stage for phase in self._phases for stage in phase)
        known = note_models(stages, self._runtime, request.force_cpu, request.no_mps)
        self._model_files = list_files(known)
        return start_completing([stage.engine for stage in request.pipeline], known, self._describe_inputs())

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
        known = self._cache.recall_models(self._phases, partial(plan_phase, self._request))
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

    def _find_undone(self, corpus: Sequence[Job], journal: Journal, fingerprint: Future[Fingerprint]) -> list[Job]:
        """Jobs that this run is to do. Says which of them were done before, and why that does not count."""
        jobs = list(corpus)
        if self._request.redo or not journal.has_done_any() or not self._await(fingerprint) or self._signals:
            return jobs  # once there is a signal, none of them will begin
        known = {job.id: narrow(fingerprint.result(), self._request.pipeline, job) for job in jobs}
        undone = [job for job in jobs if not journal.is_done(job, known[job.id])]
        reasons = Counter(filter(None, (journal.explain(job, known[job.id]) for job in undone)))
        if reasons:
            self._report.note(summarise(reasons))
        return undone

    def _await(self, fingerprint: Future[Fingerprint]) -> bool:
        """Whether it is there; False if the run has been stopped and is to end."""
        while not fingerprint.done() and time.monotonic() < self._ends:
            wait([fingerprint], _POLL_SECONDS)
            self._handle_signals()
        return fingerprint.done()

    def _load_phase(self, phase: Pipeline) -> bool:
        """Sees to it that the models of a phase are loaded, and no others; False if nothing more is to begin."""
        if self._runtime is not None and self._runtime.pipeline == phase:
            return True
        self._end_runtime()
        if self._signals or self._account.exhausted or self._account.failure is not None:
            return False
        self._runtime = self._make_runtime(phase)
        loaded = self._wait_until_loaded()
        if loaded:
            self._cache.remember_models(phase, self._runtime)
        if loaded and self._model_files and (changed := list_files(self._runtime.fingerprints) - self._model_files):
            raise LoadError(f"{min(file.path for file in changed)}: has changed since this run began; start again")
        return loaded

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

    def _begin_jobs(
        self, jobs: Sequence[Job], course: Course, done: Callable[[JobResult], None], documents: Mapping[str, bytes]
    ) -> None:
        """done: called in any thread."""
        assert isinstance(self._runtime, Runtime)
        run_jobs(self._runtime, jobs, course, done, documents)

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

    def _find_changed_model(self) -> str:
        """A file of the models that is not what it was: a process that was started since may have read it. Empty if
        there is none."""
        return min((file.path for file in self._model_files if not file.is_current()), default="")

    def _advance(self, seconds: float) -> None:
        self._audio_begun += seconds / len(self._phases)

    def _measure_progress(self, jobs: list[Job]) -> Progress:
        finished = len(self._account.done) + sum(job.id in self._account.failed for job in jobs)
        total = sum(job.seconds for job in jobs)
        workers = self._runtime.supervisor.status() if self._runtime is not None else []
        timed = self._request.intake is not Intake.TEXTS
        return Progress(workers, min(self._audio_begun, total), total, finished, len(jobs), timed)

    def _handle_signals(self) -> None:
        """First Ctrl-C or SIGTERM: what runs may end. Second: nothing may. A signal handler itself must not do this:
        the lock it wants may be held by the very code that it interrupts."""
        while self._handled < min(len(self._signals), 2):
            self._handled += 1
            patience = DRAIN_SECONDS if self._handled == 1 else 0.0
            self._ends = time.monotonic() + patience
            if self._handled == 1:
                self._report.note(f"stopping within {DRAIN_SECONDS + 1:.0f} s; a second Ctrl-C stops at once")
            if self._runtime is not None:
                self._runtime.supervisor.drain(patience)
        if self._status is not None:
            self._status.refresh(self._count)
        self._report.refresh()

    def _write_performance(self, summary: Summary) -> None:
        path = self._logs / f"{self._stamp}{performance.SUFFIX}"
        self._account.write_performance(path, self._request, summary, self._report.note)


def run(request: RunRequest, make_report: Callable[[], Report]) -> int:
    """Executes a request. What makes the whole run impossible is raised: InputError, LoadError."""
    rows = request.rows
    if rows is None:
        return Run(request, make_report()).execute()
    from prefork.run.data_run import DataRun

    return DataRun(replace(request, cache=CacheRequest()), rows, make_report()).execute()  # rows are not kept
