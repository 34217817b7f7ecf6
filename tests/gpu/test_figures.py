"""Memory and speed of the strategies with models of the sizes that are used; printed, and hardly judged.

Each table has its seconds: what has not begun when they are over is left out, and said to be. PREFORK_FIGURES_SECONDS
gives it more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from prefork import Runtime
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.whisper.asr import WhisperASR
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.nvml import Load
from tests.gpu import models
from tests.gpu.forked import do
from tests.gpu.machine import DEVICES, STAND_IN, STRATEGIES, TORCH, Meter, read_load

_AUDIO = 10.0  # seconds of a recording
_RUN = 4.0  # seconds that a run is to last
_SECONDS = float(os.environ.get("PREFORK_FIGURES_SECONDS", "130"))  # of a table
_LONGEST = 60.0  # seconds that loading may take
_MOST_JOBS = 4000
_TOKENS = 4 if STAND_IN else 64  # that a window is written with at most
_COUNTS = (1, 2) if STAND_IN else (1, 2, 4, 8)
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. rest, most: bytes of GPU memory beyond what was taken before, once all workers are ready and while
    they compute. speed: audio seconds per second, without loading. busy: percent of the time, as NVML counts it. What
    nobody could measure is None."""

    strategy: str
    workers: int
    weights: int = 0
    rest: int | None = None
    most: int | None = None
    speed: float = 0.0
    busy: float | None = None
    loading: float = 0.0
    problem: str = ""


def _size(sizes: dict[str, int]) -> dict[str, int]:
    """What the CPU can stand for."""
    return {name: _SMALL.get(name, value) for name, value in sizes.items()} if STAND_IN else sizes


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_wav2vec2(tmp_path_factory.mktemp("wav2vec2") / "model", _size(models.WAV2VEC2))


@pytest.mark.timeout(180 + _SECONDS)
def test_a_wav2vec2_of_315_million(wav2vec2: Path) -> None:
    _measure_all("ctc, wav2vec2 of 315 M, bfloat16", "ctc", wav2vec2)


@pytest.mark.parametrize("name", ["tiny.en", "large-v3-turbo"])
@pytest.mark.timeout(180 + _SECONDS)
def test_a_whisper(name: str, tmp_path: Path) -> None:
    """The aligner: encoder and decoder over known words. Then the decoder alone, that writes so many tokens."""
    folder = models.make_whisper(tmp_path / "model", _size(models.TINY if name == "tiny.en" else models.TURBO))
    _measure_all(f"whisper-aligner as large as {name}, bfloat16", "whisper-aligner", folder)
    lines = do(lambda: list(_time_tokens(folder)))
    assert isinstance(lines, list), lines
    print("\n" + "\n".join(lines))


def _time_tokens(folder: Path) -> Iterator[str]:
    """Tokens that the decoder is given, those of texts that it does not believe in and writes again included."""
    engine = WhisperASR(str(folder), dtype="bfloat16")
    engine.setup()
    loaded: Any = engine.load()
    model = loaded.to(TORCH)
    find_kind(TORCH).speed_up()
    given: list[int] = []
    model.decoder.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].numel()))
    example = {**engine.example(), "most": torch.tensor(_TOKENS)}
    for count in (1,) if STAND_IN else (1, 8, 32):
        batch = [{name: tensor.to(TORCH) for name, tensor in example.items()} for _ in range(count)]
        rounds = 1 if STAND_IN else 3
        write = partial(_write, engine, model, batch)
        write()
        given.clear()
        started = time.perf_counter()
        for _ in range(rounds):
            write()
        seconds = time.perf_counter() - started
        yield f"{count:2} windows together: {sum(given) / seconds:.0f} tokens/s, {sum(given)} in {seconds:.2f} s"


def _write(engine: WhisperASR, model: Any, batch: list[dict[str, torch.Tensor]]) -> float:
    with torch.inference_mode():
        return float(sum(output["attention"].sum() for output in engine.infer(model, batch)))  # waits for the GPU


def _measure_all(title: str, engine: str, folder: Path) -> None:
    """Prints a table. The most workers and then one come first, with every strategy; what there is no time for is in
    between."""
    until = time.monotonic() + _SECONDS
    found: dict[tuple[str, int], Figures] = {}
    for workers in (_COUNTS[-1], _COUNTS[0], *_COUNTS[1:-1]):
        for strategy in STRATEGIES:
            left = until - time.monotonic()
            if left > 0:
                found[strategy, workers] = _measure(engine, folder, strategy, workers, min(_LONGEST, left + 20))
    _show(title, [found.get((s, n), Figures(s, n, problem="no time")) for s in STRATEGIES for n in _COUNTS])
    assert {strategy for (strategy, _), row in found.items() if not row.problem} >= {"server"}
    _judge(found)


def _judge(found: dict[tuple[str, int], Figures]) -> None:
    """What the strategies are for: one copy of the weights, however many workers there are."""
    few, many = _COUNTS[0], _COUNTS[-1]
    rest = {key: row.rest for key, row in found.items() if row.rest is not None}
    weights = max(row.weights for row in found.values())
    if {("server", few), ("server", many)} <= rest.keys():
        assert rest["server", many] - rest["server", few] < weights / 2
    if {("ipc", many), ("spawn", many)} <= rest.keys():
        assert rest["spawn", many] - rest["ipc", many] > 0.5 * (many - 1) * weights


