"""What the events of a memory log add up to: how much there was at which time, and how good predictions were."""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

from prefork.memory.memlog import OVER, Event

_ROUND = 0.1  # seconds; processes that are measured one after the other are measured at once
_PATIENCE = 5.0  # seconds without a sample after which a worker has ended,
_MISSED = 3  # if others were sampled so often meanwhile: samples become rare in a long run
_TOP_FILES = 5
_HOST_TASKS = ("split", "join")  # which do not use the model, and take next to nothing


def split_runs(events: Sequence[Event]) -> list[list[Event]]:
    """The events from each start to the next, in the order of their times."""
    runs: list[list[Event]] = [[]]
    for event in events:
        if event.event == "start" and runs[-1]:
            runs.append([])
        runs[-1].append(event)
    return [sorted(run, key=attrgetter("time")) for run in runs]


def is_worker(process: str) -> bool:
    return process.startswith("worker")


def is_server(process: str) -> bool:
    return process.startswith("server")


def follow(events: Sequence[Event]) -> Iterator[tuple[float, Mapping[str, Event]]]:
    """Who uses how much, from each time at which that changes: the last sample of every process that lives then.

    A worker ends with the shrink that names it, or when its samples are missing while others' are there; zygote and
    supervisor end with the run. A worker that takes another's place counts from its first sample. Samples of different
    ages are together: right after a fork, until the others are measured again, the sum of PSS is too large. What is
    yielded changes later: copy what you keep.
    """
    for run in split_runs(events):
        now: dict[str, Event] = {}
        changed: set[str] = set()
        begun = run[0].time
        for when, process, sample in _list_changes(run):
            if process in changed or when - begun > _ROUND:
                yield begun, now
                begun, changed = when, set()
            changed.add(process)
            if sample is None:
                now.pop(process, None)
            else:
                now[process] = sample
        yield begun, now
        yield run[-1].time, {}


def _list_changes(run: Sequence[Event]) -> list[tuple[float, str, Event | None]]:
    """Time, process, and the sample that holds from then on; None if the process has ended."""
    by_process: dict[str, list[Event]] = {}
    for event in run:
        if event.process and (event.pss is not None or event.uss is not None):
            by_process.setdefault(event.process, []).append(event)
    rounds = max(([e.time for e in own if e.event == "sample"] for own in by_process.values()), key=len, default=[])
    changes: list[tuple[float, str, Event | None]] = []
    for process, own in by_process.items():
        for sample, following in itertools.zip_longest(own, own[1:], fillvalue=run[-1]):
            changes.append((sample.time, process, sample))
            missed = bisect_right(rounds, sample.time) + _MISSED - 1
            ended = max(sample.time + _PATIENCE, rounds[missed]) if missed < len(rounds) else math.inf
            if is_worker(process) and ended < following.time:
                changes.append((ended, process, None))
    changes += [(event.time, event.process, None) for event in run if event.event == "shrink" and event.process]
    return sorted(changes, key=itemgetter(0))


def list_throttled(events: Sequence[Event]) -> list[tuple[float, float]]:
    """The spans in which no task was started because memory was short: from a throttle to the one that ends it.

    Or to the next admission, or the run's last event, whatever comes first.
    """
    spans: list[tuple[float, float]] = []
    for run in split_runs(events):
        since: float | None = None
        for event in run:
            over = event.event == "admit" or (event.event == "throttle" and event.reason == OVER)
            if since is not None and (over or event is run[-1]):
                spans.append((since, event.time))
                since = None
            elif since is None and event.event == "throttle" and not over:
                since = event.time
    return spans


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several peaks, in bytes. percentile95: the smallest peak that 95 % of them do not exceed."""

    median: float
    percentile95: int
    largest: int


@dataclass(frozen=True, slots=True)
class TaskPeak:
    """A task's peak: bytes of private memory, and seconds."""

    file: str | None
    audio: float | None
    segment: float | None
    predicted: int | None
    measured: int


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """The tasks on the model with a predicted and a measured peak. within20, above: shares of them; worst: by what was
    measured over what was predicted."""

    engine: str | None
    model: str | None
    dtype: str | None
    tasks: int
    audio: float  # seconds, each file once
    predicted: Spread
    measured: Spread
    within20: float  # predicted to within 20 % of what was measured
    above: float  # more than was predicted
    worst: TaskPeak


