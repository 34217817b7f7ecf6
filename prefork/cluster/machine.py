"""A machine of a cluster: a plugin of Dask's worker, with one Runtime. What it loads, it loads beside the event loop.

An order comes in a message, and a thread waits for what the Runtime makes of it; how much runs at a time is decided by
the Runtime here, as on any machine.
"""

from __future__ import annotations

import itertools
import pickle
import queue
import shutil
import socket
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm.core import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from prefork.cluster.messages import (
    ANSWER,
    ORDER,
    PLUGIN,
    TASK_FIELDS,
    TOPIC,
    Answer,
    EndOrder,
    JobOrder,
    MachineOptions,
    MachineReport,
    Session,
    TaskOrder,
    describe_version,
)
from prefork.engines.base import Job, LoadError
from prefork.errors import Stopped
from prefork.fingerprint import OUTPUTS, complete, explain, find_packages
from prefork.memory import memlog
from prefork.platform_matrix.matrix import Plan
from prefork.pool.jobs import Course, JobResult
from prefork.pool.runtime import run_jobs
from prefork.pool.tasks import Task
from prefork.run.runtimes import plan_runtime, start_runtime
from prefork.wire.exceptions import describe_error, pickle_error
from prefork.wire.temporary import TemporaryFolder, remove_abandoned

_TELL_SECONDS = 5.0  # between two times that it says how it is
_END_SECONDS = 10.0  # for its processes to end
_LOG_BYTES = 100_000_000  # of a memory log that is sent to the driver, at the most
_TOLERANCE = 2_000_000_000  # ns by which times of change may differ: the coarsest clock of file systems, FAT's


class MachinePlugin(WorkerPlugin):
    """session: a `Session`, pickled, so that a machine of another version can say what it is before it opens it."""

    name = PLUGIN

    def __init__(self, id: str, version: str, session: bytes) -> None:
        self._id = id
        self._version = version
        self._session = session

    def setup(self, worker: Worker) -> None:
        self._worker = worker
        self._name = getattr(worker, "machine_name", "") or socket.gethostname()
        self._over = threading.Event()
        self._computer: _Computer | None = None
        worker.stream_handlers[ORDER] = self._take
        threading.Thread(target=self._serve, name="prefork-machine", daemon=True).start()

    def teardown(self, worker: Worker) -> None:
        """The run is over, or this worker is; if only its connection is, the Runtime waits for the next one."""
        self._over.set()
        if self._computer is not None and not getattr(worker, "comes_again", False):
            threading.Thread(target=self._computer.close, daemon=True).start()

    def _tell(self, event: str, **values: Any) -> None:
        self._worker.log_event(
            TOPIC, {"event": event, "session": self._id, "address": self._worker.address, "name": self._name, **values}
        )

    def _serve(self) -> None:
        """Loads, says what came of it, and then now and then how it is."""
        self._tell("loading")
        try:
            if self._version != describe_version():
                raise LoadError(f"has {describe_version()}, and the driver {self._version}; install the same on both")
            session: Session = pickle.loads(self._session)
            own = getattr(self._worker, "machine_options", MachineOptions())
            options = session.options.override(own)
            if session.dry:
                self._tell("planned", plan=_describe_plan(plan_runtime(session.pipeline, options)))
                return
            self._computer = computer = _find_computer(self._id, session, options)
            computer.check()
            self._tell("ready", **computer.describe())
        except Exception as error:  # noqa: BLE001  whatever it is, it costs this machine and no other
            self._tell("refused", reason=str(error) if isinstance(error, LoadError) else describe_error(error))
            if self._computer is not None:
                self._computer.close()
            return
        while not self._over.wait(_TELL_SECONDS):
            self._tell("status", **computer.count())

    # -- orders --------------------------------------------------------------------------------------------------------

    def _take(self, session: str, number: int, data: bytes) -> None:
        """In Dask's thread, which is not to wait."""
        if session == self._id:
            threading.Thread(target=self._follow, args=(number, data), name=f"order {number}", daemon=True).start()

    def _follow(self, number: int, data: bytes) -> None:
        try:
            answer = self._run(pickle.loads(data))
        except Exception as error:  # noqa: BLE001  whatever it is, it costs this order and no other
            answer = Answer(error=pickle_error(error, traceback.format_exc()))
        content = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        message = {"op": ANSWER, "session": self._id, "number": number, "data": content}
        self._worker.loop.add_callback(self._send, message)

    def _send(self, message: Mapping[str, Any]) -> None:
        with suppress(CommClosedError):  # the driver is told that this machine is lost
            self._worker.batched_stream.send(message)

    def _run(self, order: JobOrder | TaskOrder | EndOrder) -> Answer:
        if isinstance(order, EndOrder):
            return Answer(value=pickle.dumps(self._end(), pickle.HIGHEST_PROTOCOL))
        if self._computer is None or self._over.is_set():
            return Answer(lost=True)
        return self._computer.run(order)

    def _end(self) -> MachineReport:
        """Ends the Runtime."""
        self._over.set()
        if self._computer is None:
            return MachineReport(self._name)
        self._computer.close()
        return self._computer.report(self._name)


