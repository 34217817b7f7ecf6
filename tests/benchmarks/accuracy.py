"""How exact and how fast the CTC aligner is: python tests/benchmarks/accuracy.py [--model PATH] [--threads N]

Accuracy: word starts and ends against the times of the synthesiser that spoke ../shared/data/aligned-tts, from
transcripts without times. `--hide N` writes every Nth word as digits, which the model cannot spell, and reports on
these words and on their neighbours.
Speed: ../shared/data/speech, 21 minutes, transcripts with times; each step's seconds, and this process's memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.audio.reader import probe
from prefork.engines.base import Job
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.text import formats
from prefork.engines.text.document import Document, Word
from tests.benchmarks.results import Results

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@dataclass(frozen=True, slots=True)
class Truth:
    """A word as the synthesiser spoke it. start, end: seconds. distance: words to the nearest hidden one."""

    text: str
    start: float
    end: float
    distance: int


class Stopwatch:
    """Seconds spent in each of an engine's steps."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def time(self, name: str, step: Any, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = step(*arguments)
        self.seconds[name] += time.perf_counter() - begin
        return result


@torch.inference_mode()
def align(engine: CTCAligner, model: Any, job: Job, watch: Stopwatch) -> Document:
    pieces = []
    segments = watch.time("split", engine.split, job, formats.read(job.source))
    for segment in segments:
        tensors = watch.time("prepare", engine.prepare, job, segment)
        (output,) = watch.time("infer", engine.infer, model, [tensors])
        pieces.append(watch.time("finish", engine.finish, job, segment, output))
    document: Document = watch.time("join", engine.join, job, formats.read(job.source), segments, pieces)
    return document


def read_sentences(hide: int) -> Iterator[tuple[Path, list[Truth]]]:
    """Each recording with its words; every `hide`th word of the whole set is written as digits, 0 hides none."""
    folder = SHARED / "data" / "aligned-tts"
    count = 0
    for name, words in sorted(json.loads((folder / "words.json").read_text(encoding="utf-8")).items()):
        hidden = [index for index in range(len(words)) if hide and (count + index) % hide == hide // 2]
        count += len(words)
        truths = [
            Truth(
                "42" if index in hidden else word["word"],
                word["start"],
                word["end"],
                min((abs(index - other) for other in hidden), default=len(words)),
            )
            for index, word in enumerate(words)
        ]
        yield folder / f"{name}.flac", truths


def measure_accuracy(engine: CTCAligner, model: Any, hide: int) -> Iterator[str]:
    found: list[tuple[Truth, Word]] = []
    with tempfile.TemporaryDirectory() as folder:
        for media, truths in read_sentences(hide):
            source = Path(folder) / f"{media.stem}.txt"
            source.write_text(" ".join(truth.text for truth in truths) + "\n", encoding="utf-8")
            job = Job(media.stem, source, media, seconds=probe(media).seconds)
            document = align(engine, model, job, Stopwatch())
            words = [word for utterance in document.utterances for word in utterance.words]
            found += zip(truths, words, strict=True)
    if not hide:
        yield from report("all words", found)
        return
    yield from report("hidden words", [pair for pair in found if pair[0].distance == 0])
    yield from report("their neighbours", [pair for pair in found if pair[0].distance == 1])
    yield from report("all others", [pair for pair in found if pair[0].distance > 1])


def report(title: str, found: Sequence[tuple[Truth, Word]]) -> Iterator[str]:
    for edge in ("start", "end"):
        errors = np.array([getattr(word, edge) - getattr(truth, edge) for truth, word in found]) * 1000
        sizes = np.abs(errors)
        yield (
            f"{title}, {edge}s: {len(sizes)} words, median error {np.median(sizes):.0f} ms, "
            f"{np.mean(sizes <= 50):.1%} within 50 ms, {np.mean(sizes <= 100):.1%} within 100 ms, "
            f"worst {sizes.max():.0f} ms, bias {np.median(errors):+.0f} ms"
        )


def measure_speed(engine: CTCAligner, model: Any) -> Iterator[str]:
    watch = Stopwatch()
    seconds, segments = 0.0, 0
    process = psutil.Process()
    before = process.memory_full_info().uss
    begin = time.perf_counter()
    for source in sorted((SHARED / "data" / "speech").glob("*.cha")):
        media = source.with_suffix(".flac")
        job = Job(source.stem, source, media, seconds=probe(media).seconds)
        align(engine, model, job, watch)
        seconds += job.seconds
        segments += len(engine.split(job, formats.read(job.source)))
    wall = time.perf_counter() - begin
    steps = ", ".join(f"{name} {spent:.2f}" for name, spent in watch.seconds.items())
    yield (
        f"{seconds:.0f} s of audio, {segments} segments, in {wall:.1f} s: {seconds / wall:.0f} times as fast ({steps})"
    )
    yield f"bare infer: {seconds / watch.seconds['infer']:.0f} times as fast"
    yield f"private memory: {before >> 20} MiB before, {process.memory_full_info().uss >> 20} MiB after"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; by default the embedded model")
    parser.add_argument("--hide", type=int, default=0, metavar="N", help="write every Nth word as digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-segment", type=float, default=None, metavar="SECONDS")
    parser.add_argument("--only", choices=("accuracy", "speed"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {} if arguments.max_segment is None else {"max_segment": arguments.max_segment}
    engine = CTCAligner(model=arguments.model, **options)
    engine.setup()
    model = engine.load()
    with torch.inference_mode():
        engine.verify(engine.infer(model, [engine.example()])[0])
    with Results() as results:
        for line in measure_accuracy(engine, model, arguments.hide) if arguments.only != "speed" else ():
            results.note(line)
        for line in measure_speed(engine, model) if arguments.only != "accuracy" else ():
            results.note(line)


if __name__ == "__main__":
    main()
