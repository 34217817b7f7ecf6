"""Segments in a worker: prepared, looked up, computed, finished."""

from __future__ import annotations

import pickle
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from prefork.cache.pieces import Keeping, Piece
from prefork.engines.base import Engine, Job, LoadError, Segment
from prefork.memory.monitor import MemoryMonitor
from prefork.memory.monitored_stages import MonitoredStage as Stage
from prefork.platform_matrix.imports import explain_import
from prefork.wire.exceptions import pickle_error
from prefork.work.inference import Inference, Refused, Result, find_seed
from prefork.work.keeping import PieceKeeper
from prefork.work.loaded import Loaded
from prefork.work.torch_state import is_out_of_memory, release, reseed, watch_draws


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


def pickle_failure(error: BaseException) -> bytes:
    """What an engine raises. A package that it cannot import is no job's fault, and the next job would lack it too."""
    line = explain_import(error)
    return pickle_error(LoadError(line) if line else error, traceback.format_exc())


@dataclass(frozen=True, slots=True)
class _Item:
    """A segment that is to be run. number: what the supervisor calls it. keeping: None if nothing of it is kept."""

    number: int
    job: Job
    segment: Segment
    keeping: Keeping | None


def run_segments(context: Context, name: str, items: Sequence[tuple[int, tuple[Job, bytes, Keeping | None]]]) -> None:
    """prepare, infer and finish for segments, of several jobs where the model takes them in one go. What comes of each
    does not depend on who runs it, or what ran before, and is reported at once: if this worker dies, what it has done
    is not lost. A segment that cannot be processed costs its job, and no other."""
    if context.loaded.arena is not None:
        context.loaded.arena.populate()
    todo = deque(_Item(number, job, pickle.loads(segment), keeping) for number, (job, segment, keeping) in items)
    keeper = PieceKeeper(context.loaded.engines[name])
    context.inference.open(name)
    going: dict[int, _Item] = {}
    refused: set[str] = set()  # jobs
    while todo or going:
        with context.stage(Stage.PIPELINE), torch.inference_mode():
            with context.stage(Stage.AUDIO_PREPROCESSING):
                _prepare(context, name, todo, going, refused, keeper)
            if going:
                _finish(context, name, going, refused, keeper)
        _withdraw(context, going, refused)
        release(context.loaded.device, context.loaded.batch_need, idle=not (todo or going))


def _prepare(
    context: Context,
    name: str,
    todo: deque[_Item],
    going: dict[int, _Item],
    refused: set[str],
    keeper: PieceKeeper,
) -> None:
    """As many as there is room for. What is found to be kept is not computed."""
    engine = context.loaded.engines[name]
    while todo and context.inference.has_room:
        item = todo.popleft()
        if item.job.id in refused:
            continue
        with context.step(name, "prepare"), _failing_alone(context, item, refused):
            reseed(find_seed(item.job, item.segment))
            with watch_draws() as draws:
                tensors = engine.prepare(item.job, item.segment)
            keeping = None if draws.any else item.keeping
            if (kept := keeper.find(item.number, item.job, keeping, tensors)) is not None:
                _report(context, item, kept)
                continue
            context.inference.submit(item.number, item.job, item.segment, tensors)
            going[item.number] = item


def _finish(context: Context, name: str, going: dict[int, _Item], refused: set[str], keeper: PieceKeeper) -> None:
    """What has come out of the model."""
    engine = context.loaded.engines[name]
    with context.stage_of(engine) as outputs:
        started = time.perf_counter()
        with context.step(name, "infer"):
            outputs.extend(context.inference.collect())
        # A batch is seeded by its first segment: what does not depend on company does not on the seed either.
        alone = context.inference.is_alone and not context.inference.drew
        repeatable = engine.batch_invariant or alone
        seconds = (time.perf_counter() - started) / max(1, len(outputs))
        while outputs:
            number, output = outputs.pop(0)
            item = going.pop(number)
            with _failing_alone(context, item, refused):
                if isinstance(output, Refused):
                    raise output
                with context.step(name, "finish"):
                    reseed(find_seed(item.job, item.segment))
                    with watch_draws() as draws:
                        made = engine.finish(item.job, item.segment, output)
                    _report(context, item, keeper.describe(number, made, seconds, repeatable and not draws.any))


def _report(context: Context, item: _Item, piece: Piece) -> None:
    context.progress(item.number, item.segment.end, pickle.dumps(piece))


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
            content = error.error if isinstance(error, Refused) else pickle_failure(error)
            context.refuse(item.number, content)
        refused.add(item.job.id)
