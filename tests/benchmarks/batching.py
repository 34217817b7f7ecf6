"""How much of a batch is padding, by length and static, at equal memory: python tests/benchmarks/batching.py

2,000 segments each: (a) of the lengths that `prefork align` makes of ../shared/data/speech, drawn from them again and
again; (b) of a log-normal distribution from 0.3 to 28 s. They come in random order, or sorted by length as a list
that is known beforehand can be. Equal memory: a STATIC batch must leave room for `--batch-size` of the longest
segments, and that many elements are LENGTH's `max_num_elements`. The window is what a stream may hold back, in such
full batches: a device that is slower than what feeds it takes a batch whenever the window is full, one that is faster
(eager) as soon as a batch is.

padding: padded elements / all elements. filled: elements of segments / (batches x memory). longest wait: elements that
went before a segment that came before them, in full batches. `--emptiness`: what the batcher's constant of this name
does to the cost, in full batches: all elements, and for each batch a share of a full one.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork.engines.audio.reader import SAMPLE_RATE, probe
from prefork.engines.base import Job
from prefork.engines.batching import Batcher, Batching, batch_by_length, batcher, measure_padding
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.text import formats
from tests.benchmarks.results import Results, Table

SPEECH = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "speech"
SEGMENTS = 2_000
WINDOWS = (1, 2, 4, 8)  # full batches
COSTS = (0.1, 0.25)  # of a batch whatever it holds, as a share of a full one's; assumed


@dataclass(frozen=True, slots=True)
class Result:
    """Batches of indices; the longest that a segment was overtaken by later ones, elements; milliseconds a segment."""

    batches: Sequence[Sequence[int]]
    wait: int = 0
    milliseconds: float = 0.0


def read_speech_lengths() -> list[int]:
    """Elements of the segments that the embedded aligner makes of each transcript with times."""
    engine = CTCAligner()
    engine.setup()
    lengths = []
    for source in sorted(SPEECH.glob("*.cha")):
        media = source.with_suffix(".flac")
        job = Job(source.stem, source, media, seconds=probe(media).seconds)
        lengths += [round(segment.seconds * SAMPLE_RATE) for segment in engine.split(job, formats.read(source))]
    return lengths


def draw_lengths(chance: random.Random, median: float = 3.0, sigma: float = 0.9) -> list[int]:
    """Log-normal, those outside of 0.3 to 28 s drawn again."""
    lengths: list[int] = []
    while len(lengths) < SEGMENTS:
        seconds = median * chance.lognormvariate(0, sigma)
        if 0.3 <= seconds <= 28:
            lengths.append(round(seconds * SAMPLE_RATE))
    return lengths


def stream(lengths: Sequence[int], batching: Batching, window: int, eager: bool = False) -> Result:
    batcher = Batcher[int](batching, window)
    batches: list[list[int]] = []
    begin = time.perf_counter()
    for index, length in enumerate(lengths):
        batcher.add(index, length)
        while (eager or batcher.is_full) and (batch := batcher.pop()):
            batches.append(batch)
    while batch := batcher.pop(flush=True):
        batches.append(batch)
    took = time.perf_counter() - begin
    return Result(batches, find_longest_wait(batches, lengths), 1000 * took / len(lengths))


def find_longest_wait(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    rank = {index: number for number, batch in enumerate(batches) for index in batch}
    longest = 0
    for index in range(len(lengths)):
        overtaken = sum(lengths[i] for i in range(index + 1, len(lengths)) if rank[i] < rank[index])
        longest = max(longest, overtaken)
    return longest


def add_row(table: Table, name: str, lengths: Sequence[int], result: Result, memory: int) -> None:
    assert sorted(index for batch in result.batches for index in batch) == list(range(len(lengths)))
    padded = [[lengths[index] for index in batch] for batch in result.batches]
    assert max(len(batch) * max(batch) for batch in padded) <= memory
    table.add(
        name,
        f"{measure_padding(padded):.1%}",
        str(len(padded)),
        f"{sum(lengths) / (len(padded) * memory):.0%}",
        f"{result.wait / memory:.1f}",
        f"{result.milliseconds:.2f}",
    )


def compare(results: Results, name: str, lengths: Sequence[int], batch_size: int, multiple: int) -> None:
    longest = max(lengths)
    memory = batch_size * longest
    static = Batching(batch_size=batch_size, max_audio_len=longest)
    by_length = Batching(max_num_elements=memory, max_audio_len=longest, num_seqs_multiple_of=multiple)
    seconds = sorted(length / SAMPLE_RATE for length in lengths)
    results.note(
        f"{name}: {len(seconds)} segments, {seconds[0]:.1f} to {seconds[-1]:.1f} s, "
        f"median {seconds[len(seconds) // 2]:.1f} s; memory for {memory / SAMPLE_RATE:.0f} s"
    )
    table = results.add_table("order, batches", "padding", "batches", "filled", "longest wait", "ms/segment")
    for order, ordered in (("random", lengths), ("sorted", sorted(lengths))):
        add_row(table, f"{order}, static", ordered, stream(ordered, static, memory), memory)
        for window in WINDOWS:
            result = stream(ordered, by_length, window * memory)
            add_row(table, f"{order}, length, window {window}", ordered, result, memory)
        result = stream(ordered, by_length, WINDOWS[-1] * memory, eager=True)
        add_row(table, f"{order}, length, window {WINDOWS[-1]}, eager", ordered, result, memory)
        batches = list(batch_by_length(ordered, by_length))
        add_row(table, f"{order}, length, data set", ordered, Result(batches), memory)


def compare_emptiness(results: Results, name: str, lengths: Sequence[int], batch_size: int, multiple: int) -> None:
    longest = max(lengths)
    memory = batch_size * longest
    by_length = Batching(max_num_elements=memory, max_audio_len=longest, num_seqs_multiple_of=multiple)
    costs_of = (f"cost, {share:.0%} a batch" for share in COSTS)
    table = results.add_table("window, emptiness", "padding", "batches", *costs_of, title=name)
    usual = batcher.EMPTINESS
    for window in WINDOWS:
        for emptiness in (0.1, 0.25, 0.5, 1.0):
            batcher.EMPTINESS = emptiness
            batches = stream(lengths, by_length, window * memory).batches
            padded = [[lengths[index] for index in batch] for batch in batches]
            elements = sum(len(batch) * max(batch) for batch in padded) / memory
            costs = (f"{elements + share * len(batches):.1f}" for share in COSTS)
            padding = f"{measure_padding(padded):.1%}"
            table.add(f"window {window}, {emptiness}", padding, str(len(batches)), *costs)
    batcher.EMPTINESS = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16, help="segments of a STATIC batch; default: %(default)s")
    parser.add_argument("--multiple", type=int, default=8, help="num_seqs_multiple_of; default: %(default)s")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--emptiness", action="store_true", help="what the batcher's constant EMPTINESS does")
    options = parser.parse_args()
    report = compare_emptiness if options.emptiness else compare
    chance = random.Random(options.seed)
    with Results() as results:
        if SPEECH.is_dir():
            lengths = read_speech_lengths()
            name = f"(a) speech, of {len(lengths)} segments of prefork align"
            report(results, name, chance.choices(lengths, k=SEGMENTS), options.batch_size, options.multiple)
        else:
            results.note("(a) left out: there is no ../shared/data/speech")
        report(results, "(b) log-normal", draw_lengths(chance), options.batch_size, options.multiple)


if __name__ == "__main__":
    main()