def _describe_plan(plan: Plan) -> dict[str, Any]:
    """In texts and numbers."""
    return {
        "row": plan.row.title,
        "device": plan.device,
        "strategy": str(plan.strategy),
        "workers": plan.workers,
        "threads": plan.threads,
        "memory": plan.budget.describe(plan.workers),
        "refusal": plan.refusal or "",
    }


_kept: dict[str, _Computer] = {}  # by session: where the connection is gone and may come again
_lock = threading.Lock()


def _find_computer(id: str, session: Session, options: MachineOptions) -> _Computer:
    """The one of this session, if it is still there; else a new one. Others are of runs that are over."""
    with _lock:
        for other in [key for key in _kept if key != id]:
            _kept.pop(other).close()
        if id not in _kept or _kept[id].is_closed:
            _kept[id] = _Computer(session, options)
        return _kept[id]


def close_all() -> None:
    """When this process ends."""
    with _lock:
        while _kept:
            _kept.popitem()[1].close()


class _Computer:
    """A session's Runtime on this machine."""

    def __init__(self, session: Session, options: MachineOptions) -> None:
        self._session = session
        self._printed: list[str] = []
        self._numbers = itertools.count()
        self._done = 0
        self._closing = threading.Lock()
        self.is_closed = False
        self._check_packages()
        remove_abandoned("machine")
        self._kept = TemporaryFolder("machine")
        self._folder = self._kept.path
        memory_log = self._folder / f"machine{memlog.SUFFIX}"
        self._runtime = start_runtime(session.pipeline, options, session, memory_log, self._note, self._note)

    def _note(self, text: str) -> None:
        self._printed.append(text if text.endswith("\n") else f"{text}\n")
        del self._printed[:-10_000]

    def _check_packages(self) -> None:
        """Before anything is loaded. Raises LoadError."""
        for stage, wanted in zip(self._session.pipeline, self._session.fingerprint, strict=True):
            found = {**wanted, "prefork": OUTPUTS, "packages": find_packages(stage.engine)}
            self._compare([wanted], [found])

    def check(self) -> None:
        """Raises LoadError if the models cannot be loaded here, or are others than the driver's."""
        self._runtime.wait_until_loaded()
        noted = self._runtime.fingerprints
        found = [complete(stage.engine, noted[stage.engine]) for stage in self._session.pipeline]
        self._compare(self._session.fingerprint, found)
        if self._session.data and (unseen := self._find_unseen()):
            raise LoadError(f"does not see {unseen}; mount the data set there, as at the driver")

    @staticmethod
    def _compare(wanted: Any, found: Any) -> None:
        reason = explain({"stages": list(wanted)}, {"stages": list(found)})
        if reason:
            more = ", or give --dtype" if "dtype" in reason else ""
            raise LoadError(
                f"would make other outputs than the driver ({reason}: the driver's is first); install the same on "
                f"both{more}"
            )

    def describe(self) -> dict[str, Any]:
        plan = self._runtime.plan
        return {
            "room": plan.workers + 1,
            "workers": plan.workers,
            "strategy": str(plan.strategy),
            "device": plan.device,
            "blind": bool(self._find_unseen()),
        }

    def _find_unseen(self) -> str:
        """A file of the session's example that is not here."""
        return _find_unseen(self._session.example) if self._session.example is not None else ""

    def count(self) -> dict[str, Any]:
        workers = self._runtime.supervisor.status()
        memory = sum(worker.memory.pss for worker in workers if worker.memory is not None)
        return {"workers": len(workers), "busy": sum(bool(worker.label) for worker in workers), "memory": memory}

    # -- orders --------------------------------------------------------------------------------------------------------

    def run(self, order: JobOrder | TaskOrder) -> Answer:
        """Does it, and waits for it."""
        if not order.contents and (unseen := _find_unseen(order.job)):
            return Answer(unseen=unseen)
        folder = self._folder / f"job{next(self._numbers)}"
        try:
            if isinstance(order, TaskOrder):
                return self._run_task(order)
            return self._run_job(replace(order, job=_localise(order.job, order.contents, folder)))
        except Exception as error:  # noqa: BLE001  a full disk, a file that is gone: the driver asks another machine
            return Answer(error=pickle_error(error, traceback.format_exc()))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run_job(self, order: JobOrder) -> Answer:
        results: queue.SimpleQueue[JobResult] = queue.SimpleQueue()
        course = Course(self._runtime.pipeline, None, order.passing)
        known = {order.job.id: order.document} if order.document is not None else None
        run_jobs(self._runtime, [order.job], course, results.put, known)
        result = results.get()
        if result.error is not None:
            return self._explain(result.error)
        made = (result.document, result.passed)
        return Answer(value=pickle.dumps(made, pickle.HIGHEST_PROTOCOL))

    def _run_task(self, order: TaskOrder) -> Answer:
        ended: queue.SimpleQueue[tuple[bytes | None, BaseException | None]] = queue.SimpleQueue()
        local = _localise(order.job, {}, self._folder)
        items = order.items
        if items is not None:
            items = [tuple(local if part == order.job else part for part in item) for item in items]
        task = Task(
            order.name,
            tuple(local if part == order.job else part for part in order.arguments),
            lambda value, error: ended.put((value, error)),
            order=(next(self._numbers),),
            items=items,
            **{name: getattr(order, name) for name in TASK_FIELDS},
        )
        self._runtime.supervisor.submit(task)
        value, error = ended.get()
        if error is not None or value is None:
            return self._explain(error or Stopped("the machine was stopped"))
        return Answer(value=value, pieces=dict(task.pieces))

    @staticmethod
    def _explain(error: BaseException) -> Answer:
        if isinstance(error, Stopped | LoadError):
            return Answer(lost=True)
        text = "".join(traceback.format_exception(error))
        return Answer(error=pickle_error(error, text))

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends every process of it."""
        with self._closing:
            if not self.is_closed:
                self.is_closed = True
                self._runtime.supervisor.drain(0.0)
                self._runtime.shutdown(wait=False)
                self._runtime.supervisor.join(_END_SECONDS)
                self._memory_log = self._read_log()
                self._kept.close()

    def _read_log(self) -> bytes:
        try:
            with open(self._folder / f"machine{memlog.SUFFIX}", "rb") as file:
                return file.read(_LOG_BYTES)
        except OSError:  # it could not be written; a notice has said so
            return b""

    def report(self, name: str) -> MachineReport:
        """After the end."""
        supervisor = self._runtime.supervisor
        plan, inventory = supervisor.plan, supervisor.inventory
        found = MachineReport(name, deaths=supervisor.deaths, tally=supervisor.governor.tally)
        found.steps, found.log, found.memory_log = dict(supervisor.steps), "".join(self._printed), self._memory_log
        if plan is not None:
            found.strategy, found.device, found.shared = str(plan.strategy), plan.device, plan.shared
            found.workers, found.threads = plan.workers, plan.threads
        if inventory is not None:
            found.weights, found.seconds = inventory.weights, inventory.seconds
        return found


def _find_unseen(job: Job) -> str:
    """A file of the job's that is not here, or not the driver's. Empty if all are."""
    for state in job.states:
        try:
            status = Path(state.path).stat()
        except OSError:
            return state.path
        if status.st_size != state.size or abs(status.st_mtime_ns - state.changed[0]) > _TOLERANCE:
            return state.path
    return ""


def _localise(job: Job, contents: Mapping[str, bytes], folder: Path) -> Job:
    """The job with its files as they are on this machine. contents: of those that were sent."""
    if not job.states:
        return job
    moved = {path: folder / Path(path).name for path in contents}
    if moved:
        folder.mkdir()
        for path, content in contents.items():
            moved[path].write_bytes(content)
    source = moved.get(str(job.source), job.source)
    media = moved.get(str(job.media), job.media) if job.media is not None else None
    return replace(job, source=source, media=media).note_files()
