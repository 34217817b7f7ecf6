"""A run: the jobs of a folder through the runtime, with a journal, a report and an orderly end."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from engines.base import InputError, Job, LoadError
from prefork import memlog, performance
from prefork.corpus import Corpus, find_jobs
from prefork.jobs import JobResult
from prefork.journal import FOLDER, Journal
from prefork.outputs import OutputFolder
from prefork.report import Report, Summary, View
from prefork.runtime import Runtime
from prefork.tasks import HangLimit, Stopped

DRAIN_SECONDS = 4.0  # after the first Ctrl-C; everything is to be over within 5
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    source: Path
    target: Path
    command: str
    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    media: Path | None = None
    workers: int | None = None
    threads: int | None = None
    strategy: str | None = None
    force_cpu: bool = False
    no_mps: bool = False
    memory_limit: int | None = None
    mem_guard: bool = False
    memory_checkpoints: bool = False
    hang_limit: HangLimit = field(default_factory=HangLimit)
    redo: bool = False


class Run:
    """One command's work, from finding the jobs to the summary. Lives in the main thread, which gets the signals."""

    def __init__(self, request: Request, report: Report) -> None:
        self._request = request
        self._report = report
        self._started = time.monotonic()
        self._stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
        self._logs = request.target / memlog.FOLDER
        self._results: queue.SimpleQueue[JobResult] = queue.SimpleQueue()
        self._signals: list[int] = []
        self._load_seconds = 0.0
        self._heeded = 0  # of the signals, those that were acted on
        self._log_file: Any = None
        self._runtime = Runtime(
            request.engine,
            options=request.options,
            workers=request.workers,
            threads=request.threads,
            strategy=request.strategy,
            force_cpu=request.force_cpu,
            no_mps=request.no_mps,
            hang_limit=request.hang_limit,
            memory_limit=request.memory_limit,
            mem_guard=request.mem_guard,
            memory_log=self._logs / f"{self._stamp}{memlog.SUFFIX}",
            memory_checkpoints=request.memory_checkpoints,
            command=request.command,
            notice=report.note,
            log=self._log,
        )
        self._done: list[JobResult] = []
        self._failed: dict[str, str] = {}
        self._warnings: dict[str, tuple[str, ...]] = {}
        self._audio_begun = 0.0  # seconds of audio done in jobs that are not

    def execute(self) -> int:
        """The exit code: 0 if every job is done, 1 if one failed, 3 if memory was too short to go on, 128 + signal if
        it was stopped."""
        try:
            summary = self._execute()
        finally:
            self._runtime.supervisor.drain(0)
            self._runtime.supervisor.join()
            self._report.close()
            if self._log_file is not None:
                self._log_file.close()
        self._write_performance(summary)
        self._report.end(summary)
        if self._runtime.supervisor.failure is not None:
            raise self._runtime.supervisor.failure
        if self._signals and summary.unfinished:
            return 128 + self._signals[0]
        if self._runtime.supervisor.exhausted and summary.unfinished:
            return 3
        return 1 if self._failed else 0

    def _execute(self) -> Summary:
        request = self._request
        corpus = find_jobs(request.source, request.target, request.formats, request.media)
        self._failed |= {problem.id: strip_name(problem.id, problem.reason) for problem in corpus.problems}
        folder = OutputFolder(request.target)
        journal = Journal(folder)
        try:
            if journal.recovered is not None:
                self._report.note(
                    f"the journal could not be read; it is kept as {journal.recovered}, everything is made again"
                )
            with self._listen():
                while not self._runtime.supervisor.loaded.wait(_LOOK_SECONDS):
                    self._look_around()
                self._load_seconds = time.monotonic() - self._started
                skipped = 0
                if not self._signals:
                    self._runtime.wait_until_loaded()
                    skipped = self._work(corpus, folder, journal)
        finally:
            journal.close()
        return self._summarise(corpus, skipped)

    def _work(self, corpus: Corpus, folder: OutputFolder, journal: Journal) -> int:
        """Runs what is still to do; the number of jobs that an earlier run has done."""
        inventory = self._runtime.supervisor.inventory
        assert inventory is not None
        fingerprint = inventory.fingerprints[self._request.engine]
        jobs = [job for job in corpus.jobs if self._request.redo or not journal.is_done(job, fingerprint)]
        self._report.begin(lambda: self._look(jobs))
        self._runtime.run(jobs, folder.root, self._results.put, self._advance)
        waiting = len(jobs)
        while waiting:
            self._look_around()
            with suppress(queue.Empty):
                self._take(self._results.get(timeout=_LOOK_SECONDS), journal, fingerprint)
                waiting -= 1
        self._runtime.shutdown()
        return len(corpus.jobs) - len(jobs)

    def _take(self, result: JobResult, journal: Journal, fingerprint: Mapping[str, Any]) -> None:
        job, error = result.job, result.error
        if isinstance(error, Stopped | LoadError):  # nothing is wrong with the job; it is left for the next run
            return
        if error is None:
            journal.record(job, fingerprint, result.files)
            self._done.append(JobResult(job, files=result.files))
            if result.document is not None and result.document.warnings:
                self._warnings[job.id] = result.document.warnings
            self._report.finish_job(result, None)
            return
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        reason = strip_name(job.id, text)
        if error.__cause__ is not None and not isinstance(error, InputError):
            self._log(f"{job.id}: {error.__cause__}\n")
        journal.record(job, fingerprint, error=reason)
        self._failed[job.id] = reason
        self._report.finish_job(result, reason)

    def _advance(self, seconds: float) -> None:
        self._audio_begun += seconds

    def _look(self, jobs: list[Job]) -> View:
        finished = len(self._done) + sum(job.id in self._failed for job in jobs)
        total = sum(job.seconds for job in jobs)
        return View(self._runtime.supervisor.status(), min(self._audio_begun, total), total, finished, len(jobs))

    @contextmanager
    def _listen(self) -> Iterator[None]:
        """Takes note of Ctrl-C and SIGTERM. Before there is anything to save, they end it as always."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {n: signal.signal(n, lambda number, _: self._signals.append(number)) for n in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _look_around(self) -> None:
        """First Ctrl-C or SIGTERM: what runs may end. Second: nothing may. A signal handler itself must not do this:
        the lock it wants may be held by the very code that it interrupts."""
        while self._heeded < min(len(self._signals), 2):
            self._heeded += 1
            if self._heeded == 1:
                self._report.note(f"stopping within {DRAIN_SECONDS + 1:.0f} s; once more stops at once")
            self._runtime.supervisor.drain(DRAIN_SECONDS if self._heeded == 1 else 0.0)
        self._report.refresh()

    def _log(self, text: str) -> None:
        """What the engines' libraries say on stderr goes beside the journal, not between the user's lines."""
        if self._log_file is None:
            path = self._request.target / FOLDER / "log.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._log_file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._log_file.write(text)
        self._log_file.flush()

    def _write_performance(self, summary: Summary) -> None:
        supervisor, request = self._runtime.supervisor, self._request
        if supervisor.plan is None or supervisor.inventory is None:
            return
        governor = supervisor.governor
        names = {
            "command": request.command,
            "engine": request.engine,
            "model": governor.model,
            "dtype": governor.dtype,
        }
        content = performance.describe(
            names, summary, governor.tally, supervisor.steps, supervisor.plan, supervisor.inventory
        )
        performance.write(self._logs / f"{self._stamp}{performance.SUFFIX}", content, self._report.note)

    def _summarise(self, corpus: Corpus, skipped: int) -> Summary:
        supervisor = self._runtime.supervisor
        inventory = supervisor.inventory
        plan = supervisor.plan
        tally = supervisor.governor.tally
        failed = sum(job.id in self._failed for job in corpus.jobs)  # the others that failed never became jobs
        return Summary(
            done=len(self._done),
            skipped=skipped,
            failed=self._failed,
            unfinished=len(corpus.jobs) - skipped - len(self._done) - failed,
            notices={notice.id: notice.reason for notice in corpus.notices},
            warnings=self._warnings,
            audio_seconds=sum(result.job.seconds for result in self._done),
            wall_seconds=time.monotonic() - self._started,
            load_seconds=self._load_seconds,
            strategy=plan.strategy if plan else "",
            workers=plan.workers if plan else 0,
            threads=plan.threads if plan else 0,
            shared=plan.shared if plan else False,
            weights=inventory.weights if inventory else 0,
            private=max(tally.peaks.values(), default=0),
            total=tally.most,
            measured=tally.measured,
            close=tally.close,
            throttles=tally.throttles,
            throttled=tally.throttled,
            shrinks=tally.shrinks,
            starved=tally.kills,
            deaths=supervisor.deaths,
            target=str(self._request.target),
        )


def strip_name(job: str, reason: str) -> str:
    """The reason without the job's name before it, which stands there already wherever it is shown.

    >>> strip_name("a/b.cha", "b.cha: is not UTF-8")
    'is not UTF-8'
    """
    for name in (job, PurePath(job).name):
        reason = reason.removeprefix(f"{name}: ")
    return reason


def run(request: Request, make_report: Callable[[], Report]) -> int:
    """Executes a request. What makes the whole run impossible is raised: InputError, LoadError."""
    return Run(request, make_report()).execute()
