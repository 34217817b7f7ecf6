"""A worker: a copy-on-write child of the zygote that runs tasks, one at a time, on the shared weights."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import random
import sys
import time
import traceback
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines import formats
from engines.base import Engine, Job, Segment
from engines.document import Document
from prefork import process
from prefork.channel import Channel
from prefork.comparison import encode
from prefork.faults import watch_for_writes
from prefork.loading import Loaded
from prefork.monitor import CUDAMeter, HostMeter, MemoryMonitor, Stage
from prefork.outputs import JobOutput, OutputFolder
from prefork.tasks import pickle_error

# What torch's allocator says when it gets nothing: on Linux and macOS, on Windows, and where C++ does not say more.
_ALLOCATOR = ("can't allocate memory", "not enough memory: you tried to allocate", "std::bad_alloc")
_MOST_UNUSED = 0.1  # of a GPU's memory that torch may keep between two segments


@dataclass(frozen=True, slots=True)
class Context:
    """What a task gets to see of the worker that runs it."""

    loaded: Loaded
    progress: Callable[[float, bytes], None]  # called with the seconds that have been reached, and what came of it
    steps: dict[tuple[str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds, by engine and step
    monitor: MemoryMonitor | None = None  # logs checkpoints, if they are wanted

    def stage(self, stage: Stage) -> AbstractContextManager[object]:
        return nullcontext() if self.monitor is None else self.monitor.stage(stage)

    @contextmanager
    def stage_of(self, engine: Engine, prepared: list[Any]) -> Iterator[list[Any]]:
        """The stage that an engine's work is, if it is one, with a list for what the model makes of what was prepared.
        Both lists are emptied by its cleanups."""
        outputs: list[Any] = []
        if self.monitor is None or not engine.memory_stage:
            yield outputs
            return
        stage = Stage[engine.memory_stage.upper()]
        with self.monitor.stage(stage) as cleanups:
            cleanups.defer(stage.cleanups[0], prepared.clear)
            cleanups.defer(stage.cleanups[-1], outputs.clear)
            yield outputs

    @contextmanager
    def step(self, engine: str, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps[engine, name] += time.perf_counter() - started


def serve(channel: Channel, loaded: Loaded, threads: int) -> None:
    """Runs tasks until the supervisor closes the channel."""
    settle(loaded, threads)
    process.prefer_as_victim()
    reseed(int.from_bytes(os.urandom(8)))
    channel.send(("ready", os.getpid()))
    probe = process.PeakProbe()
    monitor = _make_monitor(loaded.device) if loaded.checkpoints else None
    while True:
        try:
            payload, _ = channel.receive()
        except EOFError:
            return
        probe.reset()
        context = Context(loaded, partial(_report, channel), monitor=monitor)
        answer = _run(payload, context)
        sys.stdout.flush()  # before anybody can end this worker
        channel.send(answer)
        del payload, answer
        process.release_free_memory()
        channel.send(("measured", probe.read(), dict(context.steps)))


def _make_monitor(device: str) -> MemoryMonitor:
    """One that logs to stderr, which goes where everything goes that workers print."""
    logger = logging.getLogger("prefork.memory")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.setLevel(logging.INFO)
    return MemoryMonitor(CUDAMeter(device) if device.startswith("cuda") else HostMeter(), logger)


def settle(loaded: Loaded, threads: int) -> None:
    """What a forked child does before it computes."""
    if loaded.arena is not None:
        watch_for_writes(loaded.arena, 2)
    torch.set_num_threads(threads)


def rehearse(loaded: Loaded, threads: int) -> bytes:
    """What a worker does, done once in a canary: computes on the shared weights, on as many threads."""
    process.die_with_parent(os.getppid())
    process.restore_signals()
    settle(loaded, threads)
    outputs = loaded.try_examples()
    if not outputs:  # nothing is known of the model: at least that torch computes, on all its threads
        outputs = {"torch": {"product": torch.ones(512, 512) @ torch.ones(512, 512)}}
    return encode(outputs)


def _report(channel: Channel, position: float, piece: bytes) -> None:
    channel.send(("progress", position, piece))


def reseed(seed: int) -> None:
    """Seeds every generator there is: without it, all workers would draw the zygote's numbers.

    torch's on the CPU alone: torch.manual_seed looks for every other device first, 3 of a fork's 13 ms.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


