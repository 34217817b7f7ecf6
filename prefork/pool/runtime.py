"""The Python API: a concurrent.futures.Executor whose workers share one copy of the model."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import multiprocessing.spawn
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from prefork.engines import registry
from prefork.engines.base import Job
from prefork.engines.batching import Batching
from prefork.installation import require
from prefork.memory.governor import Governor
from prefork.memory.tally import Limits
from prefork.platform_matrix.devices import Devices
from prefork.platform_matrix.driver import look_again
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.platform_matrix.selection import parse_devices
from prefork.pool.calls import Call, CallFuture
from prefork.pool.jobs import Course, JobResult, JobRun
from prefork.pool.mapping import Mappings
from prefork.pool.pipeline import Pipeline, Stage
from prefork.pool.remote import Remote
from prefork.pool.supervisor import Supervisor
from prefork.pool.tasks import HangLimit
from prefork.wire.pickling import dump, dump_apart, has_importable_main, is_interruption
from prefork.wire.specification import Specification

T = TypeVar("T")
_logger = logging.getLogger("prefork")


class Runtime(Executor):
    """Workers that share one copy of the models, forked from one process that has loaded them wherever that is safe.

    With an engine, for its jobs:

    >>> with Runtime("ctc", workers=4) as runtime:
    ...     for result in runtime.map(jobs):          # as they finish, each with its job, or its error
    ...         print(result.job.id, result.error or result.document)

    With any model of your own; `load` runs once, and its tensors are shared and read-only:

    >>> with Runtime(load=load_model, workers=8) as runtime:
    ...     futures = [runtime.submit(score, item) for item in items]   # score(model, item), in a worker

    engine: a name from the entry points `prefork.engines`, or a pipeline of several (`prefork.pool.pipeline`). options:
    the engine's own settings.
    load: a function without arguments that returns the model, or anything that holds it. private: patterns of the names
    of tensors in it that each worker may write to, as `("*.kv_cache",)`: they are not shared.
    workers: processes; by default one for each core that may be used; fewer if the memory does not suffice.
    threads: of each worker, by default its share of the cores. strategy: `fork`, `ipc`, `server` or `spawn`; by default
    what the platform matrix says for this machine. devices: those that compute, as `--devices` has them: ["cuda:0",
    "cuda:1"]; by default one GPU for engines, and the CPU for what `load` returns. batching: which segments go through
    the model together: see prefork.engines.batching. force_cpu, no_mps: hide all GPUs, or Apple's, from what is loaded.
    hang_limit: when a worker that runs a job counts as hung; functions given to `submit` may take as long as they
    like. memory_limit: bytes that all processes together may take; by default what the machine, its control group and
    RLIMIT_AS allow. mem_guard: end what runs in order when memory gets too short, before the kernel ends a process.
    memory_log: a file that gets one JSON line for each thing that happens to memory. memory_checkpoints: have workers
    print what they use before and after the steps of every segment. command: what the measured peaks
    are kept under, for the next run to predict from. notice: gets what happens to workers, by default a warning of the
    logger `prefork`. log: gets what the workers print, which by default comes out as it is.

    Functions and `load` go by name where that finds them, as with multiprocessing's spawn: your script then needs its
    `if __name__ == "__main__":`. Lambdas, closures and functions of a notebook go by value.
    """

    def __init__(
        self,
        engine: str | Pipeline | None = None,
        *,
        load: Callable[[], Any] | None = None,
        private: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        workers: int | None = None,
        threads: int | None = None,
        strategy: str | None = None,
        devices: str | Sequence[str] | None = None,
        batching: Batching | None = None,
        force_cpu: bool = False,
        no_mps: bool = False,
        hang_limit: HangLimit | None = None,
        memory_limit: int | None = None,
        mem_guard: bool = False,
        memory_log: Path | None = None,
        memory_checkpoints: bool = False,
        command: str = "runtime",
        notice: Callable[[str], None] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if engine is not None and load is not None:
            raise ValueError("Runtime takes an engine or a load function, not both")
        if isinstance(private, str) or not all(isinstance(pattern, str) for pattern in private):
            raise ValueError(f'private must be a sequence of patterns, as ("*.kv_cache",), not {private!r}')
        if private and load is None:
            raise ValueError("private names tensors of what load returns, and there is no load")
        for name, value in (("workers", workers), ("threads", threads), ("memory_limit", memory_limit)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if strategy is not None and strategy not in list(Strategy):
            raise ValueError(f"strategy must be one of {', '.join(Strategy)}, not {strategy!r}")
        asked = () if devices is None else parse_devices(devices if isinstance(devices, str) else ",".join(devices))
        batching = batching or Batching()
        batching.check_for_jobs()
        self.pipeline = (Stage(engine, dict(options or {})),) if isinstance(engine, str) else engine or ()
        local = {stage.engine: stage.options for stage in self.pipeline if not stage.is_remote}
        require(local)
        self._ranks = itertools.count()
        self._shutdown = False
        self._lock = threading.Lock()
        specification = Specification(
            engines=local,
            load=dump(load) if load else None,
            preparation=_describe_main(),
            checkpoints=memory_checkpoints,
            batching=batching,
            private=tuple(private),
        )
        hiding = (force_cpu, no_mps)
        request = make_request(self.pipeline, strategy, workers, threads, asked, *hiding, memory_limit)
        limits = Limits(memory_limit, mem_guard)
        governor = Governor(limits, command=command, engines=local, path=memory_log)
        self.supervisor = Supervisor(specification, partial(make_plan, request), hang_limit, notice, log, governor)
        self._mappings = Mappings(self.supervisor)
        self.supervisor.before_close = self._mappings.finish
        self._remote = Remote(self.supervisor, {s.engine: s.options for s in self.pipeline if s.is_remote})
        self._remote.setup()
        self.supervisor.start()
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, self.supervisor.close)  # what was submitted before is done

    def __enter__(self) -> Runtime:
        self.wait_until_loaded()
        return self

    def wait_until_loaded(self) -> None:
        """Raises LoadError if the models cannot be loaded, or this process must not fork with them."""
        self.supervisor.loaded.wait()
        if self.supervisor.failure is not None:
            self.shutdown()
            raise self.supervisor.failure

    @property
    def fingerprints(self) -> dict[str, Mapping[str, Any]]:
        """What the outputs depend on besides the inputs, by engine. Known once the models are
        loaded; `prefork.fingerprint.complete` adds what all have in common."""
        inventory = self.supervisor.inventory
        assert inventory is not None
        return {**inventory.fingerprints, **self._remote.fingerprints()}

    @property
    def plan(self) -> Plan:
        """What was decided for this machine, with every reason. Waits until the models are loaded."""
        self.supervisor.loaded.wait()
        if self.supervisor.plan is None:
            raise self.supervisor.failure or RuntimeError("this runtime was ended before it had a plan")
        return self.supervisor.plan

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Runs fn(model, *args, **kwargs) in a worker; without a model, fn(*args, **kwargs).

        If the worker dies, the call is retried on a new one; if that dies too, the future raises WorkerDied, and the
        pool lives on. Raises RuntimeError after `shutdown`, and in a process that was forked since.
        """
        self._check_process()
        future: CallFuture[T] = CallFuture()
        label = _name(fn)
        call = (fn, args, kwargs)
        try:
            pickled = dump_apart(call)
        except BaseException as error:  # whatever pickling it raises is the call's error
            if is_interruption(error, call):
                raise
            error.add_note(
                f"{label} and its arguments go to another process, and something in them cannot: make it there"
            )
            future.set_exception(error)
            return future
        with self._lock:
            if (self._shutdown or self.supervisor.is_closing) and not self._mappings.is_submitting:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self.supervisor.submit_call(Call(future, pickled, label, next(self._ranks)))
        return future

    @overload
    def map(self, jobs: Iterable[Job], /, *, target: Path | None = None) -> Iterator[JobResult]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]: ...
    def map(self, first: Any, /, *iterables: Any, target: Path | None = None, **options: Any) -> Iterator[Any]:
        """map(jobs): their results, as they finish. map(fn, *iterables): as ProcessPoolExecutor does it.

        target: where the jobs' outputs are written; without it, the documents are in the results alone. chunksize:
        calls that go to a worker together. buffersize: results, or chunks of them, that are made ahead of what is
        consumed; by default all, or 1,024 where no iterable has a length, so that one may be endless.
        """
        self._check_process()
        if callable(first):
            return self._mappings.map(self.submit, first, iterables, **options)
        results: queue.SimpleQueue[JobResult] = queue.SimpleQueue()
        jobs = list(first)
        run_jobs(self, jobs, Course(self.pipeline, target), results.put)
        return (results.get() for _ in jobs)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this Runtime belongs to process {self._pid}, which has forked this one: make it here instead, with "
                "gunicorn --preload in the hook post_fork, or when the first request comes"
            )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers once what was submitted is done; with cancel_futures, what has not begun is cancelled."""
        if os.getpid() != self._pid:  # its threads and workers are another process's
            return
        with self._lock:
            self._shutdown = True
        if cancel_futures:
            self._mappings.cancel()
            self.supervisor.cancel_waiting()
        self.supervisor.close()
        if wait:
            self.supervisor.join()
            self._remote.close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what was submitted; after an exception (Ctrl-C is one) nobody does, and all of it ends at once."""
        if kind is not None:
            self.supervisor.drain(0.0)
        self.shutdown()


