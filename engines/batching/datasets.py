"""Batches of a data set whose lengths are all known, and what their padding wastes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prefork.engines.batching.buckets import list_buckets
from prefork.engines.batching.settings import Batching, find_max_num_elements


def batch_by_length(lengths: Iterable[int], batching: Batching) -> Iterator[list[int]]:
    """Batches of a data set: indices into `lengths`, elements each.

    What is shorter than min_audio_len or longer than max_audio_len is left out, and with drop_remainder what fills no
    batch at the end. LENGTH: a batch as soon as a bucket is full; at the end what is left, from the longest on, each
    bucket filled up with shorter ones. STATIC: in order. Source: fairseq2's `bucket_by_length` and `bucket`.

    >>> list(batch_by_length([4, 2, 4, 9, 1], Batching(max_num_elements=8, max_audio_len=4)))
    [[0, 2], [1, 4]]
    """
    if batching.batch_size is not None:
        buckets: Sequence[tuple[int, int]] = [(batching.batch_size, batching.longest)]
    else:
        buckets = list_buckets(batching, find_max_num_elements(batching))
    limits = [longest for _, longest in buckets]
    waiting: list[list[int]] = [[] for _ in buckets]
    for index, length in enumerate(lengths):
        if not batching.min_audio_len <= length <= batching.longest:
            continue
        bucket = bisect_left(limits, length)
        waiting[bucket].append(index)
        if len(waiting[bucket]) == buckets[bucket][0]:
            yield waiting[bucket]
            waiting[bucket] = []
    for bucket in reversed(range(len(buckets))):
        batch, size = waiting[bucket], buckets[bucket][0]
        for shorter in reversed(waiting[:bucket]):
            while batch and shorter and len(batch) < size:
                batch.append(shorter.pop())
        if batch and (len(batch) == size or not batching.drop_remainder):
            yield batch


def measure_padding(batches: Sequence[Sequence[int]]) -> float:
    """Padded elements / all elements of batches of segments of these lengths, 0 to 1.

    >>> measure_padding([[3, 1], [2]])
    0.25
    """
    padded = sum(len(lengths) * max(lengths, default=0) for lengths in batches)
    return 1 - sum(map(sum, batches)) / padded if padded else 0.0
