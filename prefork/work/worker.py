"""A worker: a copy-on-write child of the zygote that runs tasks, one at a time, on the shared weights."""

from __future__ import annotations

import logging
import math
import os
import pickle
import sys
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prefork.engines.base import Engine, HostEngine, Job, LoadError, Segment
from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.memory.monitor import CUDAMeter, HostMeter, MemoryMonitor
from prefork.memory.monitored_stages import MonitoredStage as Stage
from prefork.memory.probe import PeakProbe
from prefork.outputs import JobOutput, OutputFolder
from prefork.platform_matrix.imports import explain_import
from prefork.weights.device_memory import WeightsChanged
from prefork.weights.faults import watch_for_writes
from prefork.wire import process
from prefork.wire.calls import OpenTokens, RunCalls
from prefork.wire.channel import Channel
from prefork.wire.endings import FATAL
from prefork.wire.exceptions import describe_error, pickle_error
from prefork.wire.messages import (
    ItemFailed,
    RunTask,
    TaskDone,
    TaskFailed,
    TaskOutOfMemory,
    TaskProgress,
    TaskUsage,
    WeightsCorrupted,
    WorkerReady,
)
from prefork.work.calls import Calls
from prefork.work.comparison import encode
from prefork.work.inference import Inference, LocalInference, Refused, RemoteInference, Result, find_seed
from prefork.work.loaded import Loaded
from prefork.work.staging import is_broken
from prefork.work.torch_state import is_out_of_memory, release, reseed

_MEASURING_SECONDS = 0.25  # between two measurements of what calls take
Answer = TaskDone | TaskFailed | TaskOutOfMemory | WeightsCorrupted