@dataclass(frozen=True, slots=True)
class Figures:
    """What a log says. Seconds and bytes; None where no event says it."""

    engine: str | None
    model: str | None
    dtype: str | None
    strategy: str | None
    runs: int
    workers: int | None  # the most there were
    weights: int | None
    limit: int | None  # the lowest
    seconds: float  # of all runs, the time between them left out
    peak_total: int | None  # the largest sum of what all processes used at one time
    lowest_available: int | None
    throttled_seconds: float
    completed: int
    shrinks: int
    fails: int
    engines: Sequence[EngineFigures]
    files: Sequence[TaskPeak]  # those that took most


def sum_up(events: Sequence[Event]) -> Figures:
    """The figures of at least one event."""
    counts = Counter(event.event for event in events)
    runs = split_runs(events)
    totals = [sum(sample.share for sample in now.values()) for _, now in follow(events)]
    return Figures(
        engine=_join(events, "engine"),
        model=_join(events, "model"),
        dtype=_join(events, "dtype"),
        strategy=_join(events, "strategy"),
        runs=len(runs),
        workers=max(_list(events, "workers"), default=None),
        weights=max(_list(events, "weights"), default=None),
        limit=min(_list(events, "limit"), default=None),
        seconds=sum(run[-1].time - run[0].time for run in runs),
        peak_total=max(totals) or None,
        lowest_available=min(_list(events, "available"), default=None),
        throttled_seconds=sum(end - begin for begin, end in list_throttled(events)),
        completed=counts["complete"],
        shrinks=counts["shrink"],
        fails=counts["fail"],
        engines=_compare(events),
        files=_rank_files(events),
    )


def _list(events: Sequence[Event], name: str) -> list[Any]:
    return [value for event in events if (value := getattr(event, name)) is not None]


def _join(events: Sequence[Event], name: str) -> str | None:
    named = (part for value in dict.fromkeys(_list(events, name)) for part in value.split(", "))
    return ", ".join(dict.fromkeys(named)) or None  # a run's events name all engines, a task's its own


def _compare(events: Sequence[Event]) -> list[EngineFigures]:
    groups: dict[tuple[str | None, str | None, str | None], list[Event]] = {}
    for event in events:
        known = event.predicted and event.peak is not None
        if event.event == "complete" and known and event.task not in _HOST_TASKS:
            groups.setdefault((event.engine, event.model, event.dtype), []).append(event)
    return [_compare_group(*key, group) for key, group in groups.items()]


def _compare_group(engine: str | None, model: str | None, dtype: str | None, events: list[Event]) -> EngineFigures:
    pairs = [(event.predicted or 0, event.peak or 0) for event in events]
    audio = {event.file: event.audio or 0.0 for event in events if event.file is not None}
    return EngineFigures(
        engine=engine,
        model=model,
        dtype=dtype,
        tasks=len(events),
        audio=sum(audio.values()),
        predicted=_spread([predicted for predicted, _ in pairs]),
        measured=_spread([measured for _, measured in pairs]),
        within20=sum(5 * abs(measured - predicted) <= measured for predicted, measured in pairs) / len(pairs),
        above=sum(measured > predicted for predicted, measured in pairs) / len(pairs),
        worst=_describe_peak(max(events, key=lambda event: (event.peak or 0) / (event.predicted or 1))),
    )


def _spread(values: Sequence[int]) -> Spread:
    ranked = sorted(values)
    return Spread(statistics.median(ranked), ranked[math.ceil(0.95 * len(ranked)) - 1], ranked[-1])


def _describe_peak(event: Event) -> TaskPeak:
    return TaskPeak(event.file, event.audio, event.segment, event.predicted, event.peak or 0)


def _rank_files(events: Sequence[Event]) -> list[TaskPeak]:
    """For each file its largest task, whether it was completed or not; the largest files."""
    known = [event for event in events if event.file is not None and event.peak is not None]
    largest: dict[str | None, Event] = {}
    for event in sorted(known, key=lambda event: event.peak or 0, reverse=True):
        largest.setdefault(event.file, event)
    return [_describe_peak(event) for event in list(largest.values())[:_TOP_FILES]]
