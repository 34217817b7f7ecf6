"""A worker: a copy-on-write child of the zygote that runs tasks, one at a time, on the shared weights."""

from __future__ import annotations

import logging
import math
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefork.cache.keys import digest_file
from prefork.cache.pieces import DescribedSegment, Piece, SplitJob
from prefork.engines.base import Engine, HostEngine, Job, LoadError, Segment
from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.memory.monitor import DeviceMeter, HostMeter, MemoryMonitor
from prefork.memory.monitored_stages import MonitoredStage as Stage
from prefork.memory.probe import PeakProbe
from prefork.outputs import JobOutput, OutputFolder, write_document
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.failures import Failure
from prefork.platform_matrix.systems import SYSTEM
from prefork.weights.device_memory import DeviceError, WeightsChanged
from prefork.weights.faults import watch_for_writes
from prefork.wire.calls import ContinueCall, OpenTokens, RunCalls
from prefork.wire.channel import Channel
from prefork.wire.endings import FATAL
from prefork.wire.exceptions import describe_error, pickle_error
from prefork.wire.messages import (
    InitializerFailed,
    ItemFailed,
    RunTask,
    TaskDone,
    TaskFailed,
    TaskOutOfMemory,
    TaskProgress,
    TaskUsage,
    WeightsCorrupted,
    WorkerBroken,
    WorkerInitializes,
    WorkerReady,
)
from prefork.wire.process import flush_output
from prefork.work.calls import Calls
from prefork.work.inference import LocalInference, RemoteInference
from prefork.work.keeping import digest_segment, load_piece
from prefork.work.loaded import Loaded
from prefork.work.segments import Context, pickle_failure, run_segments
from prefork.work.staging import judge
from prefork.work.torch_state import is_out_of_memory, reseed

_LARGE = 3000  # rows and columns: more than any matrix of a speech model has
_MEASURING_SECONDS = 0.25  # between two measurements of what calls take
Answer = TaskDone | TaskFailed | TaskOutOfMemory | WeightsCorrupted


def serve(channel: Channel, loaded: Loaded, threads: int, place: int = 0) -> None:
    """Runs tasks until the supervisor closes the channel. place: of its device."""
    try:
        loaded = settle(loaded, threads, place)
    except WeightsChanged as error:
        channel.send(WeightsCorrupted(str(error)))
        return
    except DeviceError as error:
        channel.send(WorkerBroken(str(error), error.blames_device))
        raise
    SYSTEM.prefer_as_victim()
    reseed(int.from_bytes(os.urandom(8)))
    if loaded.initializer is not None and not _initialize(loaded, loaded.initializer, channel):
        return
    channel.send(WorkerReady(os.getpid()))
    probe = PeakProbe()
    monitor = _make_monitor(loaded.device) if loaded.checkpoints else None
    remote = RemoteInference(channel, loaded) if loaded.remote else None
    inference = remote or LocalInference(loaded)
    calls = Calls(channel, loaded, partial(_give_up_broken, channel, loaded.device))
    meter = _CallMeter(channel, probe, calls)
    while True:
        meter.wait()
        try:
            message, fds = channel.receive()
        except EOFError:
            find_kind(loaded.device).synchronize(loaded.device)  # a client of NVIDIA's MPS must not just end
            return
        if isinstance(message, RunCalls | OpenTokens | ContinueCall):
            meter.begin()
            calls.take(message, fds)
            continue
        if not isinstance(message, RunTask):
            if remote is not None:
                remote.take_order(message, fds)
            continue
        meter.end()
        probe.reset()
        context = Context(
            loaded, inference, partial(_send_progress, channel), partial(_refuse, channel), monitor=monitor
        )
        answer = _run(message.task, context, channel)
        flush_output()  # before anybody can end this worker
        channel.send(answer)
        del message, answer
        SYSTEM.release_free_memory()
        channel.send(TaskUsage(probe.read(), dict(context.steps)))


def _initialize(loaded: Loaded, initializer: bytes, channel: Channel) -> bool:
    """Calls the user's initializer, with the models first, as a function that is given to `submit`; False if that
    fails."""
    channel.send(WorkerInitializes())
    try:
        function, arguments = pickle.loads(initializer)
        function(*loaded.models.values(), *arguments)
    except BaseException as error:  # noqa: BLE001  whatever it raises, sys.exit included, is told
        channel.send(InitializerFailed(pickle_error(error, traceback.format_exc())))
        return False
    finally:
        flush_output()
    return True


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
        SYSTEM.release_free_memory()
        self._calls.trim()
        self._channel.send(TaskUsage(self._probe.read(), {}))
        self._is_due, self._until = False, time.monotonic() + _MEASURING_SECONDS


