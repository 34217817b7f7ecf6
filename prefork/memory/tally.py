"""What a run says about memory: what the user allows, what it came to, and what the figures belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user said about memory. most: bytes for all processes of the run together, None for all there is.
    guard: stop the run in order before the kernel ends one of its processes."""

    most: int | None = None
    guard: bool = False


@dataclass(slots=True)
class Tally:
    """What a run's summary says about memory. Bytes and seconds."""

    measured: int = 0  # tasks on the model that were predicted from what an earlier run has measured
    close: int = 0  # of these, those whose prediction was no more than a fifth off
    below: int = 0  # of these, those that took no more than was predicted
    loaded: int = 0  # the process that has loaded the models
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)  # of one worker's own, by engine and kind of task
    most: int = 0  # of all processes together
    lowest: float = math.inf  # available
    throttles: int = 0
    throttled: float = 0.0
    shrinks: int = 0
    kills: int = 0  # tasks that lost their worker for want of memory
    busy: list[float] = field(default_factory=list)  # percent of the time, the mean of each GPU
    used: list[int] = field(default_factory=list)  # bytes of each GPU's memory, at the most

    def merge(self, later: Tally) -> Tally:
        """Of both together, one after the other."""
        peaks = {key: max(self.peaks.get(key, 0), later.peaks.get(key, 0)) for key in {**self.peaks, **later.peaks}}
        sums = ("measured", "close", "below", "throttles", "throttled", "shrinks", "kills")
        added = {name: getattr(self, name) + getattr(later, name) for name in sums}
        highest = {name: max(getattr(self, name), getattr(later, name)) for name in ("loaded", "most")}
        busy, used = later.busy or self.busy, later.used or self.used
        lowest = min(self.lowest, later.lowest)
        return replace(self, peaks=peaks, lowest=lowest, busy=busy, used=used, **added, **highest)


@dataclass(frozen=True, slots=True)
class Subject:
    """What measurements belong to: an engine, its model and dtype, as the user named them."""

    engine: str
    model: str = "default"
    dtype: str = "float32"

    @classmethod
    def make(cls, engine: str, options: Mapping[str, Any]) -> Subject:
        model, dtype = (str(options.get(name, usual)) for name, usual in (("model", "default"), ("dtype", "float32")))
        if Path(model).is_dir():
            model = str(Path(model).resolve())
        return cls(engine, model, dtype)

    def describe(self) -> dict[str, str]:
        """For a line of the memory log, several of which every task has."""
        return {"engine": self.engine, "model": self.model, "dtype": self.dtype}


def describe_subjects(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names of all engines, models, dtypes together."""
    subjects = [Subject.make(name, options) for name, options in engines.items()]
    parts = ("engine", "model", "dtype") if subjects else ()
    return {part: ", ".join(dict.fromkeys(getattr(subject, part) for subject in subjects)) for part in parts}
