"""What units of work are: whole jobs, and the tasks of long ones; and how the outputs of both are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    numbers: dict[str, int] = field(default_factory=dict)  # of its orders that have no answer, by machine


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


def make_absolute(job: Job) -> Job:
    """As another machine can find its files."""
    states = tuple(replace(state, path=str(Path(state.path).absolute())) for state in job.states)
    media = job.media.absolute() if job.media is not None else None
    return replace(job, source=job.source.absolute(), media=media, states=states)


def find_change(job: Job) -> InputError | None:
    """What is the matter with one of its files here, where the run has found it; None if it is as it was."""
    try:
        job.check_files()
    except InputError as error:
        return error
    return None


def explain_size(job: Job) -> InputError:
    """Of one that no machine sees, and that is too large to be sent."""
    size = sum(state.size for state in job.states)
    return InputError(
        f"{job.id}: no machine sees its files, and with {size / 1e6:.0f} MB they are too large to be sent (at most "
        f"{SEND_BYTES / 1e6:.0f} MB); mount IN at the same path on the machines"
    )
