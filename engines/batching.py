"""Which segments go through the model together: fairseq2's and omnilingual-asr's batching, for streams and data sets.

A batch of segments of unequal length is padded to its longest, so it takes as much memory and work as its count times
its longest. STATIC batches have a fixed count, and memory must suffice for that many of the longest. LENGTH batches
have a fixed number of padded elements, and so hold many short segments or few long ones. An element is a sample at
16 kHz, for every model.

Sources: fairseq2's `create_bucket_sizes` and `DataPipelineBuilder.bucket_by_length`, whose semantics are in
`bucket_by_length_data_source.cc`; omnilingual-asr's `datasets/utils/batching.py` and `AsrTaskConfig`
(`datasets/tasks/asr_task.py`). Names are theirs.

Pure: no torch, no clock. What comes out depends only on the calls.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from typing import Generic, TypeVar

from prefork.engines.base import ELEMENTS_PER_SECOND

ELEMENTS_PER_GIGABYTE = 40_000  # rule of thumb; omnilingual-asr's default of 3,200,000 is that of 80 GB
GIGABYTE = 2**30  # as cards are sold: one of 80 GB has about 80 x 2**30 bytes
ENDLESS = 1 << 62  # elements; no segment is as long
# How bad it is to leave a batch empty, compared to padding it. Of 0.1, 0.25, 0.5 and 1 the best for windows of 1 to 8
# batches, or within 15% of it, where a batch costs 10% to 25% of a full one whatever it holds. Measured by
# tests/benchmarks/batching.py --emptiness.
EMPTINESS = 0.5

K = TypeVar("K", bound=Hashable)


class BatchingStrategy(StrEnum):
    """omnilingual-asr's. STATIC: each batch has the same number of segments. LENGTH: at most so many elements."""

    STATIC = "static"
    LENGTH = "length"


def create_bucket_sizes(
    *, max_num_elements: int, max_seq_len: int, min_seq_len: int = 1, num_seqs_multiple_of: int = 1
) -> Sequence[tuple[int, int]]:
    """(batch size, longest sequence) of each bucket, from short to long, none with more than max_num_elements once
    padded. There is one bucket for every batch size that max_num_elements allows.

    min_seq_len: no buckets for what is shorter. num_seqs_multiple_of: batch sizes above it are lowered to a multiple.
    Raises ValueError. Source: fairseq2's function of this name.

    >>> create_bucket_sizes(max_num_elements=12, max_seq_len=6)
    [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6)]
    """
    if max_seq_len > max_num_elements:
        raise ValueError(
            _say("max_seq_len", f"less than or equal to `max_num_elements` ({max_num_elements})", max_seq_len)
        )
    _check_least("min_seq_len", min_seq_len)
    if min_seq_len > max_seq_len:
        raise ValueError(_say("min_seq_len", f"less than or equal to `max_seq_len` ({max_seq_len})", min_seq_len))
    _check_least("num_seqs_multiple_of", num_seqs_multiple_of)
    if max_num_elements % max_seq_len:
        raise ValueError(_say("max_num_elements", f"a multiple of `max_seq_len` ({max_seq_len})", max_num_elements))
    buckets: list[tuple[int, int]] = []
    seq_len = 0
    while seq_len < max_seq_len:
        batch_size = max_num_elements // (seq_len + 1)
        seq_len = max_num_elements // batch_size  # the longest of which that many fit
        if seq_len >= min_seq_len:
            buckets.append((_crop(batch_size, num_seqs_multiple_of), seq_len))
    return buckets


def _crop(count: int, multiple: int) -> int:
    return count - count % multiple if count > multiple else count


