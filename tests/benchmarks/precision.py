"""What lower precision does to memory, speed and word times: python tests/benchmarks/precision.py [--model PATH]

float32, bfloat16, float16 and int8 beside one another, in one run of about two minutes for the embedded model. Word
times are of ../shared/data/aligned-tts, whose truth is exact, or without it of prefork/samples, whose is not known.
`--random base|large` takes a wav2vec2 of 95 or 315 million random parameters, which has no word times worth looking at.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork import Runtime
from prefork.engines.audio.reader import probe
from prefork.engines.base import Job
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.ctc.checkpoint import DTYPES
from prefork.memory.memlog import read_log
from tests.benchmarks.accuracy import SHARED, Stopwatch, align, read_sentences
from tests.benchmarks.results import Results
from tests.benchmarks.runtime import big_model, write_jobs

SAMPLES = Path(__file__).resolve().parents[2] / "prefork" / "samples"
_SECONDS = 12.0  # of audio at a time
_ROUNDS = 5

Edges = np.ndarray[Any, np.dtype[np.float64]]  # (words, 2) starts and ends, seconds


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine with its model, in this process."""

    engine: CTCAligner
    model: Any


def load(model: str | None, dtype: str) -> Loaded:
    engine = CTCAligner(model, dtype=dtype)
    engine.setup()
    loaded: Any = engine.load()
    loaded.batch_invariant = False  # so that nothing is recalled
    return Loaded(engine, loaded)


def measure_worker(model: str | None, dtype: str) -> tuple[int, int]:
    """Bytes of the weights in the arena, and of a forked worker's own at its peak, over four recordings of noise."""
    with tempfile.TemporaryDirectory() as name:
        jobs, log = write_jobs(Path(name), 4, _SECONDS), Path(name) / "memory.jsonl"
        options = {"dtype": dtype} | ({} if model is None else {"model": model})
        with Runtime("ctc", options=options, workers=1, threads=1, strategy="fork", memory_log=log) as runtime:
            for result in runtime.map(jobs):
                assert result.error is None, result.error
            assert runtime.supervisor.inventory is not None
            weights = runtime.supervisor.inventory.weights
        events = [event for event in read_log(log).events if event.event == "complete"]
    return weights, max(event.peak or 0 for event in events)


@torch.inference_mode()
def measure_speed(models: Mapping[str, Loaded]) -> dict[str, float]:
    """Audio seconds per second on one thread, medians; the precisions take turns."""
    waveform = torch.randn(round(_SECONDS * 16_000), generator=torch.Generator().manual_seed(0)) * 0.1
    spent: dict[str, list[float]] = {dtype: [] for dtype in models}
    for _ in range(_ROUNDS + 1):
        for dtype, loaded in models.items():
            begin = time.perf_counter()
            loaded.engine.infer(loaded.model, [{"waveform": waveform}])
            spent[dtype].append(time.perf_counter() - begin)
    return {dtype: _SECONDS / statistics.median(seconds[1:]) for dtype, seconds in spent.items()}


def find_words(loaded: Loaded, jobs: Sequence[Job]) -> Edges:
    documents = [align(loaded.engine, loaded.model, job, Stopwatch()) for job in jobs]
    words = [word for document in documents for utterance in document.utterances for word in utterance.words]
    return np.array([(word.start, word.end) for word in words if word.start is not None], dtype=float)


def write_sentences(folder: Path) -> tuple[list[Job], Edges | None]:
    """Transcripts without times, and the truth; the samples as they are and no truth where ../shared is not there."""
    if not (SHARED / "data" / "aligned-tts").is_dir():
        sources = sorted(SAMPLES.glob("*.cha"))
        media = [source.with_suffix(".flac") for source in sources]
        return [Job(s.stem, s, m, seconds=probe(m).seconds) for s, m in zip(sources, media, strict=True)], None
    jobs, truth = [], []
    for sentence in read_sentences():
        source = folder / f"{sentence.media.stem}.txt"
        source.write_text(" ".join(word.text for word in sentence.words) + "\n", encoding="utf-8")
        jobs.append(Job(source.stem, source, sentence.media, seconds=probe(sentence.media).seconds))
        truth += [(word.start, word.end) for word in sentence.words]
    return jobs, np.array(truth)


def describe_words(edges: Edges, reference: Edges, truth: Edges | None) -> list[str]:
    """Median and 95th percentile of the shift against float32, and the median error, of starts and of ends."""
    cells = []
    for column in (0, 1):
        shift = np.abs(edges[:, column] - reference[:, column]) * 1000
        cells.append(f"{np.median(shift):.0f} / {np.percentile(shift, 95):.0f}")
    if truth is not None:
        errors = np.median(np.abs(edges - truth), axis=0) * 1000
        cells.append(f"{errors[0]:.0f} / {errors[1]:.0f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="folder or hub id; by default the embedded model")
    which.add_argument("--random", choices=("base", "large"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    headings = ["dtype", "weights MB", "worker's peak MB", "audio s/s"]
    with (
        tempfile.TemporaryDirectory() as name,
        big_model(size=arguments.random) if arguments.random else nullcontext(arguments.model) as found,
    ):
        model = None if found is None else str(found)
        workers = {dtype: measure_worker(model, dtype) for dtype in DTYPES}
        models = {dtype: load(model, dtype) for dtype in DTYPES}
        speeds = measure_speed(models)
        words: dict[str, list[str]] = {dtype: [] for dtype in DTYPES}
        if not arguments.random:
            jobs, truth = write_sentences(Path(name))
            edges = {dtype: find_words(loaded, jobs) for dtype, loaded in models.items()}
            words = {dtype: describe_words(found, edges["float32"], truth) for dtype, found in edges.items()}
            headings += ["starts' shift ms, median / 95 %", "ends' shift ms, median / 95 %"]
            headings += ["error ms, median of starts / ends"] if truth is not None else []
    with Results() as results:
        table = results.add_table(*headings, title=arguments.random or arguments.model or "embedded model")
        for dtype in DTYPES:
            weights, peak = workers[dtype]
            table.add(dtype, f"{weights / 1e6:.1f}", f"{peak / 1e6:.0f}", f"{speeds[dtype]:.1f}", *words[dtype])
        results.note(f"one thread, {_SECONDS:g} s at a time; {time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
