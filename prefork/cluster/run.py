"""A run over many machines: as any run, but what computes is a cluster."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefork.cluster.connecting import connect, count_local
from prefork.cluster.driver import Cluster
from prefork.cluster.messages import MachineOptions, Session
from prefork.cluster.work import make_absolute
from prefork.engines.base import InputError, Job, LoadError
from prefork.fingerprint import list_files
from prefork.memory import memlog
from prefork.pool.jobs import Course, JobResult
from prefork.pool.pipeline import Pipeline
from prefork.run import performance
from prefork.run.computer import Computer
from prefork.run.corpus import Corpus
from prefork.run.data_run import DataRun
from prefork.run.file_run import FileRun
from prefork.run.fingerprints import Fingerprint, Noted, complete_all, note_models
from prefork.run.request import RunRequest
from prefork.run.result_cache import CacheRequest
from prefork.run.runner import Run
from prefork.run.summary import Progress, Report, Summary

_PLAN_SECONDS = 60.0  # for machines to look at themselves


class ClusterRun(Run):
    """What holds of any run over machines."""

    def use(self, place: str, tls: Path | None) -> None:
        """place: what the user says of the cluster. tls: the folder of its certificates."""
        self._place, self._tls = place, tls
        self._stack = ExitStack()
        self._client: Any = None
        self._known: Noted = {}
        self._example: Job | None = None
        self._clusters: list[Cluster] = []  # of this run, one for each phase

    def execute(self) -> int:
        with self._stack:
            return super().execute()

    def _find_jobs(self) -> Corpus:
        corpus = super()._find_jobs()
        self._example = next((job for job in corpus.jobs if job.states), None)
        return corpus

    def _make_runtime(self, pipeline: Pipeline) -> Computer:
        """Raises LoadError."""
        request = self._request
        self._load_started = time.monotonic()
        if self._client is None:
            self._client, self._may_come = self._stack.enter_context(connect(self._place, self._tls))
        self._report.load([stage.engine for stage in pipeline])
        session = make_session(request, pipeline, self._look_at_models(), self._example)
        cluster = Cluster(self._client, session, self._report.note, self._log.write, self._may_come)
        self._clusters.append(cluster)
        return cluster

    def _look_at_models(self) -> Noted:
        """As they are here: another process opens them, and loads none."""
        if not self._known:
            stages = tuple(stage for phase in self._phases for stage in phase)
            self._known = note_models(stages, None, self._request.force_cpu, self._request.no_mps)
            self._model_files = list_files(self._known)
        return self._known

    def _find_fingerprint(self) -> Future[Fingerprint]:
        """That of the driver, which all machines have."""
        found: Future[Fingerprint] = Future()
        whole = complete_all([stage.engine for stage in self._request.pipeline], self._look_at_models())
        found.set_result({**whole, **self._describe_inputs()})
        return found

    def _begin_jobs(
        self, jobs: Sequence[Job], course: Course, done: Callable[[JobResult], None], documents: Mapping[str, bytes]
    ) -> None:
        self._clusters[-1].run_jobs(jobs, course, done, documents)

    def _list_machines(self) -> tuple[Any, ...]:
        return tuple(self._clusters[-1].list_machines()) if self._clusters else ()

    def _summarise(self, corpus: Corpus, skipped: int) -> Summary:
        summary = super()._summarise(corpus, skipped)
        machines = self._list_machines()
        reports = [report for cluster in self._clusters for report in cluster.reports]
        if not machines:
            return summary
        return replace(
            summary,
            machines=machines,
            workers=sum(machine.workers for machine in machines if machine.state not in ("refused", "lost", "left")),
            strategy=", ".join(sorted({report.strategy for report in reports if report.strategy})),
            threads=max((report.threads for report in reports), default=1),
            shared=all(report.shared for report in reports),
            weights=max((report.weights for report in reports), default=0),
        )

    def _write_performance(self, summary: Summary) -> None:  # noqa: ARG002
        """A performance log and a memory log of each machine, as it has reported them."""
        for cluster in self._clusters:
            for number, report in enumerate(cluster.reports):
                name = f"{self._stamp}-{''.join(c if c.isalnum() else '-' for c in report.name)}-{number}"
                tally = asdict(replace(report.tally, peaks={}))
                tally["peaks"] = {" ".join(key).strip(): peak for key, peak in report.tally.peaks.items()}
                tally["lowest"] = None if tally["lowest"] == float("inf") else tally["lowest"]
                steps = {" ".join(key): round(seconds, 3) for key, seconds in report.steps.items()}
                content = {
                    "machine": report.name,
                    "command": self._request.command,
                    **{key: getattr(report, key) for key in ("device", "strategy", "workers", "threads", "weights")},
                    "load_seconds": report.seconds,
                    "deaths": report.deaths,
                    "steps": steps,
                    "memory": tally,
                }
                performance.write(self._logs / f"{name}{performance.SUFFIX}", content, self._report.note)
                self._write_log(self._logs / f"{name}{memlog.SUFFIX}", report.memory_log)
                if report.log:
                    self._log.write("".join(f"{report.name}: {line}\n" for line in report.log.splitlines()))

    def _write_log(self, path: Path, content: bytes) -> None:
        try:
            path.write_bytes(content)
        except OSError as error:
            self._report.note(f"{path}: {error.strerror}; make room or make it writable")


class ClusterFileRun(ClusterRun, FileRun):
    """Over files."""

    def _measure_progress(self, jobs: list[Job]) -> Progress:
        return replace(super()._measure_progress(jobs), machines=self._list_machines())


class ClusterDataRun(ClusterRun, DataRun):
    """Over a data set, whose files the driver alone writes."""

    def _measure(self) -> Progress:
        return replace(super()._measure(), machines=self._list_machines())


def make_session(request: RunRequest, pipeline: Pipeline, known: Noted, example: Job | None) -> Session:
    """What machines are to load for a phase of a run. Raises LoadError."""
    fingerprint = complete_all([stage.engine for stage in pipeline], known)["stages"] if known else ()
    names = ("workers", "threads", "strategy", "devices", "force_cpu", "no_mps", "memory_limit")
    return Session(
        uuid.uuid4().hex,
        tuple(replace(stage, options=_make_options_absolute(stage.options)) for stage in pipeline),
        fingerprint,
        request.command,
        MachineOptions(**{name: getattr(request, name) for name in names}),
        request.batching,
        request.hang_limit,
        request.mem_guard,
        request.memory_checkpoints,
        make_absolute(example) if example is not None else None,
        request.rows is not None,
    )


def _make_options_absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """A model's folder is to be found from wherever a machine was started."""
    return {
        name: str(Path(value).absolute()) if isinstance(value, str) and Path(value).exists() else value
        for name, value in options.items()
    }