def _run(payload: bytes, context: Context) -> tuple[str, bytes]:
    """The message to send back. A task's exception is its result; it costs the worker nothing.

    The supervisor gets the result as bytes: what is in it may need torch to be unpickled, which it never imports.
    """
    try:
        name, arguments = pickle.loads(payload)
        return ("done", pickle.dumps(_TASKS[name](context, *arguments), pickle.HIGHEST_PROTOCOL))
    except BaseException as error:  # noqa: BLE001  whatever a task raises, sys.exit included, goes to who asked for it
        if _is_for_memory(error):
            return ("starved", f"{type(error).__name__}: {error}".encode())
        return ("error", pickle_error(error, traceback.format_exc()))


def _release(device: str) -> None:
    """Gives back what nobody uses; of a GPU's memory what torch keeps, once that is a tenth of all: the next segment
    would have to ask for it again, and that takes longer than on the CPU."""
    process.release_free_memory()
    if device.startswith("cuda"):
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if unused > _MOST_UNUSED * torch.cuda.mem_get_info(device)[1]:
            torch.cuda.empty_cache()


def _is_for_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory: Python's own, the allocator's of torch on the CPU, CUDA's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR)


def _call(context: Context, function: bytes) -> Any:
    """A function of the user's, with the loaded model, if there is one, as its first argument."""
    target, args, kwargs = pickle.loads(function)
    return target(*context.loaded.models.values(), *args, **kwargs)


def _open(job: Job, document: bytes | None) -> Document:
    """What is known of the job: what the stage before has passed on, or what its source says."""
    found: Document = pickle.loads(document) if document is not None else formats.open_document(job)
    return found


def _split_job(context: Context, name: str, job: Job, document: bytes | None) -> list[tuple[float, int, bytes]]:
    """The job's segments: for each its length in seconds, the bytes it is estimated to take, and itself."""
    engine = context.loaded.engines[name]
    with context.step(name, "split"):
        segments = engine.split(job, _open(job, document))
        return [(s.seconds, engine.estimate_memory(s), pickle.dumps(s)) for s in segments]


def _run_segments(context: Context, name: str, items: Sequence[tuple[Job, bytes]]) -> None:
    """prepare, infer and finish for segments, of several jobs where the engine takes them in one go. What comes of each
    does not depend on who runs it, or what ran before, and is reported at once: if this worker dies, what it has done
    is not lost."""
    if context.loaded.arena is not None:
        context.loaded.arena.populate()
    asked = [(job, pickle.loads(segment)) for job, segment in items]
    size = len(asked) if context.loaded.engines[name].batch_seconds else 1
    for start in range(0, len(asked), size):
        _run_batch(context, name, asked[start : start + size])
        _release(context.loaded.device)


def _run_batch(context: Context, name: str, batch: Sequence[tuple[Job, Segment]]) -> None:
    engine = context.loaded.engines[name]
    job, segment = batch[0]
    reseed(zlib.crc32(f"{job.id}:{segment.index}".encode(errors="surrogateescape")))
    with context.stage(Stage.PIPELINE), torch.inference_mode():
        with context.step(name, "prepare"), context.stage(Stage.AUDIO_PREPROCESSING):
            prepared = [engine.prepare(job, segment) for job, segment in batch]
        with context.stage_of(engine, prepared) as outputs:
            with context.step(name, "infer"):
                outputs.extend(context.loaded.infer(name, prepared))
            for number, (job, segment) in enumerate(batch):
                with context.step(name, "finish"):
                    piece = pickle.dumps(engine.finish(job, segment, outputs[number]))
                context.progress(segment.end, piece)


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
    """The job's document, with writing in every format that the job asks for."""
    engine = context.loaded.engines[name]
    known = _open(job, document)
    arguments = ([pickle.loads(s) for s in segments], [pickle.loads(p) for p in pieces])
    with ExitStack() as stages:
        stages.enter_context(context.step(name, "join"))
        if context.loaded.models[name] is None:  # then this is all the work
            stages.enter_context(context.stage(Stage.PIPELINE))
            stages.enter_context(context.stage_of(engine, []))
        made = engine.join(job, known, *arguments)
    if not writing:
        return made
    if target is None:
        return JobOutput(made, ())
    folder = OutputFolder(target)
    with context.step(name, "write"):
        rendered = [(output.path, formats.render(made, output.format)) for output in job.outputs]
        return JobOutput(made, tuple(folder.write(path, text) for path, text in rendered))


_TASKS: Mapping[str, Callable[..., Any]] = {"call": _call, "split": _split_job, "run": _run_segments, "join": _join_job}
