"""What a run has come to so far: its jobs, and the runtimes that ran them one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.cache.pieces import Savings
from prefork.memory.tally import Tally, describe_subjects
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.pool.jobs import JobResult
from prefork.run import performance
from prefork.run.computer import Computer
from prefork.run.corpus import Corpus
from prefork.run.summary import Summary
from prefork.wire.specification import Inventory

if TYPE_CHECKING:
    from prefork.run.request import RunRequest


class Account:
    """The figures of a run, added up while it lasts."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.inventory: Inventory | None = None
        self.tally = Tally()
        self.steps: Counter[tuple[str, str]] = Counter()
        self.deaths = 0
        self.load_seconds = 0.0
        self.exhausted = False
        self.failure: BaseException | None = None
        self.done: list[JobResult] = []  # without their documents
        self.failed: dict[str, str] = {}  # by job: the reason
        self.restored: Mapping[str, float] = {}  # jobs that were kept: seconds that they took to compute
        self.segments = Savings()  # of all others
        self._warnings: dict[str, tuple[str, ...]] = {}
        self._recovery: Counter[str] = Counter()
        self._tagged: Counter[str] = Counter()

    def add_runtime(self, runtime: Computer) -> None:
        """One that has ended."""
        supervisor = runtime.supervisor
        self.plan = supervisor.plan or self.plan
        known, new = self.inventory, supervisor.inventory
        if known is not None and new is not None:
            seconds, fingerprints = known.seconds + new.seconds, {**known.fingerprints, **new.fingerprints}
            new = replace(new, weights=max(known.weights, new.weights), seconds=seconds, fingerprints=fingerprints)
        self.inventory = new or known
        self.tally = self.tally.merge(supervisor.governor.tally)
        self.steps.update(supervisor.steps)
        self.deaths += supervisor.deaths
        self.exhausted = self.exhausted or bool(supervisor.exhausted)
        self.failure = self.failure or supervisor.failure

    def write_performance(
        self, path: Path, request: RunRequest, summary: Summary, notice: Callable[[str], None]
    ) -> None:
        """If something was run."""
        if self.plan is None or self.inventory is None:
            return
        engines = {stage.engine: stage.options for stage in request.pipeline}
        names = {"command": request.command, **describe_subjects(engines)}
        content = performance.describe(names, summary, self.tally, self.steps, self.plan, self.inventory)
        performance.write(path, content, notice)

    def add_done(self, result: JobResult) -> None:
        """A job that is done."""
        self.done.append(JobResult(result.job, files=result.files))
        if result.warnings:
            self._warnings[result.job.id] = result.warnings
        document = result.document
        if document is None:
            return
        if document.recovery is not None:
            self._recovery.update(asdict(document.recovery))
        self._tagged.update(result.count_tagged())

    def summarise(self, corpus: Corpus, skipped: int, target: str, seconds: float) -> Summary:
        """skipped: jobs that an earlier run had done. seconds: since the run began."""
        inventory, plan, tally = self.inventory, self.plan, self.tally
        failed = sum(job.id in self.failed for job in corpus.jobs)  # the others that failed never became jobs
        return Summary(
            done=len(self.done),
            skipped=skipped,
            failed=self.failed,
            unfinished=len(corpus.jobs) - skipped - len(self.done) - failed,
            notices={notice.id: notice.reason for notice in corpus.notices},
            warnings=self._warnings,
            audio_seconds=sum(result.job.seconds for result in self.done if result.job.media is not None),
            utterances=self._tagged["utterances"],
            words=self._tagged["words"],
            wall_seconds=seconds,
            load_seconds=self.load_seconds,
            strategy=plan.strategy if plan else "",
            gpus=performance.list_gpus(plan, tally) if plan else (),
            workers=plan.workers if plan else 0,
            threads=plan.threads if plan else 0,
            servers=plan.servers if plan else 0,
            server_threads=plan.server_threads if plan else 0,
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
            deaths=self.deaths,
            recovery=dict(self._recovery),
            kept_files=len(self.restored),
            kept_segments=self.segments.found,
            segments=self.segments.segments,
            saved_seconds=sum(self.restored.values()) + self.segments.saved,
            target=target,
        )


def list_suspicions(runtime: Computer) -> Iterator[str]:
    """Before the first fork: what was doubted, and has been tried."""
    inventory = runtime.supervisor.inventory
    plan = runtime.supervisor.plan
    if inventory is None or plan is None or plan.strategy is not Strategy.FORK:  # then the reason has been told
        return
    for engine, reason in inventory.suspicions.items():
        threads = "; ".join(hazard.what for hazard in inventory.hazards) or "none exists now"
        yield f"{engine}: {reason} ({threads}); a canary computed with it, so forking is safe here"