def _check_least(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(_say(name, "greater than or equal to 1", value))


def _say(name: str, rule: str, value: int) -> str:
    return f"`{name}` must be {rule}, but is {value} instead"


@dataclass(frozen=True, slots=True)
class Batching:
    """How segments are batched, as a user says it; names and defaults are omnilingual-asr's `AsrTaskConfig`'s.

    batch_size: segments of a batch; if given, the strategy is STATIC.
    max_num_elements: of a batch once padded; None: from memory, by `resolve`.
    num_seqs_multiple_of: batch sizes above it are multiples of it, which suits the hardware.
    max_bucket_size: at most so many segments in a LENGTH batch. As in omnilingual-asr, buckets of more are left out,
    and what would be in them goes with longer ones.
    min_audio_len, max_audio_len: elements. Data sets leave out what is shorter or longer, as fairseq2 does. In jobs
    nothing is left out: a shorter segment is batched, a longer one refused. max_audio_len None, which is not
    omnilingual-asr's (50 s), refuses none: what is longer than max_num_elements goes alone.
    drop_remainder: the last batches are left out if they are not full; for data sets only.
    memory_bytes: of what max_num_elements was made; set by `resolve`.

    Raises ValueError for values that contradict each other.
    """

    batch_size: int | None = None
    max_num_elements: int | None = None
    num_seqs_multiple_of: int = 8
    max_bucket_size: int | None = None
    min_audio_len: int = 1
    max_audio_len: int | None = None
    drop_remainder: bool = False
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        names = ("batch_size", "max_num_elements", "num_seqs_multiple_of", "max_bucket_size", "min_audio_len")
        for name in names:
            _check_least(name, getattr(self, name))
        if self.min_audio_len > self.longest:
            rule = f"less than or equal to `max_audio_len` ({self.max_audio_len})"
            raise ValueError(_say("min_audio_len", rule, self.min_audio_len))
        if self.max_num_elements is None or self.memory_bytes is not None:
            return
        if self.batch_size is not None:
            raise ValueError(
                f"`batch_size` ({self.batch_size}) and `max_num_elements` ({self.max_num_elements}) exclude one "
                "another: give `batch_size` for batches of as many segments, or `max_num_elements` for as many samples"
            )
        if self.max_audio_len is not None and self.max_audio_len > self.max_num_elements:
            rule = f"less than or equal to `max_num_elements` ({self.max_num_elements})"
            remedy = "lower `max_audio_len` to the longest segment that there is, or raise `max_num_elements`"
            raise ValueError(f"{_say('max_audio_len', rule, self.max_audio_len)}: {remedy}")

    @property
    def strategy(self) -> BatchingStrategy:
        return BatchingStrategy.LENGTH if self.batch_size is None else BatchingStrategy.STATIC

    @property
    def longest(self) -> int:
        """Elements that a segment may have."""
        return ENDLESS if self.max_audio_len is None else self.max_audio_len

    def resolve(self, memory_bytes: int) -> tuple[Batching, list[str]]:
        """With max_num_elements chosen for so much free memory, and rounded down to a multiple of max_audio_len; and
        warnings for people.

        A max_num_elements from little memory may be less than max_audio_len: then longer segments go alone, for they
        are the user's data, and a default is no reason to refuse them. What was resolved stays as it is, and without a
        max_audio_len nothing is rounded.

        >>> Batching(max_audio_len=800_000).resolve(80 * 2**30)[0].max_num_elements
        3200000
        """
        if self.strategy is BatchingStrategy.STATIC or self.memory_bytes is not None:
            return self, []
        if self.max_num_elements is not None:
            rounded, warnings = self._round(self.max_num_elements)
            return replace(self, max_num_elements=rounded), warnings
        if memory_bytes < 1:
            raise ValueError(_say("memory_bytes", "greater than or equal to 1", memory_bytes))
        most = max(1, memory_bytes * ELEMENTS_PER_GIGABYTE // GIGABYTE)
        if self.max_audio_len is None or most >= self.max_audio_len:
            most, warnings = self._round(most)
        else:
            warnings = [
                f"`max_num_elements` is {most} ({_seconds(most)}) for {memory_bytes / GIGABYTE:.1f} GB of memory, less "
                f"than `max_audio_len` ({self.max_audio_len}): a segment that is longer is a batch of its own"
            ]
        return replace(self, max_num_elements=most, memory_bytes=memory_bytes), warnings

    def _round(self, most: int) -> tuple[int, list[str]]:
        rounded = most - most % (self.max_audio_len or 1)
        if rounded == most:
            return most, []
        return rounded, [
            f"`max_num_elements` is rounded to {rounded}, a multiple of `max_audio_len` ({self.max_audio_len}), "
            f"from {most}"
        ]

    def check_for_jobs(self) -> None:
        """Raises ValueError if segments would be lost."""
        if self.drop_remainder:
            raise ValueError(
                "`drop_remainder` is for data sets: it leaves out the segments of the last batches, and each of these "
                "belongs to a file that would never be written; leave it away"
            )


def _seconds(num_elements: int) -> str:
    return f"{num_elements / ELEMENTS_PER_SECOND:.1f} s"


def _list_buckets(batching: Batching, max_num_elements: int) -> Sequence[tuple[int, int]]:
    """Buckets for lengths up to max_audio_len. What is longer than max_num_elements goes alone."""
    longest = min(batching.longest, max_num_elements)
    buckets = list(
        create_bucket_sizes(
            max_num_elements=max_num_elements - max_num_elements % longest,
            max_seq_len=longest,
            min_seq_len=min(batching.min_audio_len, longest),
            num_seqs_multiple_of=batching.num_seqs_multiple_of,
        )
    )
    if longest < batching.longest:
        buckets.append((1, batching.longest))
    most = batching.max_bucket_size
    if most is None:
        return buckets
    # omnilingual-asr leaves fairseq2 without a bucket where all are too large; the longest segments need one.
    return [bucket for bucket in buckets if bucket[0] <= most] or [(most, batching.longest)]


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
        _check_least("window", window)
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
                f"a segment of {_seconds(num_elements)} ({num_elements} samples) is longer than `max_audio_len` "
                f"({most}, {_seconds(most)}): split it, or raise `max_audio_len`"
            )
        if num_elements < 0:
            raise ValueError(_say("num_elements", "greater than or equal to 0", num_elements))
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

    def _set_buckets(self) -> None:
        self._max_num_elements = max(1, int(_need_max_num_elements(self._batching) * self._factor))
        if self._batching.batch_size is None:
            self._buckets = _list_buckets(self._batching, self._max_num_elements)
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
                count = _crop(count, self._batching.num_seqs_multiple_of)
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


def _need_max_num_elements(batching: Batching) -> int:
    if batching.batch_size is not None:
        return batching.batch_size * batching.longest
    if batching.max_num_elements is None:
        raise ValueError("`max_num_elements` must be a number, but is None: `resolve` the batching for a memory first")
    return batching.max_num_elements


def batch_by_length(lengths: Sequence[int], batching: Batching) -> Iterator[list[int]]:
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
        buckets = _list_buckets(batching, _need_max_num_elements(batching))
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
