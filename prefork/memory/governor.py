"""The governor: watches memory while a run lasts, says what may start and when there are too many workers.

It measures and decides; the supervisor, in whose thread it lives, acts. What there is to know about memory goes from
here to the memory log and to the history that later runs predict from.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from prefork.memory import admission
from prefork.memory.admission import Holder, Level
from prefork.memory.memlog import EventName, MemoryLog
from prefork.memory.observation import SUPERVISOR, GPULoads, Observation
from prefork.memory.prediction import Demand, Predictor, is_close
from prefork.memory.tally import Limits, Tally, describe_subjects
from prefork.platform_matrix.matrix import Plan
from prefork.platform_matrix.memory import MachineMemory, format_gigabytes, keep_back, read_memory
from prefork.platform_matrix.nvml import LoadMeter
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.messages import Memory, Usage

_LOOK_SECONDS = 0.25  # between two looks at the machine
_EXACT_SECONDS = 0.5  # between two exact measurements of a process: they cost the kernel 8 to 20 ms each
_LOG_SHARE = 1000  # samples in the log while a run gets e times as long
_CLEAR_SECONDS = 10.0  # without want of memory, before the pool grows again
_SETTLE_SECONDS = 2.0  # for what is freed to show, after a worker was ended
_REAPING_SECONDS = 10.0  # from the kernel's decision to end a process to the news of its end
_LASTING_SECONDS = 1.0  # of very short memory, before --mem-guard stops the run

D = TypeVar("D", bound=Demand)


class Clocks(defaultdict[str, float]):
    """When things were last done, by name."""

    def __init__(self) -> None:
        super().__init__(float)

    def is_time(self, what: str, seconds: float, now: float) -> bool:
        """Whether so many seconds have passed; then they begin anew."""
        if now - self[what] < seconds:
            return False
        self[what] = now
        return True


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
    clock: Callable[[], float] = time.monotonic
    tally: Tally = field(default_factory=Tally)
    level: Level = Level.EASY
    why: str = ""  # memory is short
    machine: MachineMemory = field(init=False)
    _log: MemoryLog | None = None
    _refused: bool = False  # the last time that a task was to start, there was no room for it
    _loads: GPULoads = field(default_factory=GPULoads)
    _predictor: Predictor = field(init=False)
    _observation: Observation = field(default_factory=Observation)
    _clocks: Clocks = field(default_factory=Clocks)
    _kills: int = 0  # of the kernel's, those that were somebody's whose end we know of, or nobody's
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._predictor = Predictor(self.command, self.engines)
        self.machine = self._read_machine()
        self._kills = self.machine.kills
        self._started = self.clock()

    # -- what is known before ------------------------------------------------------------------------------------

    def recall(self, plan: Plan) -> Plan:
        """The plan with what earlier runs have measured."""
        return self._predictor.recall(plan)

    def begin(self, plan: Plan, weights: int) -> None:
        """The models are loaded: from here on there is something to write down. Again if they are loaded another way,
        because workers must be forked no more, or elsewhere, because a GPU was given up."""
        self._close_log()
        self._predictor.begin(plan)
        self._loads, self.tally.busy, self.tally.used = GPULoads(), [], []  # of other GPUs, if one was given up
        if plan.device in ("cuda", "rocm"):
            self._loads.meter = LoadMeter(plan.devices or None)
        if self.path is not None:
            self._log = MemoryLog(
                self.path, notice=self.notice, strategy=str(plan.strategy), **describe_subjects(self.engines)
            )
        self.write("start", weights=weights, workers=plan.workers)

    def learn_batch(self, engine: str, size: float, taken: int) -> None:
        """A batch of a server took so many bytes of its device. size: that the engine estimates."""
        self._predictor.learn_batch(engine, size, taken)

    def recall_batches(self) -> Mapping[str, Sequence[tuple[float, int]]]:
        """The same of all batches, of earlier runs too, by engine."""
        return self._predictor.recall_batches()

    def end(self) -> None:
        """Keeps what was measured for the next run."""
        self._end_throttle()
        self._predictor.store()
        self._close_log()

    def _close_log(self) -> None:
        if self._log is not None:
            self.write("end")
            self._log.close()
        self._log = None

    def note_loaded(self, size: int, weights: int, forks: bool, shared: bool) -> None:
        """size: bytes of the process that has loaded the models, as long as nobody shares them. forks: the others are
        forked from it. shared: they map the same weights."""
        self.tally.loaded = max(size, self.tally.loaded)
        self._predictor.learn_libraries(max(0, size - weights))
        self._observation.shared = size if forks else None
        self._observation.mapped = weights if shared and not (forks or SYSTEM.knows_shares) else 0

    def note_memory(self, worker: str, pid: int, memory: Memory) -> None:
        """What it has found of itself after a task; before its first one, nothing."""
        self._observation.take(worker, pid, memory)

    # -- admission -----------------------------------------------------------------------------------------------

    @property
    def reserve(self) -> int:
        return keep_back(self.machine.limit)

    def predict(self, task: Demand) -> int:
        """Bytes that the task will take at its peak, beyond what its worker has already."""
        return self._predictor.predict(task)

    def select(self, tasks: Iterator[D], holders: list[Holder]) -> D | None:
        """The task that starts next; None if none may. holders: the workers that have one."""
        if self.level > Level.EASY:
            return None
        room = admission.find_room(self.machine.available, self.reserve, holders)
        first = next(tasks, None)
        if first is None or self.predict(first) <= room:
            self._refused = False
            return first
        seen: list[D] = []
        now = self.clock()
        place = admission.choose(_weigh(itertools.chain([first], tasks), seen, self._predictor.predict, now), room)
        self._refused = place is None
        if place is None:
            return None
        for passed in seen[:place]:
            passed.passed = passed.passed or now
        return seen[place]

    def explain_want(self, size: int) -> str:
        """Why there is no room for so many bytes more, for a while; empty if there is."""
        self.machine = machine = self._read_machine()
        if size <= machine.available - self.reserve:
            return ""
        return (
            f"the new weights are loaded beside the old ones, and there is no room for {format_gigabytes(size)} more: "
            f"{format_gigabytes(machine.available)} are available, of which {format_gigabytes(self.reserve)} are kept "
            "back; free memory, or make a new Runtime once this one has ended"
        )

    def explain(self, task: Demand) -> str:
        """Why the task does not start, or did not live."""
        parts = [f"{format_gigabytes(self.predict(task))} more predicted at its peak"]
        if task.peak:
            parts.append(f"at least {format_gigabytes(task.peak)} measured")
        machine = self.machine
        parts.append(
            f"{format_gigabytes(machine.available)} available of {format_gigabytes(machine.limit)}, "
            f"of which {format_gigabytes(self.reserve)} are kept back"
        )
        return ", ".join(parts)

    # -- while it runs -------------------------------------------------------------------------------------------

    def look(self, list_pids: Callable[[], Mapping[str, int]]) -> bool:
        """Measures the machine and the processes, if it is time to; False if not. list_pids: gives them by name."""
        now = self.clock()
        if not self._clocks.is_time("look", _LOOK_SECONDS, now):
            return False
        pids = {SUPERVISOR: os.getpid(), **list_pids()}
        self._observation.look(pids, exact=self._clocks.is_time("exact", _EXACT_SECONDS, now))
        self.machine = self._read_machine()
        if self.machine.kills == self._kills:
            self._clocks["kill"] = now
        elif self._clocks.is_time("kill", _REAPING_SECONDS, now):  # it was none of ours
            self._kills = self.machine.kills
        self.tally.most = max(self.tally.most, self._observation.total)
        self.tally.lowest = min(self.machine.available, self.tally.lowest)
        self._judge(now)
        self._loads.look(self.tally)
        interval = max(_EXACT_SECONDS, (now - self._started) / _LOG_SHARE) * max(1.0, len(pids) / 8)
        if self._clocks.is_time("sample", interval, now):
            for name, memory in self._observation:
                self.write("sample", process=name, pss=memory.pss, uss=memory.uss)
        return True

    def find_memory(self, name: str) -> Memory | None:
        return self._observation.find(name)

    def measure_memory(self, name: str, pid: int) -> Memory | None:
        return self._observation.measure(name, pid)

    def look_again(self) -> None:
        """A task is over: if others wait for what it had, they need not wait for the next look."""
        if self._refused:
            self._clocks["look"] = 0.0

    def _read_machine(self) -> MachineMemory:
        machine = read_memory(self.root, self._observation.measure_largest())
        most = self.limits.most
        if most is None:
            return machine
        unused = max(0, most - self._observation.total)
        limit, available = min(machine.limit, most), min(machine.available, unused)
        return replace(machine, limit=limit, available=available, unused=min(machine.unused, unused))

    def _judge(self, now: float) -> None:
        level, self.why = admission.judge(self.machine, self.reserve, self.level)
        if level < Level.CRITICAL:
            self._clocks["critical"] = now
        if level > Level.EASY and self.level is Level.EASY:
            self._clocks["throttled"] = now
            self.tally.throttles += 1
            self.notice(f"memory is short ({self.why}); no new task starts until more is available")
            self.write("throttle", reason=self.why)
        elif level is Level.EASY and self.level > Level.EASY:
            self._end_throttle()
        self.level = level

    def _end_throttle(self) -> None:
        if self.level > Level.EASY:
            now = self.clock()
            self.tally.throttled += now - self._clocks["throttled"]
            self._clocks["cleared"] = now
            self.write("throttle", reason="over")
            self.level = Level.EASY

    def may_grow(self, plan: Plan) -> bool:
        """Whether there has been enough memory for one more worker for long enough."""
        room = admission.find_room(self.machine.available, self.reserve, [])
        need = plan.budget.each if plan.strategy.forks else plan.budget.each + (plan.request.weights or 0)
        clear = self.clock() - max(self._clocks["cleared"], self._clocks["resized"]) > _CLEAR_SECONDS
        return self.level is Level.EASY and clear and room > need

    def must_stop(self) -> bool:
        """Whether the run has to end in order, because the user wants that and memory is very short, and not just for a
        moment."""
        lasting = self.clock() - self._clocks["critical"] > _LASTING_SECONDS
        return self.limits.guard and (self.level is Level.DESPERATE or (self.level is Level.CRITICAL and lasting))

    def must_shrink(self) -> bool:
        """Whether there are too many workers, and the last one that was ended has not helped."""
        return self.level >= Level.CRITICAL and self._clocks.is_time("resized", _SETTLE_SECONDS, self.clock())

    def must_end_one(self, used: list[int]) -> bool:
        """Whether a worker has to be ended at its work. One that is alone has to be only if it is itself beyond a limit
        of the user's, who would else not get what he asked for; the kernel's limits may still be kept.

        used: bytes that each of those at work has of its own."""
        most = self.limits.most
        over = most is not None and sum(used) + (self._observation.shared or 0) > most
        if self.level < Level.DESPERATE or not (over or len(used) > 1):
            return False
        return self._clocks.is_time("ended", _SETTLE_SECONDS, self.clock())

    def shrink(self, workers: int) -> None:
        self.tally.shrinks += 1
        self.notice(f"memory is very short ({self.why}); continuing with {workers} worker{'s' * (workers != 1)}")
        self.write("shrink", workers=workers, reason=self.why)

    def grow(self, workers: int) -> None:
        self._clocks["resized"] = self.clock()
        self.write("grow", workers=workers)

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel has ended a process for want of memory since this was last asked."""
        self.machine = self._read_machine()
        known = self.machine.kills > self._kills
        self._kills += known
        return known

    # -- what is done ---------------------------------------------------------------------------------------

    def admit(self, task: Demand, worker: str, rest: int) -> int:
        """A task starts on a worker that has so many bytes of its own; the bytes that it will have at its peak."""
        predicted = rest + self.predict(task)
        self.write("admit", task, process=worker, predicted=predicted)
        return predicted

    def note_kill(self) -> None:
        """A batch was lost for want of memory."""
        self.tally.kills += 1

    def lose(self, task: Demand, reason: str, out_of_memory: bool) -> None:
        """A task has failed, or lost its worker."""
        self.tally.kills += out_of_memory
        if out_of_memory:  # it took at least as much
            self._predictor.learn(task, max(task.peak, self.predict(task)))
        self.write("fail", task, predicted=self.predict(task), peak=task.peak or None, reason=reason)

    def measure(self, task: Demand, worker: str, predicted: int, usage: Usage) -> None:
        """A task is over."""
        peak, taken = usage.peak, usage.taken
        if peak is None and task.peak:  # where nobody can say, what was seen must do
            peak, taken = task.peak, max(0, task.peak - usage.memory.uss)
        if peak is not None and taken is not None:
            key = (task.engine, task.name)
            self.tally.peaks[key] = max(peak, self.tally.peaks.get(key, 0))
            if self._predictor.is_known(task):
                self.tally.measured += 1
                self.tally.close += is_close(predicted, peak)
                self.tally.below += peak <= predicted
            self._predictor.learn(task, taken)
        memory = usage.memory
        self.write("complete", task, process=worker, predicted=predicted, peak=peak, pss=memory.pss, uss=memory.uss)

    def write(self, event: EventName, task: Demand | None = None, **values: Any) -> None:
        """A line of the memory log."""
        if self._log is None:
            return
        if task is not None:
            values |= self._predictor.subjects[task.engine].describe() if task.engine else {}
            values |= {
                "file": task.label,
                "task": task.name,
                "audio": task.audio or None,
                "segment": task.segment or None,
            }
        machine = self.machine
        self._log.write(event, available=machine.available, limit=machine.limit, pressure=machine.some, **values)


def _weigh(
    tasks: Iterator[D], seen: list[D], predict: Callable[[Demand], int], now: float
) -> Iterator[tuple[int, float]]:
    """Bytes that each will take, and seconds since others first passed it. seen: gets those that were looked at."""
    known: dict[tuple[str, str, float], int] = {}
    for task in tasks:
        seen.append(task)
        kind = (task.engine, task.name, task.size)
        if kind not in known:
            known[kind] = predict(task)
        yield known[kind], 0.0 if task.passed is None else now - task.passed
