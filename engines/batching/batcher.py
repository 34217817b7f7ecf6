"""Batches of a stream of segments, such as those of a run's jobs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from prefork.engines.batching.buckets import crop, list_buckets
from prefork.engines.batching.settings import Batching, check_least, explain_value, find_max_num_elements, show_length

# How bad it is to leave a batch empty, compared to padding it. Of 0.1, 0.25, 0.5 and 1 the best for windows of 1 to 8
# batches, or within 15% of it, where a batch costs 10% to 25% of a full one whatever it holds. Measured by
# tests/benchmarks/batching.py --emptiness.
EMPTINESS = 0.5

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[K]):
    key: K
    num_elements: int
    served: int  # elements that had left the batcher when this one came


class Batcher(Generic[K]):
    """Batches of a stream: segments come in any order and go in batches that waste little.

    About `window` elements wait at most: once `is_full`, take batches before you add more. No segment is lost, none
    goes twice, and none waits for ever: once `window` elements have left since the oldest came, the
    next batch has it.

    >>> batcher = Batcher[str](Batching(max_num_elements=8, max_audio_len=4), window=100)
    >>> for key, num_elements in ("a", 4), ("b", 2), ("c", 3): batcher.add(key, num_elements)
    >>> batcher.pop(), batcher.pop(flush=True), batcher.pop()
    (['a', 'c'], ['b'], [])
    """

    def __init__(self, batching: Batching, window: int) -> None:
        """window: elements. Raises ValueError if `batching` has no max_num_elements yet, or would lose segments."""
        batching.check_for_jobs()
        check_least("window", window)
        self._batching = batching
        self._window = window
        self._factor = 1.0
        self._count = 0  # of segments that ever came: numbers them
        self._served = 0  # elements
        self._num_elements = 0
        self._numbers: dict[K, int] = {}
        self._waiting: dict[int, _Waiting[K]] = {}  # by number, so from the oldest on
        self._by_length: list[tuple[int, int]] = []  # (elements, number), sorted
        self._in_bucket: dict[int, dict[int, None]] = {}  # bucket -> numbers, from the oldest on
        self._set_buckets()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_elements(self) -> int:
        """Of the segments that wait."""
        return self._num_elements

    @property
    def is_full(self) -> bool:
        return self._num_elements >= self._window

    @property
    def oldest(self) -> K | None:
        """Of the segments that wait, the one that came first; None if none waits."""
        return next((waiting.key for waiting in self._waiting.values()), None)

    def add(self, key: K, num_elements: int) -> None:
        """Raises ValueError for a segment that is longer than max_audio_len, or whose key waits already."""
        if num_elements > (most := self._batching.longest):
            raise ValueError(
                f"a segment of {show_length(num_elements)} ({num_elements} samples) is longer than `max_audio_len` "
                f"({most}, {show_length(most)}): split it, or raise `max_audio_len`"
            )
        if num_elements < 0:
            raise ValueError(explain_value("num_elements", "greater than or equal to 0", num_elements))
        if key in self._numbers:
            raise ValueError(f"{key!r} waits already")
        number = self._count
        self._count += 1
        self._numbers[key] = number
        self._waiting[number] = _Waiting(key, num_elements, self._served)
        self._num_elements += num_elements
        insort(self._by_length, (num_elements, number))
        self._in_bucket.setdefault(self._find_bucket(num_elements), {})[number] = None

    def discard(self, key: K) -> None:
        """Forgets a segment; nothing if it does not wait."""
        number = self._numbers.get(key)
        if number is not None:
            self._remove(number)

    def pop(self, flush: bool = False) -> list[K]:
        """The keys of a full batch, in the order in which they came; none if there is none.

        Among full buckets the one with the oldest segment goes first; without one, neighbouring buckets may fill a
        batch together. flush: also a batch that is not full; always one with the oldest segment, none if nothing waits.
        A window that is full counts as flushed where no batch is full, for nothing more can come.
        """
        if not self._waiting:
            return []
        oldest = next(iter(self._waiting.values()))
        is_due = flush or self._served - oldest.served >= self._window
        numbers = self._find_full_bucket(with_oldest=is_due)
        if not numbers:
            chosen, is_full = self._choose()
            numbers = chosen if is_due or is_full or self.is_full else []
        return self._take(numbers)

    def limit(self, factor: float) -> None:
        """From now on a batch holds at most this share of what `batching` allows, but always one segment.

        For what is left after an out-of-memory error: 0.5 after the first, 0.25 after the second. A limit is never
        raised again, and the same one again changes nothing. Raises ValueError.
        """
        if not 0 < factor <= 1:
            raise ValueError(f"`factor` must be greater than 0 and at most 1, but is {factor} instead")
        if factor >= self._factor:
            return
        self._factor = factor
        self._set_buckets()

    def resize(self, batching: Batching, window: int) -> None:
        """From now on batches are made so, and so much may wait. What waits stays, and the limit holds."""
        check_least("window", window)
        self._batching, self._window = batching, window
        self._set_buckets()

    def _set_buckets(self) -> None:
        self._max_num_elements = max(1, int(find_max_num_elements(self._batching) * self._factor))
        if self._batching.batch_size is None:
            self._buckets = list_buckets(self._batching, self._max_num_elements)
        else:
            batch_size = max(1, int(self._batching.batch_size * self._factor))
            self._buckets = [(batch_size, self._batching.longest)]
        self._longest = [longest for _, longest in self._buckets]
        self._in_bucket = {}
        for number, waiting in self._waiting.items():
            self._in_bucket.setdefault(self._find_bucket(waiting.num_elements), {})[number] = None

    def _find_bucket(self, num_elements: int) -> int:
        return bisect_left(self._longest, num_elements)

    def _find_full_bucket(self, with_oldest: bool = False) -> list[int]:
        """The oldest numbers of the full bucket whose first is the oldest; or only of the bucket with the oldest."""
        full = [
            list(numbers)[: self._buckets[bucket][0]]
            for bucket, numbers in self._in_bucket.items()
            if len(numbers) >= self._buckets[bucket][0]
        ]
        best = min(full, default=[])
        return [] if with_oldest and next(iter(self._waiting)) not in best else best

    def _choose(self) -> tuple[list[int], bool]:
        """The numbers of the batch with the oldest segment that costs least beyond what it must; whether it is full.

        Neighbours by length go together. A batch wastes its padding, and EMPTINESS times what it leaves empty of
        max_num_elements. So it is filled up as long as that pads little: what its longest exceeds by more than
        EMPTINESS is better off in a batch with its like.
        """
        oldest = next(iter(self._waiting))
        if self._batching.batch_size is not None:
            return list(self._waiting)[: self._buckets[0][0]], False
        length = self._waiting[oldest].num_elements
        position = bisect_left(self._by_length, (length, oldest))
        begin = bisect_left(self._by_length, (int(length / (1 + EMPTINESS)), -1))
        near = self._by_length[begin : position + self._buckets[self._find_bucket(length)][0]]
        position -= begin
        sums = list(accumulate((length for length, _ in near), initial=0))
        least, chosen, is_full = float("inf"), near[position : position + 1], False
        for last in range(position, len(near)):
            longest = near[last][0]
            most = self._buckets[self._find_bucket(longest)][0]
            first = bisect_left(near, (int(longest / (1 + EMPTINESS)), -1), hi=position)
            count = min(most, last - first + 1)
            if count < len(self._waiting):  # the others can go with what comes
                count = crop(count, self._batching.num_seqs_multiple_of)
            first = last - count + 1
            if first > position:
                continue
            held = sums[last + 1] - sums[first]
            waste = count * longest - held + EMPTINESS * (self._max_num_elements - held)
            if waste < least:
                least, chosen, is_full = waste, near[first : last + 1], count == most
        return [number for _, number in chosen], is_full

    def _take(self, numbers: Sequence[int]) -> list[K]:
        keys = [self._waiting[number].key for number in sorted(numbers)]
        for number in numbers:
            self._served += self._waiting[number].num_elements
            self._remove(number)
        return keys

    def _remove(self, number: int) -> None:
        waiting = self._waiting.pop(number)
        del self._numbers[waiting.key]
        self._num_elements -= waiting.num_elements
        del self._by_length[bisect_left(self._by_length, (waiting.num_elements, number))]
        bucket = self._find_bucket(waiting.num_elements)
        del self._in_bucket[bucket][number]
        if not self._in_bucket[bucket]:
            del self._in_bucket[bucket]
