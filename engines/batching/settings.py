"""How segments are batched, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from prefork.engines.base import ELEMENTS_PER_SECOND

ELEMENTS_PER_GIGABYTE = 40_000  # rule of thumb; omnilingual-asr's default of 3,200,000 is that of 80 GB
GIGABYTE = 2**30  # as cards are sold: one of 80 GB has about 80 x 2**30 bytes
TRAINING = GIGABYTE / ELEMENTS_PER_GIGABYTE  # bytes for each element
ENDLESS = 1 << 62  # elements; no segment is as long


class BatchingStrategy(StrEnum):
    """omnilingual-asr's. STATIC: each batch has the same number of segments. LENGTH: at most so many elements."""

    STATIC = "static"
    LENGTH = "length"


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
            check_least(name, getattr(self, name))
        if self.min_audio_len > self.longest:
            rule = f"less than or equal to `max_audio_len` ({self.max_audio_len})"
            raise ValueError(explain_value("min_audio_len", rule, self.min_audio_len))
        if self.max_num_elements is None or self.memory_bytes is not None:
            return
        if self.batch_size is not None:
            raise ValueError(
                f"`batch_size` ({self.batch_size}) and `max_num_elements` ({self.max_num_elements}) cannot be "
                "combined: give `batch_size` to fix the segments of a batch, or `max_num_elements` to limit its samples"
            )
        if self.max_audio_len is not None and self.max_audio_len > self.max_num_elements:
            rule = f"less than or equal to `max_num_elements` ({self.max_num_elements})"
            remedy = "lower `max_audio_len` to the longest segment that there is, or raise `max_num_elements`"
            raise ValueError(f"{explain_value('max_audio_len', rule, self.max_audio_len)}: {remedy}")

    @property
    def strategy(self) -> BatchingStrategy:
        return BatchingStrategy.LENGTH if self.batch_size is None else BatchingStrategy.STATIC

    @property
    def longest(self) -> int:
        """Elements that a segment may have."""
        return ENDLESS if self.max_audio_len is None else self.max_audio_len

    def resolve(self, memory_bytes: int, bytes_per_element: float = TRAINING) -> tuple[Batching, list[str]]:
        """With max_num_elements chosen for so much free memory, and rounded down to a multiple of max_audio_len; and
        warnings for people. bytes_per_element: by default as omnilingual-asr has it, for training.

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
            raise ValueError(explain_value("memory_bytes", "greater than or equal to 1", memory_bytes))
        most = max(1, int(memory_bytes / bytes_per_element))
        if self.max_audio_len is None or most >= self.max_audio_len:
            most, warnings = self._round(most)
        else:
            warnings = [
                f"`max_num_elements` is {most} ({show_length(most)}) for {memory_bytes / GIGABYTE:.1f} GB of memory, "
                f"less than `max_audio_len` ({self.max_audio_len}): longer segments go in batches of their own"
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
                "`drop_remainder` is for data sets only: it drops the segments of the last batches, and the files that "
                "they belong to would never be written; leave it out"
            )


def find_max_num_elements(batching: Batching) -> int:
    if batching.batch_size is not None:
        return batching.batch_size * batching.longest
    if batching.max_num_elements is None:
        raise ValueError("`max_num_elements` is None: call `resolve` with a size of memory first")
    return batching.max_num_elements


def check_least(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(explain_value(name, "greater than or equal to 1", value))


def explain_value(name: str, rule: str, value: int) -> str:
    return f"`{name}` must be {rule}, but is {value} instead"


def show_length(num_elements: int) -> str:
    return f"{num_elements / ELEMENTS_PER_SECOND:.1f} s"