def run_on_cluster(request: RunRequest, place: str, tls: Path | None, make_report: Callable[[], Report]) -> int:
    """Executes a request. What makes the whole run impossible is raised: InputError, LoadError."""
    remote = [stage.engine for stage in request.pipeline if stage.is_remote]
    if remote:
        raise InputError(f"--engine {remote[0]} computes elsewhere, and needs no cluster; leave out --cluster")
    if request.shard is not None:
        raise InputError("--shard is for machines without a cluster; leave out --cluster or --shard")
    count_local(place)  # wrong, it is refused also where nothing is left to do
    request = replace(request, cache=CacheRequest())
    run: ClusterRun
    if request.rows is None:
        run = ClusterFileRun(request, make_report())
    else:
        run = ClusterDataRun(request, request.rows, make_report())
    run.use(place, tls)
    return run.execute()


def plan_cluster(
    pipeline: Pipeline, command: str, options: MachineOptions, place: str, tls: Path | None
) -> dict[str, Mapping[str, Any]]:
    """What each machine of a cluster would do, by its name. Raises LoadError."""
    session = Session(uuid.uuid4().hex, pipeline, (), command, options, dry=True)
    with connect(place, tls) as (client, may_come):
        cluster = Cluster(client, session, lambda _: None, may_come=may_come)
        try:
            expected = 1 if may_come else count_local(place)
            deadline = time.monotonic() + _PLAN_SECONDS
            while len(cluster.plans) < max(expected, len(client.nthreads())) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not cluster.plans:
                raise LoadError(
                    f"no machine has answered within {_PLAN_SECONDS:.0f} s; have one join: prefork join FILE"
                )
            return dict(sorted(cluster.plans.items()))
        finally:
            cluster.shutdown()