def _make_monitor(device: str) -> MemoryMonitor:
    """One that logs to stderr, which goes where everything goes that workers print."""
    logger = logging.getLogger("prefork.memory")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.setLevel(logging.INFO)
    return MemoryMonitor(HostMeter() if device == "cpu" else DeviceMeter(device), logger)


def settle(loaded: Loaded, threads: int, place: int = 0) -> Loaded:
    """What a forked child does before it computes; what it computes with. place: of its device."""
    if loaded.arena is not None:
        watch_for_writes(loaded.arena, 2)
    SYSTEM.reuse_blocks()
    torch.set_num_threads(threads)
    return loaded.attach(place)


def rehearse(parent: int, loaded: Loaded, threads: int, place: int = 0, thorough: bool = False) -> bytes:
    """What a worker does, done once in a canary: computes on the shared weights, on as many threads and its device.
    parent: the process that forks it. thorough: also the longest segments, and matrices as large as any model's.
    Returns why the models are not what they say, empty if they are."""
    SYSTEM.begin_child(parent)
    SYSTEM.restore_signals()
    settled = settle(loaded, threads, place)
    try:
        outputs = settled.verify_examples()
    except LoadError as error:
        return str(error).encode()
    if thorough:
        settled.try_examples(longest=True)
        _multiply_large()
    if not outputs:  # nothing is known of the model: at least that torch computes, on all its threads
        (torch.ones(512, 512) @ torch.ones(512, 512)).sum().item()
    return b""


def _multiply_large() -> torch.Tensor:
    """By torch, and by numpy, whose BLAS is another."""
    ones = np.ones((_LARGE, _LARGE), np.float32)
    return torch.tensor([(torch.from_numpy(ones) @ torch.from_numpy(ones))[0, 0].item(), float((ones @ ones)[0, 0])])


def _send_progress(channel: Channel, number: int, position: float, piece: bytes) -> None:
    channel.send(TaskProgress(number, float(position), piece))


def _refuse(channel: Channel, number: int, error: bytes) -> None:
    channel.send(ItemFailed(number, error))


def _run(payload: bytes, context: Context, channel: Channel) -> Answer:
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
        _give_up_broken(channel, context.loaded.device, error)
        return TaskFailed(pickle_failure(error))
    finally:
        context.inference.drop()


def _give_up_broken(channel: Channel, device: str, error: BaseException) -> None:
    """If the GPU can be used no more by this process, it ends; another will be forked in its place."""
    failure = judge(error, device)
    if failure in (Failure.CONTEXT, Failure.DEVICE):
        channel.send(WorkerBroken(describe_error(error), failure is Failure.DEVICE))
        print(f"{FATAL}{error}".partition("\n")[0], file=sys.stderr, flush=True)
        os._exit(1)


def _open(job: Job, document: bytes | None) -> Document:
    """What is known of the job: what the stage before has passed on, or what its source says."""
    if document is not None:
        found: Document = pickle.loads(document)
        return found
    return formats.open_document(job.source, job.media, job.seconds, job.language)


def _split_job(
    context: Context, name: str, job: Job, document: bytes | None, keeps: bool, recording: bytes
) -> SplitJob:
    """The job's segments. keeps: results are kept, for which the job's recording has to be known: it is digested if
    that has not been done."""
    engine = context.loaded.engines[name]
    keeps = keeps and engine.piece is not None
    with context.step(name, "split"):
        segments = engine.split(job, _open(job, document))
        described = tuple(_describe_segment(context, engine, segment, keeps) for segment in segments)
        if keeps and not recording and job.media is not None:
            recording = digest_file(job.media)
        return SplitJob(described, keeps, recording)


def _describe_segment(context: Context, engine: Engine, segment: Segment, keeps: bool) -> DescribedSegment:
    """In Python's own numbers, which the supervisor understands without torch. Raises ValueError for a length that is
    none: nobody could say how long to wait for it."""
    seconds = max(0.0, float(segment.seconds))
    if not math.isfinite(seconds):
        raise ValueError(f"{engine.name} has made a segment from {segment.start} s to {segment.end} s")
    size = 0 if context.loaded.remote else int(engine.estimate_memory(segment))
    return DescribedSegment(seconds, size, pickle.dumps(segment), digest_segment(engine, segment) if keeps else b"")


def _join_job(
    context: Context,
    name: str,
    job: Job,
    document: bytes | None,
    segments: Sequence[bytes],
    pieces: Sequence[Piece],
    writing: bool,
    target: Path | None,
) -> Document | JobOutput:
    """The job's document; with writing, its outputs too, if there is a folder for them."""
    engine = context.loaded.engines[name]
    known = _open(job, document)
    arguments = ([pickle.loads(segment) for segment in segments], [load_piece(engine, piece) for piece in pieces])
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
    with context.step(name, "write"):
        return write_document(OutputFolder(target), job, made)


_TASKS: Mapping[str, Callable[..., Any]] = {"split": _split_job, "run": run_segments, "join": _join_job}
