"""The Python API: a concurrent.futures.Executor whose workers share one copy of the model."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from prefork.engines.base import Job
from prefork.engines.batching import Batching
from prefork.installation import require
from prefork.memory.governor import Governor
from prefork.memory.tally import Limits
from prefork.platform_matrix.matrix import Plan
from prefork.platform_matrix.selection import parse_devices
from prefork.pool import arguments
from prefork.pool.arguments import Load
from prefork.pool.call_options import USUAL, CallOptions, tell
from prefork.pool.calls import Call, CallFuture, StreamedCall
from prefork.pool.jobs import Course, JobResult, JobRun
from prefork.pool.mapping import Mappings
from prefork.pool.pipeline import Pipeline, Stage
from prefork.pool.remote import Remote
from prefork.pool.requests import make_request, plan_at_start
from prefork.pool.status import RuntimeStatus
from prefork.pool.submitting import Submitter
from prefork.pool.supervisor import Supervisor, describe_supervisor
from prefork.pool.tasks import HangLimit, Task
from prefork.wire.pickling import dump, dump_apart, is_interruption
from prefork.wire.specification import Specification
from prefork.wire.wrapped import OnModel, Reporting, name_function

T = TypeVar("T")
_logger = logging.getLogger("prefork")


class Runtime(Submitter):
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
    load: a function without arguments that returns the model, or anything that holds it; or several by name, as
    {"small": load_small, "large": load_large}, of which `with_options(model=...)` chooses. private: patterns of the
    names of tensors in it that each worker may write to, as `("*.kv_cache",)`: they are not shared.
    workers: processes; by default one for each core that may be used; fewer if the memory does not suffice.
    threads: of each worker, by default its share of the cores. strategy: `fork`, `ipc`, `server` or `spawn`; by
    default what the platform matrix says for this machine. devices: those that compute, as `--devices` has them:
    ["cuda:0", "cuda:1"]; by default one GPU for engines, and the CPU for what `load` returns. batching: which
    segments go through the model together: see prefork.engines.batching. force_cpu, no_mps: hide all GPUs, or
    Apple's, from what is loaded. initializer, initargs: called in each worker before anything else:
    initializer(model, *initargs), without a model initializer(*initargs). max_tasks_per_child: calls, or parts of
    jobs, after which another takes a worker's place. hang_limit: when a worker that runs a job counts as hung, and
    how long an initializer may take (`base`); functions given to `submit` may take as long as they like.
    memory_limit: bytes that all processes together may take; by default what the machine, its control group and
    RLIMIT_AS allow. mem_guard: end what runs in order when memory gets too short, before the kernel ends a process.
    memory_log: a file that gets one JSON line for each thing that happens to memory. memory_checkpoints: have
    workers print what they use before and after the steps of every segment. command: what the measured peaks are
    kept under, for the next run to predict from. notice: gets what happens to workers, by default a warning of the
    logger `prefork`. log: gets what the workers print, which by default comes out as it is.

    Functions and `load` go by name where that finds them, as with multiprocessing's spawn: your script then needs its
    `if __name__ == "__main__":`. Lambdas, closures and functions of a notebook go by value.
    """

    def __init__(
        self,
        engine: str | Pipeline | None = None,
        *,
        load: Load | None = None,
        private: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        workers: int | None = None,
        threads: int | None = None,
        strategy: str | None = None,
        devices: str | Sequence[str] | None = None,
        batching: Batching | None = None,
        force_cpu: bool = False,
        no_mps: bool = False,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
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
        arguments.check_names(private, load is not None, strategy)
        numbers = {"workers": workers, "threads": threads, "memory_limit": memory_limit}
        arguments.check_numbers(**numbers, max_tasks_per_child=max_tasks_per_child)
        asked = () if devices is None else parse_devices(devices if isinstance(devices, str) else ",".join(devices))
        batching = batching or Batching()
        batching.check_for_jobs()
        self.pipeline = (Stage(engine, dict(options or {})),) if isinstance(engine, str) else engine or ()
        local = {stage.engine: stage.options for stage in self.pipeline if not stage.is_remote}
        if local:
            require(local)
        self._load = load
        load, self._model_names = arguments.join_loads(load)
        self._owner = object()  # what its futures are known by
        self._ranks = itertools.count()
        self._shutdown = False
        self._lock = threading.Lock()
        specification = Specification(
            engines=local,
            load=dump(load) if load else None,
            preparation=arguments.describe_main(),
            checkpoints=memory_checkpoints,
            batching=batching,
            private=tuple(private),
            initializer=arguments.dump_initializer(initializer, initargs),
        )
        hiding = (force_cpu, no_mps)
        request = make_request(self.pipeline, strategy, workers, threads, asked, *hiding, memory_limit)
        limits = Limits(memory_limit, mem_guard)
        governor = Governor(limits, command=command, engines=local, path=memory_log)
        self.supervisor = Supervisor(
            specification, partial(plan_at_start, request), hang_limit, notice, log, governor, max_tasks_per_child
        )
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

    async def __aenter__(self) -> Runtime:
        """As `__enter__`, without blocking the event loop."""
        await asyncio.shield(asyncio.wrap_future(self.supervisor.loading))
        if self.supervisor.failure is not None:
            await self.__aexit__(None)
            raise self.supervisor.failure
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """As `__exit__`, without blocking the event loop."""
        if kind is not None:
            self.supervisor.drain(0.0)
        self.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self.supervisor.ending))
        self._remote.close()

    def status(self) -> RuntimeStatus:
        """What it is doing now, from any thread. Waits for nothing."""
        return describe_supervisor(self.supervisor, self._shutdown)

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

    @property
    def _runtime(self) -> Runtime:
        return self

    def _submit(
        self,
        options: CallOptions,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        take: Callable[[Any], None] | None = None,
    ) -> Future[Any]:
        """take: gets what the function yields."""
        self._check_process()
        future: CallFuture[Any] = CallFuture(self._owner)
        label = name_function(fn)
        call = (fn if options is USUAL else self._wrap(fn, options), args, kwargs)
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
            rank = next(self._ranks)
            given = (
                Call(future, pickled, label, rank, options)
                if take is None
                else StreamedCall(future, pickled, label, rank, options, take)
            )
            self.supervisor.submit_call(given)
        return future

    @staticmethod
    def _wrap(fn: Callable[..., Any], options: CallOptions) -> Callable[..., Any] | Reporting:
        if options.model is not None:
            fn = OnModel(options.model, fn)
        return Reporting(fn, options.stream) if options.stream or options.on_progress is not None else fn

    def _continue(self, future: Future[Any], count: int) -> None:
        """So many of the things that a call has yielded were taken."""
        self.supervisor.continue_call(future, count)

    def cancel(self, future: Future[Any]) -> bool:
        """Cancels a call of this runtime's, whether it waits or runs; False if it has ended already.

        The future is cancelled at once. One that runs is interrupted in its worker, as by Ctrl-C: KeyboardInterrupt is
        raised in it, so that `with` and `finally` release what it holds. If it has not ended 2 s later, its worker is
        killed. Either way a new worker takes its place, and no other call is affected. Raises ValueError for a future
        that is not this runtime's.
        """
        if not isinstance(future, CallFuture) or future.owner is not self._owner:
            raise ValueError(f"{future!r} is not of a call that this Runtime was given")
        if not future.abandon():
            return False
        self.supervisor.cancel_call(future)
        return True

    def reload(self, load: Load | None = None) -> None:
        """Replaces the weights while calls run. Returns once calls that begin from here on get the new ones; those that
        run are finished on the old ones, and none is lost.

        load: loads them; by default what was given at first, as for files that have changed. What it returns must have
        the same tensors: names, shapes and types. Forked workers go on while they are loaded, and both are in memory
        meanwhile; elsewhere calls wait. Raises LoadError if the new weights cannot be used; then the old ones are.
        """
        if self.supervisor.is_own_thread:
            raise RuntimeError("reload waits for the thread that calls it: a callback of a future, or on_progress")
        self._begin_reload(load).result()

    async def areload(self, load: Load | None = None) -> None:
        """As `reload`, without blocking the event loop."""
        await asyncio.shield(asyncio.wrap_future(self._begin_reload(load)))

    def _begin_reload(self, load: Load | None) -> Future[None]:
        self._check_process()
        function = arguments.join_again(self._load, load)
        if self._shutdown or self.supervisor.is_closing:
            raise RuntimeError("cannot reload after shutdown")
        future: Future[None] = Future()

        def done(_: object, error: BaseException | None) -> None:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.supervisor.reload(dump(function), Task("reload", (), done))
        return future

    @overload
    def map(
        self,
        jobs: Iterable[Job],
        /,
        *,
        target: Path | None = None,
        on_progress: Callable[[float], object] | None = None,
    ) -> Iterator[JobResult]: ...
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
    def map(
        self,
        first: Any,
        /,
        *iterables: Any,
        target: Path | None = None,
        on_progress: Callable[[float], object] | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """map(jobs): their results, as they finish. map(fn, *iterables): as ProcessPoolExecutor does it.

        target: where the jobs' outputs are written; without it, the documents are in the results alone. on_progress:
        called with seconds of audio as they are worked off, in a thread of the runtime's: it must not block. chunksize:
        calls that go to a worker together. buffersize: results, or chunks of them, that are made ahead of what is
        consumed; by default all, or 1,024 where no iterable has a length, so that one may be endless.
        """
        self._check_process()
        if callable(first):
            return super().map(first, *iterables, **options)
        results: queue.SimpleQueue[JobResult] = queue.SimpleQueue()
        jobs = list(first)
        course = Course(self.pipeline, target)
        if on_progress is not None:
            course = replace(course, advance=partial(tell, on_progress, "map"))
        run_jobs(self, jobs, course, results.put)
        return (results.get() for _ in jobs)

    def _map(
        self,
        submit: Callable[..., Future[Any]],
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int,
        buffersize: int | None,
    ) -> Iterator[Any]:
        self._check_process()
        return self._mappings.map(submit, fn, iterables, timeout, chunksize, buffersize)

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
