"""What units of work are: whole jobs, and the tasks of long ones; and how the outputs of both are written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from distributed import Client, Future

from prefork.cluster.dispatching import Unit
from prefork.cluster.messages import SEND_BYTES, TASK_FIELDS, Answer, JobOrder, TaskOrder
from prefork.engines.base import InputError, Job
from prefork.outputs import OutputFolder, write_document
from prefork.pool.jobs import Course, JobResult
from prefork.pool.tasks import Task

Done = Callable[[JobResult], None]


@dataclass(eq=False, slots=True)
class Work:
    """What a unit is. take: gets the answer, fail: the error; in the cluster's thread."""

    order: JobOrder | TaskOrder
    take: Callable[[Answer], None]
    fail: Callable[[BaseException], None]
    futures: dict[str, Future[bytes]] = field(default_factory=dict)  # by machine


class LongJob:
    """What `JobRun` has in place of a supervisor: its tasks go to all machines. add: has a unit done; drop: has it
    forgotten."""

    plan = None

    def __init__(self, job: Job, add: Callable[[Unit], None], drop: Callable[[Unit], None]) -> None:
        self._job = job
        self._add = add
        self._drop = drop
        self._units: dict[int, Unit] = {}  # by the id of the task

    def submit(self, *tasks: Task) -> None:
        for task in tasks:
            self._submit(task)

    def _submit(self, task: Task) -> None:
        values = {name: getattr(task, name) for name in TASK_FIELDS}
        order = TaskOrder(task.name, task.arguments, task.items, job=self._job, **values)

        def take(answer: Answer) -> None:
            del self._units[id(task)]
            task.pieces.update(answer.pieces)
            task.done(answer.value, None)

        def fail(error: BaseException) -> None:
            if self._units.pop(id(task), None) is not None:  # else another task has failed before, and the job with it
                task.done(None, error)

        unit = Unit(task.order, task.seconds or task.audio, Work(order, take, fail), sendable=False)
        self._units[id(task)] = unit
        self._add(unit)

    def cancel(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            unit = self._units.pop(id(task), None)
            if unit is not None:
                self._drop(unit)


class Collector:
    """Fetches results, several at a time, in a thread of its own. Those of a machine that is lost meanwhile are
    cancelled. take: gets the unit, the machine, and what has come: nothing if it is gone, or why Dask could not have it
    run."""

    def __init__(
        self,
        client: Client,
        take: Callable[[Unit, str, bytes | None, BaseException | None], None],
        log: Callable[[str], None],
    ) -> None:
        self._client = client
        self._take = take
        self._log = log
        self._ended: queue.SimpleQueue[tuple[Unit, str, Future[bytes]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="prefork-collect", daemon=True)
        self._thread.start()

    def watch(self, unit: Unit, address: str, future: Future[bytes]) -> None:
        future.add_done_callback(lambda done: self._ended.put((unit, address, done)))

    def close(self) -> None:
        self._ended.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._ended.get()) is not None:
            batch = [first]
            while not self._ended.empty() and (more := self._ended.get()) is not None:
                batch.append(more)
            found: Mapping[str, bytes | None] = {}
            try:
                wanted = {str(n): future for n, (_, _, future) in enumerate(batch) if future.status == "finished"}
                found = self._client.gather(wanted, errors="skip") if wanted else {}
            except Exception as error:  # noqa: BLE001  the connection is gone; the cluster's thread will notice
                self._log(f"results could not be fetched: {error}\n")
            for number, (unit, address, future) in enumerate(batch):
                failure = future.exception() if future.status == "error" else None
                self._take(unit, address, found.get(str(number)), failure)


class Writer:
    """Writes outputs in threads of its own: a disk may be slow."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prefork-write")

    def finish(self, job: Job, course: Course, done: Done) -> Done:
        """What takes the result of a job, writes it if there is something to write, and says that it is done."""

        def write(result: JobResult) -> None:
            try:
                assert course.target is not None and result.document is not None
                output = write_document(OutputFolder(course.target), job, result.document)
                done(JobResult(job, output.document, output.files))
            except Exception as error:  # noqa: BLE001  it costs this job alone
                done(JobResult(job, error=error))

        def finish(result: JobResult) -> None:
            if result.error is not None or result.passed is not None or course.target is None:
                done(replace(result, job=job))
            else:
                self._threads.submit(write, result)

        return finish

    def close(self) -> None:
        """Once all is written."""
        self._threads.shutdown()


def explain_size(job: Job) -> InputError:
    """Of one that no machine sees, and that is too large to be sent."""
    size = sum(state.size for state in job.states)
    return InputError(
        f"{job.id}: no machine sees its files, and with {size / 1e6:.0f} MB they are too large to be sent (at most "
        f"{SEND_BYTES / 1e6:.0f} MB); mount IN at the same path on the machines"
    )