def run_jobs(
    runtime: Runtime,
    jobs: Iterable[Job],
    course: Course,
    done: Callable[[JobResult], None],
    documents: Mapping[str, bytes] | None = None,
) -> None:
    """Runs jobs, longest first; calls `done` for each, in the supervisor's thread, as they finish.

    course: through the runtime's pipeline. documents: what is known of the jobs, pickled, by their ids.
    """
    if not runtime.pipeline:
        raise ValueError("jobs need an engine: Runtime('ctc')")
    known = documents or {}
    for job in sorted(jobs, key=lambda job: -job.seconds):
        rank = next(runtime._ranks)
        JobRun(runtime.supervisor, runtime._remote, course, job, rank, done, known.get(job.id)).start()


def _name(fn: Callable[..., Any]) -> str:
    """For messages. Not its repr, which may be as long as what a partial holds."""
    while isinstance(fn, partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__


def make_request(
    pipeline: Pipeline,
    strategy: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    devices: Sequence[str] = (),
    force_cpu: bool = False,
    no_mps: bool = False,
    memory_limit: int | None = None,
) -> Request:
    """What a runtime of these engines asks of the machine. Raises LoadError."""
    local = {stage.engine: stage.options for stage in pipeline if not stage.is_remote}
    return Request(
        engines=tuple(local),
        strategy=Strategy(strategy) if strategy else None,
        workers=workers,
        threads=threads,
        force_cpu=force_cpu,
        no_mps=no_mps,
        memory_limit=memory_limit,
        devices=tuple(devices),
        cannot=registry.list_obstacles(local),
    )


def make_plan(request: Request) -> Plan:
    """What the matrix says for this machine. Devices that are to be hidden need not be asked; GPUs that are to compute
    are asked once more what they are doing now."""
    facts = read_facts(Devices() if request.force_cpu or request.devices == ("cpu",) else None)
    plan = decide(facts, request)
    if not plan.wants_gpus:
        return plan
    return decide(replace(facts, devices=look_again(facts.devices, request.devices)), request)


def _describe_main() -> dict[str, Any]:
    """What another process needs to import this program's main module."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a Runtime was created while its own script is imported by the process that loads the models; "
            'put the code that starts it under `if __name__ == "__main__":`'
        )
    preparation = multiprocessing.spawn.get_preparation_data("prefork-zygote")
    known = {key: value for key, value in preparation.items() if key not in ("authkey", "log_to_stderr", "log_level")}
    if not has_importable_main():  # what is defined there goes by value
        known = {key: value for key, value in known.items() if not key.startswith("init_main")}
    # What a manager's proxies need to answer to each other; multiprocessing lets it be pickled as plain bytes alone.
    return {**known, "authkey": bytes(multiprocessing.current_process().authkey)}