def _measure(engine: str, folder: Path, strategy: str, workers: int, patience: float) -> Figures:
    before = read_load()
    started = time.monotonic()
    options = {"model": str(folder), "dtype": "bfloat16"}
    runtime = Runtime(engine, options=options, workers=workers, strategy=strategy, devices=DEVICES)
    try:
        if not runtime.supervisor.loaded.wait(patience):
            runtime.supervisor.drain(0.0)
            return Figures(strategy, workers, problem=f"not loaded after {patience:.0f} s")
        runtime.wait_until_loaded()
        if runtime.plan.strategy != strategy or runtime.plan.workers != workers:
            said = runtime.plan.capped or runtime.plan.fallback
            return Figures(strategy, workers, problem=f"{runtime.plan.workers}, {runtime.plan.strategy}: {said}")
        if not _wait_for_workers(runtime, workers):
            return Figures(strategy, workers, problem=f"not all workers were ready after {_LONGEST:.0f} s")
        loading = time.monotonic() - started
        rest = _subtract(read_load(), before)
        _run(runtime, folder, 2 * workers)
        rate = _run(runtime, folder, 4 * workers)
        count = min(_MOST_JOBS, max(4 * workers, round(rate * _RUN / _AUDIO)))
        with Meter() as meter:
            speed = _run(runtime, folder, count)
        inventory = runtime.supervisor.inventory
        assert inventory is not None
        most = _subtract(max(meter.loads, key=lambda load: load.used, default=None), before)
        return Figures(strategy, workers, inventory.weights, rest, most, speed, meter.busy, loading)
    finally:
        runtime.shutdown()


def _subtract(load: Load | None, before: Load | None) -> int | None:
    return None if load is None or before is None else load.used - before.used


def _wait_for_workers(runtime: Runtime, count: int) -> bool:
    until = time.monotonic() + _LONGEST
    while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < count:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _run(runtime: Runtime, folder: Path, count: int) -> float:
    """Audio seconds per second."""
    jobs = models.make_jobs(folder.parent / "audio", count, _AUDIO)
    started = time.monotonic()
    for result in runtime.map(jobs):
        assert result.error is None, result.error
    return sum(job.seconds for job in jobs) / (time.monotonic() - started)


def _show(title: str, rows: Sequence[Figures]) -> None:
    """GPU memory in GB; of that at rest, what is beyond one copy of the weights is shared out evenly."""
    headings = (
        "strategy",
        "workers",
        "weights",
        "at rest",
        "beyond, per worker",
        "at most",
        "audio s/s",
        "busy",
        "loaded",
    )
    table = Table(*headings, title=f"{title}; GB of GPU memory")
    for row in rows:
        name = "copies" if row.strategy == "spawn" else row.strategy
        if row.problem:
            table.add_row(name, str(row.workers), row.problem)
            continue
        beyond = None if row.rest is None else round((row.rest - row.weights) / row.workers)
        sizes = ("-" if size is None else f"{size / 1e9:.2f}" for size in (row.weights, row.rest, beyond, row.most))
        busy = "-" if row.busy is None else f"{row.busy:.0f}%"
        table.add_row(name, str(row.workers), *sizes, f"{row.speed:.0f}", busy, f"{row.loading:.1f} s")
    print()
    Console(width=120).print(table)


def test_one_batch_by_itself(wav2vec2: Path) -> None:
    """What the GPU alone does with a batch: the most that any strategy can come to."""
    lines = do(lambda: list(_time_batches(wav2vec2)))
    assert isinstance(lines, list), lines
    print("\n" + "\n".join(lines))


def _time_batches(folder: Path) -> Iterator[str]:
    for dtype in ("bfloat16", "float32"):
        engine = CTCAligner(str(folder), dtype=dtype)
        engine.setup()
        loaded: Any = engine.load()
        model = loaded.to(TORCH)
        find_kind(TORCH).speed_up()
        for count in (1,) if STAND_IN else (1, 8, 32):
            batch = [{"waveform": torch.randn(round(_AUDIO * 16_000), device=TORCH)} for _ in range(count)]

            compute = partial(_compute, engine, model, batch)
            seconds = _time(compute, 1 if STAND_IN else 5)
            yield f"{dtype}, {count:2} segments of {_AUDIO:.0f} s: {count * _AUDIO / seconds:.0f} audio seconds/s"


def _compute(engine: CTCAligner, model: Any, batch: list[dict[str, torch.Tensor]]) -> float:
    with torch.inference_mode():
        return float(engine.infer(model, batch)[0]["log_probs"].sum())  # the sum waits for the GPU


def _time(compute: Callable[[], float], rounds: int) -> float:
    """Seconds of one, the first left out."""
    compute()
    started = time.perf_counter()
    for _ in range(rounds):
        compute()
    return (time.perf_counter() - started) / rounds
