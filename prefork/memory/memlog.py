"""The memory log of a run: one JSON line for each event, and what the lines say when they are read again."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import os
import statistics
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from errno import ENOSPC
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal, get_args

from prefork.engines.base import InputError

FOLDER = "performance_logs"  # below the output folder
SUFFIX = ".memory.jsonl"
Value = str | float | None
OVER = "over"  # the reason of a throttle that says that one has ended
EventName = Literal["start", "admit", "complete", "fail", "sample", "throttle", "shrink", "grow", "end"]

_logger = logging.getLogger(__name__)
_LONGEST_LINE = 1 << 16  # bytes; what is longer is no event, and may be a recording that was given by mistake
_ROUND = 0.1  # seconds; processes that are measured one after the other are measured at once
_PATIENCE = 5.0  # seconds without a sample after which a worker has ended,
_MISSED = 3  # if others were sampled so often meanwhile: samples become rare in a long run
_TOP_FILES = 5
_HOST_TASKS = ("split", "join")  # which do not use the model, and take next to nothing
_REMEDY = f"give a file *{SUFFIX}, or the OUT of a run that wrote one"


@dataclass(frozen=True, slots=True)
class Event:
    """One line. Times in seconds, memory in bytes; what is None is not in the line."""

    time: float  # since 1970
    event: str  # an EventName
    process: str | None = None  # "worker 0", "zygote", "supervisor", "server" or "server 0"
    file: str | None = None  # the job's id
    task: str | None = None  # split, run, join, call
    audio: float | None = None  # of the job's recording
    segment: float | None = None  # the longest of the task
    engine: str | None = None
    model: str | None = None
    dtype: str | None = None
    strategy: str | None = None
    predicted: int | None = None  # private memory at the peak
    peak: int | None = None  # what was measured
    pss: int | None = None
    uss: int | None = None
    available: int | None = None  # of the machine, the tightest of all limits
    limit: int | None = None
    weights: int | None = None  # of the shared copy
    workers: int | None = None  # in the pool
    pressure: float | None = None  # PSI, some avg10, percent
    reason: str | None = None  # of throttle, shrink, fail

    @property
    def share(self) -> int:
        """PSS; where the system has none, USS."""
        return self.pss if self.pss is not None else self.uss or 0


_TYPES = {field.name: {"str": str, "int": int, "float": float}[str(field.type).split()[0]] for field in fields(Event)}


class MemoryLog:
    """Appends events to a file. A disk that does not take them costs the log, never the run: `notice` is told once.

    common: the fields that every event has, such as engine, model, dtype and strategy.
    """

    def __init__(self, path: Path, *, notice: Callable[[str], object] = _logger.warning, **common: Value) -> None:
        self.path = path
        self._notice = notice
        self._common = common
        self._file: io.FileIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  open as long as the run
            if self._file.tell():
                self._append(b"\n")  # a run that died may have left half a line
        except OSError as error:
            self._give_up(error)

    def write(self, event: EventName, **values: Value) -> None:
        """Appends one line. values: fields of Event; `time` is now if it is not given."""
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        record = Event(**{"time": time.time(), **self._common, **given, "event": event})
        found = {name: value for name, value in asdict(record).items() if value is not None}
        try:
            self._append(json.dumps(found).encode() + b"\n")
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._give_up(error)
        self._file = None

    def _append(self, line: bytes) -> None:
        if self._file is not None and self._file.write(line) != len(line):
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    def _give_up(self, error: OSError) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # it has just been reported
                self._file.close()
        self._file = None
        reason = f"{error.filename or self.path}: {error.strerror or error}"
        self._notice(f"{reason}; the run goes on without a memory log: make room or make it writable")


@dataclass(frozen=True, slots=True)
class Log:
    """What was read. skipped: by what it was, how many lines or fields were not used."""

    path: Path
    events: Sequence[Event]
    skipped: Mapping[str, int]


def find_log(path: Path) -> Path:
    """The file itself, or the newest log in the folder or in its performance_logs. Raises InputError."""
    try:
        if not path.is_dir():
            return path
        logs = [log for folder in (path, path / FOLDER) for log in folder.glob(f"*{SUFFIX}") if log.is_file()]
        if not logs:
            raise InputError(f"{path}: holds no memory log; {_REMEDY}")
        return max(logs, key=lambda log: (log.stat().st_mtime_ns, log.name))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {_REMEDY}") from error


def read_log(path: Path) -> Log:
    """The events of a file, or of the newest log of a folder, in the order of the lines.

    Lines, events and fields of other versions, and a last line that was torn, are skipped and counted. Raises
    InputError for what holds no event at all.
    """
    path = find_log(path)
    events: list[Event] = []
    skipped: Counter[str] = Counter()
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a regular file; {_REMEDY}")
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(_LONGEST_LINE), b""):
                event = None if line.isspace() else _parse(line, skipped)
                if event is not None:
                    events.append(event)
            size = file.tell()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {_REMEDY}") from error
    if not events:
        raise InputError(f"{path}: {'no line of it is an event' if size else 'is empty'}; {_REMEDY}")
    return Log(path, events, dict(+skipped))


def _parse(line: bytes, skipped: Counter[str]) -> Event | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        torn = not line.endswith(b"\n") and len(line) < _LONGEST_LINE
        skipped["torn last line" if torn else "not JSON"] += 1
        return None
    if not isinstance(found, dict) or "event" not in found:
        skipped["not an event"] += 1
        return None
    if found["event"] not in get_args(EventName):
        skipped["unknown event"] += 1
        return None
    known = {name: value for name, value in found.items() if name in _TYPES}
    skipped["unknown field"] += len(found) - len(known)
    known = {name: value for name, value in known.items() if value is not None}
    if "time" not in known or not all(_fits(value, _TYPES[name]) for name, value in known.items()):
        skipped["not an event"] += 1
        return None
    return Event(**{name: _TYPES[name](value) for name, value in known.items()})


def _fits(value: object, kind: type) -> bool:
    if kind is str or isinstance(value, bool):
        return isinstance(value, str)
    return isinstance(value, int | float) and 0 <= value < 2**63  # neither NaN nor infinite


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
    """From when to when nothing was started for want of memory: from a throttle to the one that says it is over.

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
