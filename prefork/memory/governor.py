"""The governor: watches memory while a run lasts, says what may start and when there are too many workers.

It measures and decides; the supervisor, in whose thread it lives, acts. What there is to know about memory goes from
here to the memory log and to the history that later runs predict from.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prefork.memory import admission
from prefork.memory.admission import Holder, Level
from prefork.memory.forecast import History, Series
from prefork.memory.memlog import EventName, MemoryLog
from prefork.memory.probe import MemoryProbe, measure_address_space
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.platform_matrix.memory import MachineMemory, keep_back, read_memory
from prefork.platform_matrix.nvml import LoadMeter
from prefork.pool.tasks import Task
from prefork.wire.messages import Memory, Usage

IDLE = 30_000_000  # bytes of a worker's own between two tasks: 10 to 24 MB were measured
ZYGOTE = "zygote"
_LOOK_SECONDS = 0.25  # between two looks at the machine
_EXACT_SECONDS = 0.5  # between two exact measurements of a process: they cost the kernel 8 to 20 ms each
_MOST_NEW = 4  # processes that are measured for the first time in one look, which is exact
_LOG_SHARE = 1000  # samples in the log while a run gets e times as long
_CLEAR_SECONDS = 10.0  # without want of memory, before the pool grows again
_SETTLE_SECONDS = 2.0  # for what is freed to show, after a worker was ended
_REAPING_SECONDS = 10.0  # from the kernel's decision to end a process to the news of its end
_LASTING_SECONDS = 1.0  # of very short memory, before --mem-guard stops the run
_TOLERANCE = 0.2  # of what was measured: a prediction that is no further off was right


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


@dataclass(slots=True)
class _Process:
    probe: MemoryProbe
    memory: Memory | None = None


@dataclass(slots=True)
class Governor:
    """notice: gets what the user should know. command: what measurements are kept under, for the next run. engines:
    with their options; none for functions that nobody knows anything about. path: of the memory log, None for none."""

    limits: Limits = field(default_factory=Limits)
    notice: Callable[[str], None] = lambda _: None
    command: str = ""
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path | None = None
    root: Path = Path("/")
    tally: Tally = field(default_factory=Tally)
    level: Level = Level.EASY
    why: str = ""  # memory is short
    machine: MachineMemory = field(init=False)
    subjects: Mapping[str, Subject] = field(init=False)
    _log: MemoryLog | None = None
    _gpus: LoadMeter | None = None
    _refused: bool = False  # the last time that a task was to start, there was no room for it
    _shared: int | None = None  # bytes of what workers were forked from
    _loads: int = 0  # readings of the GPUs so far
    _name: str = ""
    _series: dict[tuple[str, str], Series] = field(default_factory=dict)  # by engine and kind of task
    _known: set[tuple[str, str]] = field(default_factory=set)  # of these, those that an earlier run has measured
    _processes: dict[str, _Process] = field(default_factory=dict)
    _clocks: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _exact: int = 0  # exact measurements so far
    _kills: int = 0  # of the kernel's, those that were somebody's whose end we know of, or nobody's
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.subjects = {name: Subject.make(name, options) for name, options in self.engines.items()}
        self.machine = self._read_machine()
        self._kills = self.machine.kills

    # -- what is known before ------------------------------------------------------------------------------------

    def recall(self, plan: Plan) -> Plan:
        """The plan with what earlier runs have measured."""
        self._name = self._make_name(plan)
        libraries = self._find("libraries").typical
        typical = [size for name in self.subjects if (size := self._find("run", name).typical) is not None]
        peak = max(typical) + IDLE if typical else None
        if plan.strategy is Strategy.SERVER:  # its workers have no model
            return plan.learn(host=peak, libraries=libraries)
        return plan.learn(private=peak, libraries=libraries)

    def _make_name(self, plan: Plan) -> str:
        return "|".join([plan.device, str(plan.threads), plan.strategy])

    def _find_place(self, kind: str, engine: str) -> tuple[str, str]:
        """The engine that a series is kept with, and its name there. What belongs to no engine is kept with the first
        one, by the models of all."""
        subjects = [self.subjects[engine]] if engine else list(self.subjects.values())
        models, dtypes = ("+".join(getattr(s, part) for s in subjects) for part in ("model", "dtype"))
        return subjects[0].engine, "|".join([kind, models, dtypes, self._name])

    def begin(self, plan: Plan, weights: int) -> None:
        """The models are loaded: from here on there is something to write down."""
        name = self._make_name(plan)
        if name != self._name:  # there are fewer workers than were thought, and each has more threads
            self._name = name
            self._series.clear()
            self._known.clear()
        if plan.device in ("cuda", "rocm"):
            self._gpus = LoadMeter(plan.devices or None)
        if self.path is not None:
            self._log = MemoryLog(
                self.path, notice=self.notice, strategy=str(plan.strategy), **describe_subjects(self.engines)
            )
        self.write("start", weights=weights, workers=plan.workers)

    def end(self) -> None:
        """Keeps what was measured for the next run."""
        self._end_throttle()
        if self.subjects:
            for (engine, kind), series in self._series.items():
                owner, name = self._find_place(kind, engine)
                History(self.command, owner).store(name, series)
        self.write("end")
        if self._log is not None:
            self._log.close()

    def note_loaded(self, size: int, weights: int, forks: bool) -> None:
        """size: bytes of the process that has loaded the models, as long as nobody shares them. forks: the others are
        forked from it."""
        self.tally.loaded = max(size, self.tally.loaded)
        self._find("libraries").add(0.0, max(0, size - weights))
        self._shared = size if forks else None

    def _find(self, kind: str, engine: str = "") -> Series:
        key = (engine, kind)
        if key not in self._series:
            series = Series()
            if self.subjects:
                owner, name = self._find_place(kind, engine)
                series = History(self.command, owner).load(name)
            self._series[key] = series
            if series.points:
                self._known.add(key)
        return self._series[key]

    # -- admission -----------------------------------------------------------------------------------------------

    @property
    def reserve(self) -> int:
        return keep_back(self.machine.limit)

    def predict(self, task: Task) -> int:
        """Bytes that the task will take at its peak, beyond what its worker has already."""
        return self._find(task.name, task.engine).predict(task.size)

    def select(self, tasks: Iterator[Task], holders: list[Holder]) -> Task | None:
        """The task that starts next; None if none may. holders: the workers that have one."""
        if self.level > Level.EASY:
            return None
        room = admission.find_room(self.machine.available, self.reserve, holders)
        seen: list[Task] = []
        now = time.monotonic()
        place = admission.choose(self._weigh(tasks, seen, now), room)
        self._refused = place is None and bool(seen)
        if place is None:
            return None
        for passed in seen[:place]:
            passed.passed = passed.passed or now
        return seen[place]

    def _weigh(self, tasks: Iterator[Task], seen: list[Task], now: float) -> Iterator[tuple[int, float]]:
        known: dict[tuple[str, str, float], int] = {}
        for task in tasks:
            seen.append(task)
            kind = (task.engine, task.name, task.size)
            if kind not in known:
                known[kind] = self.predict(task)
            yield known[kind], 0.0 if task.passed is None else now - task.passed

    def explain(self, task: Task) -> str:
        """Why the task does not start, or did not live."""
        parts = [f"{_gigabytes(self.predict(task))} more predicted at its peak"]
        if task.peak:
            parts.append(f"at least {_gigabytes(task.peak)} measured")
        machine = self.machine
        parts.append(
            f"{_gigabytes(machine.available)} available of {_gigabytes(machine.limit)}, "
            f"of which {_gigabytes(self.reserve)} are kept back"
        )
        return ", ".join(parts)

    # -- while it runs -------------------------------------------------------------------------------------------

    def look(self, pids: Mapping[str, int]) -> bool:
        """Measures the machine and the processes, if it is time to; False if it is not. pids: by name."""
        now = time.monotonic()
        if not self._is_time("look", _LOOK_SECONDS, now):
            return False
        pids = {"supervisor": os.getpid(), **pids}
        changed = {name: process.probe.pid for name, process in self._processes.items()} != pids
        self._processes = {name: self._find_process(name, pid) for name, pid in pids.items()}
        exact = ""
        if self._is_time("exact", _EXACT_SECONDS, now):
            self._exact += 1
            exact = list(pids)[self._exact % len(pids)]
        new = [name for name, process in self._processes.items() if process.memory is None]
        for name, process in self._processes.items():
            if name in new[_MOST_NEW:]:
                continue
            stale = changed and name == ZYGOTE  # its share has changed with the number of those it shares with
            process.memory = process.probe.read(exact=name == exact or stale)
        self.machine = self._read_machine()
        if self.machine.kills == self._kills:
            self._clocks["kill"] = now
        elif self._is_time("kill", _REAPING_SECONDS, now):  # it was none of ours
            self._kills = self.machine.kills
        self.tally.most = max(self.tally.most, self.total)
        self.tally.lowest = min(self.machine.available, self.tally.lowest)
        self._judge(now)
        self._look_at_gpus()
        interval = max(_EXACT_SECONDS, (now - self._started) / _LOG_SHARE) * max(1.0, len(pids) / 8)
        if self._is_time("sample", interval, now):
            for name, process in self._processes.items():
                if process.memory is not None:
                    self.write("sample", process=name, pss=process.memory.pss, uss=process.memory.uss)
        return True

    def _look_at_gpus(self) -> None:
        loads = self._gpus.read() if self._gpus is not None else []
        if not loads:
            return
        self._loads += 1
        means, most = self.tally.busy or [0.0] * len(loads), self.tally.used or [0] * len(loads)
        self.tally.busy = [mean + (load.busy - mean) / self._loads for mean, load in zip(means, loads, strict=True)]
        self.tally.used = [max(used, load.used) for used, load in zip(most, loads, strict=True)]

    def _find_process(self, name: str, pid: int) -> _Process:
        known = self._processes.get(name)
        return known if known is not None and known.probe.pid == pid else _Process(MemoryProbe(pid))

    @property
    def total(self) -> int:
        """Bytes of all processes together, shared pages counted once."""
        known = {name: process.memory for name, process in self._processes.items() if process.memory}
        if self._shared is None:
            return sum(memory.pss for memory in known.values())
        return self._shared + sum(memory.uss for name, memory in known.items() if name != ZYGOTE)

    def find_memory(self, name: str) -> Memory | None:
        process = self._processes.get(name)
        return process.memory if process else None

    def look_again(self) -> None:
        """A task is over: if others wait for what it had, they need not wait for the next look."""
        if self._refused:
            self._clocks["look"] = 0.0

    def _read_machine(self) -> MachineMemory:
        largest = max((measure_address_space(p.probe.pid) for p in self._processes.values()), default=0)
        machine = read_memory(self.root, largest)
        most = self.limits.most
        if most is None:
            return machine
        return replace(
            machine, limit=min(machine.limit, most), available=min(machine.available, max(0, most - self.total))
        )

    def _judge(self, now: float) -> None:
        level, self.why = admission.judge(self.machine, self.reserve, self.level)
        if level < Level.CRITICAL:
            self._clocks["critical"] = now
        if level > Level.EASY and self.level is Level.EASY:
            self._clocks["throttled"] = now
            self.tally.throttles += 1
            self.notice(f"memory is short ({self.why}); nothing new is started until there is more")
            self.write("throttle", reason=self.why)
        elif level is Level.EASY and self.level > Level.EASY:
            self._end_throttle()
        self.level = level

    def _end_throttle(self) -> None:
        if self.level > Level.EASY:
            now = time.monotonic()
            self.tally.throttled += now - self._clocks["throttled"]
            self._clocks["cleared"] = now
            self.write("throttle", reason="over")
            self.level = Level.EASY

    def may_grow(self, plan: Plan) -> bool:
        """Whether there has been enough memory for one more worker for long enough."""
        room = admission.find_room(self.machine.available, self.reserve, [])
        need = plan.budget.each if plan.strategy.forks else plan.budget.each + (plan.request.weights or 0)
        clear = time.monotonic() - max(self._clocks["cleared"], self._clocks["resized"]) > _CLEAR_SECONDS
        return self.level is Level.EASY and clear and room > need

    def must_stop(self) -> bool:
        """Whether the run has to end in order, because the user wants that and memory is very short, and not just for a
        moment."""
        lasting = time.monotonic() - self._clocks["critical"] > _LASTING_SECONDS
        return self.limits.guard and (self.level is Level.DESPERATE or (self.level is Level.CRITICAL and lasting))

    def must_shrink(self) -> bool:
        """Whether there are too many workers, and the last one that was ended has not helped."""
        return self.level >= Level.CRITICAL and self._is_time("resized", _SETTLE_SECONDS, time.monotonic())

    def must_end_one(self, used: list[int]) -> bool:
        """Whether a worker has to be ended at its work. One that is alone has to be only if it is itself beyond a limit
        of the user's, who would else not get what he asked for; the kernel's limits may still be kept.

        used: bytes that each of those at work has of its own."""
        most = self.limits.most
        over = most is not None and sum(used) + (self._shared or 0) > most
        if self.level < Level.DESPERATE or not (over or len(used) > 1):
            return False
        return self._is_time("ended", _SETTLE_SECONDS, time.monotonic())

    def shrink(self, workers: int) -> None:
        self.tally.shrinks += 1
        self.notice(f"memory is very short ({self.why}); going on with {workers} worker{'s' * (workers != 1)}")
        self.write("shrink", workers=workers, reason=self.why)

    def grow(self, workers: int) -> None:
        self._clocks["resized"] = time.monotonic()
        self.write("grow", workers=workers)

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel has ended a process for want of memory since this was last asked."""
        self.machine = self._read_machine()
        known = self.machine.kills > self._kills
        self._kills += known
        return known

    # -- what is done ---------------------------------------------------------------------------------------

    def admit(self, task: Task, worker: str, rest: int) -> int:
        """A task starts on a worker that has so many bytes of its own; the bytes that it will have at its peak."""
        predicted = rest + self.predict(task)
        self.write("admit", task, process=worker, predicted=predicted)
        return predicted

    def lose(self, task: Task, reason: str, starved: bool) -> None:
        """A task has failed, or lost its worker."""
        self.tally.kills += starved
        if starved:  # it took at least as much
            self._find(task.name, task.engine).add(task.size, max(task.peak, self.predict(task)))
        self.write("fail", task, predicted=self.predict(task), peak=task.peak or None, reason=reason)

    def measure(self, task: Task, worker: str, predicted: int, usage: Usage) -> None:
        """A task is over."""
        peak, taken = usage.peak, usage.taken
        if peak is None and task.peak:  # where nobody can say, what was seen must do
            peak, taken = task.peak, max(0, task.peak - usage.memory.uss)
        if peak is not None and taken is not None:
            key = (task.engine, task.name)
            self.tally.peaks[key] = max(peak, self.tally.peaks.get(key, 0))
            if task.size and key in self._known:
                self.tally.measured += 1
                self.tally.close += abs(predicted - peak) <= _TOLERANCE * peak
                self.tally.below += peak <= predicted
            self._find(task.name, task.engine).add(task.size, taken)
        memory = usage.memory
        self.write("complete", task, process=worker, predicted=predicted, peak=peak, pss=memory.pss, uss=memory.uss)

    def write(self, event: EventName, task: Task | None = None, **values: Any) -> None:
        """A line of the memory log."""
        if self._log is None:
            return
        if task is not None:
            values |= asdict(self.subjects[task.engine]) if task.engine else {}
            values |= {
                "file": task.label,
                "task": task.name,
                "audio": task.audio or None,
                "segment": task.segment or None,
            }
        machine = self.machine
        self._log.write(event, available=machine.available, limit=machine.limit, pressure=machine.some, **values)

    def _is_time(self, what: str, seconds: float, now: float) -> bool:
        if now - self._clocks[what] < seconds:
            return False
        self._clocks[what] = now
        return True


def describe_subjects(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names of all engines, models, dtypes together."""
    subjects = [Subject.make(name, options) for name, options in engines.items()]
    parts = ("engine", "model", "dtype") if subjects else ()
    return {part: ", ".join(dict.fromkeys(getattr(subject, part) for subject in subjects)) for part in parts}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
