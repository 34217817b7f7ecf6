"""Shards: the parts into which several runs divide one corpus, without a word to each other.

Each run finds all files and divides them in the same way: the longest first, each to the shard that has least so far
(longest processing time first; Graham 1969). The largest shard then has at most one file more than the smallest.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefork.engines.base import Job
from prefork.run.corpus import Corpus

MOST = 100_000  # shards: more than any scheduler's array has


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of a corpus: number 1 to count."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number} of {self.count}"

    @property
    def suffix(self) -> str:
        """Of the files that it has in OUT/.prefork. One of one is what a run without shards is."""
        return f"-{self.number}-of-{self.count}" if self.count > 1 else ""


@dataclass(frozen=True, slots=True)
class _Array:
    """What tells the tasks of an array apart. index: the variable with the task's number. first, last, count: variables
    or figures that say which numbers there are; empty where the system does not say it."""

    name: str
    index: str
    first: str = "0"
    count: str = ""


_ARRAYS = (
    _Array("Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    _Array("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "0", "AWS_BATCH_JOB_ARRAY_SIZE"),
    _Array("Kubernetes", "JOB_COMPLETION_INDEX"),
    _Array("GNU parallel", "PARALLEL_SEQ", "1"),
)


def find_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """What --shard says: I/N, auto, or auto/N where the system tells each task its number and not how many there are.
    Raises ValueError.

    >>> find_shard("2/8", {}), find_shard("auto/4", {"JOB_COMPLETION_INDEX": "0"})
    (Shard(number=2, count=8), Shard(number=1, count=4))
    """
    found = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text, re.ASCII)
    if found is None or (found[1] != "auto" and found[2] is None):
        raise ValueError(f"takes I/N (from 1/N to N/N), auto or auto/N, not {text!r}")
    if found[1] == "auto":
        return _find_in_array(int(found[2]) if found[2] else None, environment)
    return _check(Shard(int(found[1]), int(found[2])), text)


def _find_in_array(count: int | None, environment: Mapping[str, str]) -> Shard:
    arrays = [array for array in _ARRAYS if environment.get(array.index)]
    if not arrays:
        known = ", ".join(f"{array.index} ({array.name})" for array in _ARRAYS)
        raise ValueError(f"auto finds no array here: none of {known} is set; give I/N")
    if len(arrays) > 1:
        names = " and ".join(f"{array.index} ({array.name})" for array in arrays)
        raise ValueError(f"auto finds two arrays here: {names} are set; give I/N")
    (array,) = arrays
    said = _read(array.count, environment)
    if count is not None and said is not None and count != said:
        raise ValueError(f"auto/{count}: {array.count} is {said}; give auto, or I/N")
    count = said if count is None else count
    if count is None:
        raise ValueError(f"auto cannot tell how many tasks there are: {array.name} does not say it; give auto/N")
    index, first = _read(array.index, environment), _read(array.first, environment)
    if index is None or first is None:
        raise ValueError(f"auto: {array.first} is not set beside {array.index}; give I/N")
    if first not in (0, 1) or not first <= index < first + count:
        raise ValueError(
            f"auto: {array.index}={index} is not one of {count} numbers from {first} on; number the tasks of the array "
            "0-9 or 1-10, without gaps, or give I/N"
        )
    return _check(Shard(index - first + 1, count), f"auto ({array.index}={index})")


def _read(name: str, environment: Mapping[str, str]) -> int | None:
    """The value of a variable, or a figure itself. Raises ValueError."""
    value = name if name.isdigit() else environment.get(name, "") if name else ""
    if value and not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise ValueError(f"auto: {name} is {value!r}, which is no number; give I/N")
    return int(value) if value else None


def _check(shard: Shard, text: str) -> Shard:
    if not 1 <= shard.number <= shard.count <= MOST:
        raise ValueError(f"takes I/N with I from 1 to N, and N up to {MOST:,}, not {text}")
    return shard


def divide(lengths: Sequence[float], count: int) -> list[int]:
    """The shard of each length, 0 to count - 1. lengths: the longest first. Those that are as long as nothing are
    divided by number.

    >>> divide([5.0, 4.0, 3.0, 3.0, 3.0], 2)
    [0, 1, 1, 0, 1]
    """
    shards = [(0.0, 0, number) for number in range(count)]
    chosen = []
    for length in lengths:
        total, files, number = shards[0]
        heapq.heapreplace(shards, (total + length, files + 1, number))
        chosen.append(number)
    return chosen


def choose(corpus: Corpus, shard: Shard, measure: Callable[[Job], float]) -> Corpus:
    """What of a corpus belongs to a shard. measure: how long a job takes, in any unit. What cannot be used is reported
    by one shard, what was not used by the first."""
    jobs = sorted(corpus.jobs, key=lambda job: (-measure(job), job.id))
    places = divide([measure(job) for job in jobs], shard.count)
    own = shard.number - 1
    return replace(
        corpus,
        jobs=tuple(job for job, place in zip(jobs, places, strict=True) if place == own),
        problems=corpus.problems[own :: shard.count],
        notices=corpus.notices if own == 0 else (),
    )
