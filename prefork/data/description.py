"""What a data set is: its rows, hours, languages and lengths, what batches become of it, and what that takes here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefork.data.fragments import Fragment
from prefork.data.memory import MemoryPlan, plan_memory
from prefork.data.pipeline import DataPipeline
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.base import ELEMENTS_PER_SECOND
from prefork.engines.batching import BatchingStrategy, measure_padding
from prefork.engines.batching.buckets import list_buckets
from prefork.engines.batching.settings import find_max_num_elements

_TRIAL_SECONDS = 3.0  # for which batches are decoded, to see how long all of them take
BINS = 12  # of the histogram


@dataclass(frozen=True, slots=True)
class Bucket:
    """batch_size: its most; longest: samples; rows: of the data set that fall into it."""

    batch_size: int
    longest: int
    rows: int


@dataclass(frozen=True, slots=True)
class Strategy:
    """batches: of an epoch. padding: padded elements / all elements."""

    batches: int
    padding: float


@dataclass(frozen=True, slots=True)
class Description:
    """rows: all there are; passing: those that pass the filters, to which all that follows refers. lengths: samples,
    sorted. hours, languages: hours by language, empty where no folder is called after it. problems: by file. speed:
    seconds of audio that are decoded in a second; 0 if that was not tried."""

    files: int
    rows: int
    passing: int
    lengths: tuple[int, ...]
    languages: dict[str, float]
    buckets: tuple[Bucket, ...]
    length: Strategy
    static: Strategy
    memory: MemoryPlan
    problems: dict[str, str]
    speed: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.lengths) / SAMPLE_RATE


def describe(pipeline: DataPipeline, *, trial: bool = True) -> Description:
    """trial: some batches are decoded. Raises InputError."""
    data_set, options = pipeline.data_set, pipeline.options
    chosen = [(fragment, pipeline.choose(fragment).lengths) for fragment in data_set.fragments]
    lengths = sorted(length for _, own in chosen for length in own)
    memory = plan_memory(pipeline)
    static = DataPipeline(pipeline.source, options, batching_strategy=BatchingStrategy.STATIC)
    by_length = DataPipeline(pipeline.source, options, batching_strategy=BatchingStrategy.LENGTH)
    for other in (static, by_length):
        other.take_choices(pipeline)
    return Description(
        len({fragment.file.name for fragment in data_set.fragments}),
        sum(fragment.rows for fragment in data_set.fragments),
        len(lengths),
        tuple(lengths),
        _sum_languages(chosen),
        tuple(_list_buckets(by_length, lengths)),
        _measure_strategy(by_length),
        _measure_strategy(static),
        memory,
        data_set.problems,
        _try_speed(pipeline) if trial else 0.0,
    )


def _sum_languages(chosen: Sequence[tuple[Fragment, Sequence[int]]]) -> dict[str, float]:
    hours: Counter[str] = Counter()
    for fragment, lengths in chosen:
        if language := fragment.partition[1]:
            hours[language] += sum(lengths) / SAMPLE_RATE / 3600  # type: ignore[assignment]
    return dict(hours.most_common())


def _list_buckets(pipeline: DataPipeline, lengths: Sequence[int]) -> list[Bucket]:
    """Those that have rows, from short to long."""
    batching = pipeline.options.make_batching()
    found, start = [], 0
    for batch_size, longest in list_buckets(batching, find_max_num_elements(batching)):
        end = start
        while end < len(lengths) and lengths[end] <= longest:
            end += 1
        if end > start:
            found.append(Bucket(batch_size, longest, end - start))
        start = end
    return found


def _measure_strategy(pipeline: DataPipeline) -> Strategy:
    batches = list(pipeline.list_batches())
    return Strategy(len(batches), measure_padding(batches))


def _try_speed(pipeline: DataPipeline) -> float:
    """Seconds of audio per second, after the first batch."""
    state = pipeline.state_dict()
    samples, started = 0, 0.0
    for batch in pipeline:
        now = time.monotonic()
        if not started:
            started = now
            continue
        samples += int(batch.seq_lens.sum())
        if now - started > _TRIAL_SECONDS:
            break
    pipeline.load_state_dict(state)
    return samples / ELEMENTS_PER_SECOND / (time.monotonic() - started) if samples else 0.0


def count_lengths(lengths: Sequence[int], bins: int = BINS) -> list[tuple[float, float, int]]:
    """A histogram of lengths in samples: from and to, in seconds, and how many.

    >>> count_lengths([16_000, 32_000, 48_000], bins=2)
    [(0.0, 1.5, 1), (1.5, 3.0, 2)]
    """
    top = max(lengths, default=0) / SAMPLE_RATE
    width = top / bins
    counts = [0] * bins
    for length in lengths:
        counts[min(bins - 1, int(length / SAMPLE_RATE / width))] += 1
    return [(number * width, (number + 1) * width, count) for number, count in enumerate(counts)]
