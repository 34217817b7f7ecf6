"""What a task will take, predicted from what this run and earlier ones have measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefork.memory.forecast import History, Series
from prefork.memory.tally import Subject
from prefork.platform_matrix.matrix import Plan, Strategy

IDLE = 30_000_000  # bytes of a worker's own between two tasks: 10 to 24 MB were measured
_GIGABYTE = 1 << 30
_TOLERANCE = 0.2  # of what was measured: a prediction that is no further off was right


class Demand(Protocol):
    """A task, as far as memory is concerned.

    size: bytes that its largest segment takes as the model's configuration suggests. segment, audio: seconds of that
    segment, and of the whole recording. peak: bytes of its worker's own, the most that was seen. passed: when others
    first passed it.
    """

    name: str
    engine: str
    label: str
    size: float
    segment: float
    audio: float
    peak: int
    passed: float | None


@dataclass(slots=True)
class Predictor:
    """command: what measurements are kept under, for the next run. engines: with their options."""

    command: str
    engines: Mapping[str, Mapping[str, Any]]
    subjects: Mapping[str, Subject] = field(init=False)
    _name: str = ""  # of the way that the plan runs tasks
    _series: dict[tuple[str, str], Series] = field(default_factory=dict)  # by engine and kind of task
    _known: set[tuple[str, str]] = field(default_factory=set)  # of these, those that an earlier run has measured

    def __post_init__(self) -> None:
        self.subjects = {name: Subject.make(name, options) for name, options in self.engines.items()}

    def recall(self, plan: Plan) -> Plan:
        """The plan with what earlier runs have measured."""
        self._name = _describe(plan)
        libraries = self._find("libraries").typical
        typical = [size for name in self.subjects if (size := self._find("run", name).typical) is not None]
        peak = max(typical) + IDLE if typical else None
        if plan.strategy is Strategy.SERVER:  # its workers have no model
            return plan.learn(host=peak, libraries=libraries)
        return plan.learn(private=peak, libraries=libraries)

    def begin(self, plan: Plan) -> None:
        """The plan is final: if there are fewer workers than were thought, each has more threads."""
        if _describe(plan) != self._name:
            self._name = _describe(plan)
            self._series.clear()
            self._known.clear()

    def predict(self, task: Demand) -> int:
        """Bytes that the task will take at its peak, beyond what its worker has already."""
        return self._find(task.name, task.engine).predict(task.size)

    def learn(self, task: Demand, taken: int) -> None:
        """taken: bytes."""
        self._find(task.name, task.engine).add(task.size, taken)

    def learn_libraries(self, size: int) -> None:
        """size: bytes of a process that has loaded the models, without their weights."""
        self._find("libraries").add(0.0, size)

    def learn_batch(self, engine: str, size: float, taken: int) -> None:
        """size: bytes that an engine estimates for a batch of a server. taken: bytes of its device."""
        self._find("batch", engine).add(size, taken)

    def recall_batches(self) -> Mapping[str, Sequence[tuple[float, int]]]:
        """The same of all batches, of earlier runs too, by engine."""
        return {engine: self._find("batch", engine).points for engine in self.subjects}

    def is_known(self, task: Demand) -> bool:
        """Whether an earlier run has measured its kind."""
        return bool(task.size) and (task.engine, task.name) in self._known

    def store(self) -> None:
        """Keeps what was measured for the next run."""
        if self.subjects:
            for (engine, kind), series in self._series.items():
                first, name = self._find_place(kind, engine)
                History(self.command, first).store(name, series)

    def _find_place(self, kind: str, engine: str) -> tuple[str, str]:
        """The engine that a series is kept with, and its name there. What belongs to no engine is kept with the first
        one, by the models of all."""
        subjects = [self.subjects[engine]] if engine else list(self.subjects.values())
        models, dtypes = ("+".join(getattr(s, part) for s in subjects) for part in ("model", "dtype"))
        return subjects[0].engine, "|".join([kind, models, dtypes, self._name])

    def _find(self, kind: str, engine: str = "") -> Series:
        key = (engine, kind)
        if key not in self._series:
            series = Series()
            if self.subjects:
                first, name = self._find_place(kind, engine)
                series = History(self.command, first).load(name)
            self._series[key] = series
            if series.points:
                self._known.add(key)
        return self._series[key]


def is_close(predicted: int, peak: int) -> bool:
    return abs(predicted - peak) <= _TOLERANCE * peak


def _describe(plan: Plan) -> str:
    """The way that a plan runs tasks, and the kind of machine: what one has measured says nothing of another, whose
    plan may be asked for here (--facts), or which has the same cache folder."""
    facts = plan.facts
    machine = f"{facts.system} {facts.machine} {facts.installed_cores} {round(facts.installed_memory / _GIGABYTE)}"
    return "|".join([plan.device, str(plan.threads), plan.strategy, machine])
