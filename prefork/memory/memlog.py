"""The memory log of a run, written and read again: one JSON line for each event."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from errno import ENOSPC
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
        found = {name: value for name in _TYPES if (value := getattr(record, name)) is not None}
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
        self._notice(f"{reason}; the run continues without a memory log: make room or make it writable")


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
            raise InputError(f"{path}: contains no memory log; {_REMEDY}")
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
        raise InputError(f"{path}: {'has no line that is an event' if size else 'is empty'}; {_REMEDY}")
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