@dataclass(frozen=True, slots=True)
class Context:
    """What a task gets to see of the worker that runs it."""

    loaded: Loaded
    inference: Inference
    progress: Callable[[int, float, bytes], None]  # with an item's number, the seconds reached, and what came of it
    refuse: Callable[[int, bytes], None]  # with an item's number, and why nothing will ever come of it
    steps: dict[tuple[str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds, by engine and step
    monitor: MemoryMonitor | None = None  # logs checkpoints, if they are wanted

    def stage(self, stage: Stage) -> AbstractContextManager[object]:
        return nullcontext() if self.monitor is None else self.monitor.stage(stage)

    @contextmanager
    def stage_of(self, engine: Engine) -> Iterator[list[Result]]:
        """The stage that an engine's work is, if it is one, with a list for what the model makes of what was prepared.
        It, and what the model was given, is dropped by the stage's cleanups."""
        outputs: list[Result] = []
        if self.monitor is None or not engine.memory_stage:
            yield outputs
            return
        stage = Stage.find(engine.memory_stage)
        with self.monitor.stage(stage) as cleanups:
            cleanups.defer(stage.cleanups[0], self.inference.inputs.clear)
            cleanups.defer(stage.cleanups[-1], outputs.clear)
            yield outputs

    @contextmanager
    def step(self, engine: str, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps[engine, name] += time.perf_counter() - started


def serve(channel: Channel, loaded: Loaded, threads: int, place: int = 0) -> None:
    """Runs tasks until the supervisor closes the channel. place: of its device."""
    try:
        loaded = settle(loaded, threads, place)
    except WeightsChanged as error:
        channel.send(WeightsCorrupted(str(error)))
        return
    process.prefer_as_victim()
    reseed(int.from_bytes(os.urandom(8)))
    channel.send(WorkerReady(os.getpid()))
    probe = PeakProbe()
    monitor = _make_monitor(loaded.device) if loaded.checkpoints else None
    remote = RemoteInference(channel, loaded) if loaded.remote else None
    inference = remote or LocalInference(loaded)
    calls = Calls(channel, loaded, partial(_give_up_broken, loaded.device))
    meter = _CallMeter(channel, probe, calls)
    while True:
        meter.wait()
        try:
            message, fds = channel.receive()
        except EOFError:
            return
        if isinstance(message, RunCalls | OpenTokens):
            meter.begin()
            calls.take(message, fds)
            continue
        if not isinstance(message, RunTask):
            if remote is not None:
                remote.take_order(message, fds)
            continue
        meter.end()
        probe.reset()
        context = Context(loaded, inference, partial(_report, channel), partial(_refuse, channel), monitor=monitor)
        answer = _run(message.task, context)
        process.flush_output()  # before anybody can end this worker
        channel.send(answer)
        del message, answer
        process.release_free_memory()
        channel.send(TaskUsage(probe.read(), dict(context.steps)))


class _CallMeter:
    """Measures what calls take, some times a second and not after each: it takes longer than a short call."""

    def __init__(self, channel: Channel, probe: PeakProbe, calls: Calls) -> None:
        self._channel, self._probe, self._calls = channel, probe, calls
        self._is_due = False  # there were calls since it was last measured
        self._until = 0.0

    def begin(self) -> None:
        """Calls are about to be run."""
        if not self._is_due:
            self._probe.reset()
            self._is_due, self._until = True, max(self._until, time.monotonic())

    def wait(self) -> None:
        """Until there is a message; meanwhile, or before, it is measured if it is time to."""
        left = self._until - time.monotonic()
        if self._is_due and (left <= 0 or not self._channel.wait(left)):
            self._measure()

    def end(self) -> None:
        """Something else begins."""
        if self._is_due:
            self._measure()

    def _measure(self) -> None:
        process.release_free_memory()
        self._calls.trim()
        self._channel.send(TaskUsage(self._probe.read(), {}))
        self._is_due, self._until = False, time.monotonic() + _MEASURING_SECONDS


def _make_monitor(device: str) -> MemoryMonitor:
    """One that logs to stderr, which goes where everything goes that workers print."""
    logger = logging.getLogger("prefork.memory")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.setLevel(logging.INFO)
    return MemoryMonitor(CUDAMeter(device) if device.startswith("cuda") else HostMeter(), logger)


def settle(loaded: Loaded, threads: int, place: int = 0) -> Loaded:
    """What a forked child does before it computes; what it computes with. place: of its device."""
    if loaded.arena is not None:
        watch_for_writes(loaded.arena, 2)
    torch.set_num_threads(threads)
    return loaded.attach(place)


def rehearse(parent: int, loaded: Loaded, threads: int, place: int = 0) -> bytes:
    """What a worker does, done once in a canary: computes on the shared weights, on as many threads and its device.
    parent: the process that forks it."""
    process.die_with_parent(parent)
    process.restore_signals()
    outputs = settle(loaded, threads, place).try_examples()
    if not outputs:  # nothing is known of the model: at least that torch computes, on all its threads
        outputs = {"torch": {"product": torch.ones(512, 512) @ torch.ones(512, 512)}}
    return encode(outputs)


def _report(channel: Channel, number: int, position: float, piece: bytes) -> None:
    channel.send(TaskProgress(number, float(position), piece))


def _refuse(channel: Channel, number: int, error: bytes) -> None:
    channel.send(ItemFailed(number, error))


def _run(payload: bytes, context: Context) -> Answer:
    """The message to send back. A task's exception is its result; it costs the worker nothing.

    The supervisor gets the result as bytes: what is in it may need torch to be unpickled, which it never imports.
    """
    name = ""
    try:
        name, arguments = pickle.loads(payload)
        return TaskDone(pickle.dumps(_TASKS[name](context, *arguments), pickle.HIGHEST_PROTOCOL))
    except BaseException as error:  # noqa: BLE001  whatever a task raises, sys.exit included, goes to who asked for it
        if isinstance(error, WeightsChanged):
            return WeightsCorrupted(str(error))
        if is_out_of_memory(error):
            return TaskOutOfMemory(describe_error(error))
        _give_up_broken(context.loaded.device, error)
        return TaskFailed(_pickle(error))
    finally:
        context.inference.drop()


def _pickle(error: BaseException) -> bytes:
    """What an engine raises. A package that it cannot import is no job's fault, and the next job would lack it too."""
    line = explain_import(error)
    return pickle_error(LoadError(line) if line else error, traceback.format_exc())


def _give_up_broken(device: str, error: BaseException) -> None:
    """If the GPU can be used no more by this process, it ends; another will be forked in its place."""
    if is_broken(error, device):
        print(f"{FATAL}{error}".partition("\n")[0], file=sys.stderr, flush=True)
        os._exit(1)


def _open(job: Job, document: bytes | None) -> Document:
    """What is known of the job: what the stage before has passed on, or what its source says."""
    if document is not None:
        found: Document = pickle.loads(document)
        return found
    return formats.open_document(job.source, job.media, job.seconds, job.language)


def _split_job(context: Context, name: str, job: Job, document: bytes | None) -> list[tuple[float, int, bytes]]:
    """The job's segments: for each its length in seconds, the bytes it is estimated to take here, and itself."""
    engine = context.loaded.engines[name]
    with context.step(name, "split"):
        segments = engine.split(job, _open(job, document))
        return [_describe_segment(context, engine, segment) for segment in segments]


def _describe_segment(context: Context, engine: Engine, segment: Segment) -> tuple[float, int, bytes]:
    """In Python's own numbers, which the supervisor understands without torch. Raises ValueError for a length that is
    none: nobody could say how long to wait for it."""
    seconds = max(0.0, float(segment.seconds))
    if not math.isfinite(seconds):
        raise ValueError(f"{engine.name} has made a segment from {segment.start} s to {segment.end} s")
    size = 0 if context.loaded.remote else int(engine.estimate_memory(segment))
    return seconds, size, pickle.dumps(segment)


@dataclass(frozen=True, slots=True)
class _Item:
    """A segment that is to be run. number: what the supervisor calls it."""

    number: int
    job: Job
    segment: Segment


def _run_segments(context: Context, name: str, items: Sequence[tuple[int, tuple[Job, bytes]]]) -> None:
    """prepare, infer and finish for segments, of several jobs where the model takes them in one go. What comes of each
    does not depend on who runs it, or what ran before, and is reported at once: if this worker dies, what it has done
    is not lost. A segment that cannot be processed costs its job, and no other."""
    if context.loaded.arena is not None:
        context.loaded.arena.populate()
    todo = deque(_Item(number, job, pickle.loads(segment)) for number, (job, segment) in items)
    context.inference.open(name)
    going: dict[int, _Item] = {}
    refused: set[str] = set()  # jobs
    while todo or going:
        with context.stage(Stage.PIPELINE), torch.inference_mode():
            with context.stage(Stage.AUDIO_PREPROCESSING):
                _prepare(context, name, todo, going, refused)
            if going:
                _finish(context, name, going, refused)
        _withdraw(context, going, refused)
        release(context.loaded.device)


def _prepare(context: Context, name: str, todo: deque[_Item], going: dict[int, _Item], refused: set[str]) -> None:
    """As many as there is room for."""
    engine = context.loaded.engines[name]
    while todo and context.inference.has_room:
        item = todo.popleft()
        if item.job.id in refused:
            continue
        with context.step(name, "prepare"), _failing_alone(context, item, refused):
            reseed(find_seed(item.job, item.segment))
            context.inference.submit(item.number, item.job, item.segment, engine.prepare(item.job, item.segment))
            going[item.number] = item


def _finish(context: Context, name: str, going: dict[int, _Item], refused: set[str]) -> None:
    """What has come out of the model."""
    engine = context.loaded.engines[name]
    with context.stage_of(engine) as outputs:
        with context.step(name, "infer"):
            outputs.extend(context.inference.collect())
        while outputs:
            number, output = outputs.pop(0)
            item = going.pop(number)
            with _failing_alone(context, item, refused):
                if isinstance(output, Refused):
                    raise output
                with context.step(name, "finish"):
                    reseed(find_seed(item.job, item.segment))
                    piece = pickle.dumps(engine.finish(item.job, item.segment, output))
                context.progress(number, item.segment.end, piece)


def _withdraw(context: Context, going: dict[int, _Item], refused: set[str]) -> None:
    """What is under way for jobs that are lost: a model that dies of a job's segment may die of its others too."""
    lost = {number for number, item in going.items() if item.job.id in refused}
    context.inference.withdraw(lost)
    for number in lost:
        del going[number]


@contextmanager
def _failing_alone(context: Context, item: _Item, refused: set[str]) -> Iterator[None]:
    """What is raised in it costs the item's job alone; for want of memory it costs the task, which is tried again."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if item.job.id not in refused:
            content = error.error if isinstance(error, Refused) else _pickle(error)
            context.refuse(item.number, content)
        refused.add(item.job.id)


def _join_job(
    context: Context,
    name: str,
    job: Job,
    document: bytes | None,
    segments: Sequence[bytes],
    pieces: Sequence[bytes],
    writing: bool,
    target: Path | None,
) -> Document | JobOutput:
    """The job's document, with writing in every format that the job asks for: nothing is read of the job after that,
    so that what is written is of its files as they were noted."""
    engine = context.loaded.engines[name]
    known = _open(job, document)
    arguments = ([pickle.loads(s) for s in segments], [pickle.loads(p) for p in pieces])
    with ExitStack() as stages:
        stages.enter_context(context.step(name, "join"))
        if isinstance(engine, HostEngine):  # then this is all the work
            stages.enter_context(context.stage(Stage.PIPELINE))
            stages.enter_context(context.stage_of(engine))
        made = engine.join(job, known, *arguments)
    if not writing:
        return made
    if target is None:
        return JobOutput(made, ())
    job.check_files()
    folder = OutputFolder(target)
    with context.step(name, "write"):
        made = formats.warn_of_losses(made, [output.format for output in job.outputs])
        rendered = [(output.path, formats.render(made, output.format, output.layout)) for output in job.outputs]
        return JobOutput(made, tuple(folder.write(path, text) for path, text in rendered))


_TASKS: Mapping[str, Callable[..., Any]] = {"split": _split_job, "run": _run_segments, "join": _join_job}
