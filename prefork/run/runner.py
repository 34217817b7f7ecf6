"""A run: the jobs of a folder through the runtime, with a journal, a report and an orderly end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

from prefork.engines.base import InputError, Job, LoadError
from prefork.fingerprint import ModelFile, list_files, summarise
from prefork.memory import memlog
from prefork.outputs import OutputFolder
from prefork.pool.jobs import Course, JobResult
from prefork.pool.pipeline import Pipeline, Residency, choose_languages, list_phases
from prefork.pool.runtime import Runtime, run_jobs
from prefork.run import performance
from prefork.run.account import Account, list_suspicions
from prefork.run.computer import Computer
from prefork.run.corpus import Corpus, find_languages
from prefork.run.fingerprints import Fingerprint, note_models, start_completing
from prefork.run.headers import narrow
from prefork.run.journal import FOLDER, Journal
from prefork.run.log_file import LogFile
from prefork.run.problems import strip_name
from prefork.run.request import RunRequest
from prefork.run.result_cache import CacheRequest, ResultCache
from prefork.run.runtimes import start_runtime
from prefork.run.shards import choose
from prefork.run.signals import catch_signals
from prefork.run.status import Figures, StatusFile
from prefork.run.summary import Report, Summary

DRAIN_SECONDS = 4.0  # after the first Ctrl-C; everything is to be over within 5
_POLL_SECONDS = 0.1
_ROUND_SECONDS = 7200.0  # of audio that goes through all phases before more of it begins


class Run:
    """One command's work, from finding the jobs to the summary: what holds whatever the jobs are. Lives in the main
    thread, which gets the signals."""

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
        memory_log = self._logs / f"{self._stamp}{memlog.SUFFIX}"
        return start_runtime(pipeline, request, request, memory_log, self._report.note, self._log.write)

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

    def _find_jobs(self) -> Corpus:
        """All of IN, and what of it cannot be used. Raises InputError."""
        raise NotImplementedError

    def _work(self, corpus: Corpus, folder: OutputFolder, journal: Journal) -> int:
        """Runs what is still to do; the number of jobs that an earlier run has done. Where nothing is, no model is
        loaded."""
        raise NotImplementedError

    def _measure_job(self, job: Job) -> float:
        """How long it takes compared to another, for shards."""
        return job.seconds

    def _count(self) -> Figures:
        return Figures(self._jobs, self._skipped, len(self._account.done), len(self._account.failed))

    def _count_jobs(self, corpus: Corpus) -> int:
        return len(corpus.jobs) + len(corpus.problems)

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

    def _begin_jobs(
        self, jobs: Sequence[Job], course: Course, done: Callable[[JobResult], None], documents: Mapping[str, bytes]
    ) -> None:
        """done: called in any thread."""
        assert isinstance(self._runtime, Runtime)
        run_jobs(self._runtime, jobs, course, done, documents)

    def _find_changed_model(self) -> str:
        """A file of the models that is not what it was: a process that was started since may have read it. Empty if
        there is none."""
        return min((file.path for file in self._model_files if not file.is_current()), default="")

    def _advance(self, seconds: float) -> None:
        self._audio_begun += seconds / len(self._phases)

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
        from prefork.run.file_run import FileRun

        return FileRun(request, make_report()).execute()
    from prefork.run.data_run import DataRun

    return DataRun(replace(request, cache=CacheRequest()), rows, make_report()).execute()  # rows are not kept
