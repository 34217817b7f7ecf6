"""The memory of a run's processes, measured again and again: cheaply most of the time, exactly one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prefork.memory.probe import MemoryProbe, measure_address_space, measure_memory
from prefork.memory.tally import Tally
from prefork.platform_matrix.nvml import LoadMeter
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.messages import Memory

ZYGOTE, SUPERVISOR = "zygote", "supervisor"
_MOST_NEW = 4  # processes that are measured for the first time in one look, which is exact


@dataclass(slots=True)
class _Observed:
    probe: MemoryProbe
    memory: Memory | None = None


@dataclass(slots=True)
class GPULoads:
    """What the GPUs of a run are doing. meter: None where there are none, or none that can be asked."""

    meter: LoadMeter | None = None
    _readings: int = 0

    def look(self, tally: Tally) -> None:
        """Adds what they are doing now to the tally: the mean of how busy each is, the most memory it had in use."""
        loads = self.meter.read() if self.meter is not None else []
        if not loads:
            return
        self._readings += 1
        means, most = tally.busy or [0.0] * len(loads), tally.used or [0] * len(loads)
        tally.busy = [mean + (load.busy - mean) / self._readings for mean, load in zip(means, loads, strict=True)]
        tally.used = [max(used, load.used) for used, load in zip(most, loads, strict=True)]


@dataclass(slots=True)
class Observation:
    """shared: bytes of what workers were forked from, None if they were not. mapped: bytes that they map together and
    that nobody's figures contain."""

    shared: int | None = None
    mapped: int = 0
    _processes: dict[str, _Observed] = field(default_factory=dict)
    _exact: int = 0  # exact measurements so far

    def look(self, pids: Mapping[str, int], exact: bool) -> None:
        """Measures all. pids: by name. exact: one of them exactly, each time another."""
        changed = {name: process.probe.pid for name, process in self._processes.items()} != pids
        self._processes = {name: self._find(name, pid) for name, pid in pids.items()}
        chosen = ""
        if exact:
            self._exact += 1
            chosen = list(pids)[self._exact % len(pids)]
        new = [name for name, process in self._processes.items() if process.memory is None]
        for name, process in self._processes.items():
            if name in new[_MOST_NEW:]:
                continue
            stale = changed and name == ZYGOTE  # its share has changed with the number of those it shares with
            process.memory = process.probe.read(exact=name == chosen or stale)

    def _find(self, name: str, pid: int) -> _Observed:
        known = self._processes.get(name)
        if known is not None and known.probe.pid == pid:
            return known
        probe = MemoryProbe(pid)
        if self._is_told(name):  # until it has said what it has, what it has taken since
            probe.take(Memory(0, 0))
        return _Observed(probe)

    def _is_told(self, name: str) -> bool:
        """Whether nobody else may look at what a process has, and what is counted of it is not its own alone: of one
        that was forked."""
        return SYSTEM.hides_memory and self.shared is not None and name not in (SUPERVISOR, ZYGOTE)

    def find(self, name: str) -> Memory | None:
        process = self._processes.get(name)
        return process.memory if process else None

    def take(self, name: str, pid: int, memory: Memory) -> None:
        """What a worker has found of itself. What is counted from here on it has taken since: half a second later, when
        all are looked at, it may have begun a task."""
        if self._is_told(name):
            process = self._processes[name] = self._find(name, pid)
            process.probe.take(memory)

    def measure(self, name: str, pid: int) -> Memory | None:
        """Exactly, or as exactly as anybody may."""
        process = self._processes.get(name)
        return process.probe.read(exact=True) if process is not None else measure_memory(pid)

    def __iter__(self) -> Iterator[tuple[str, Memory]]:
        """Those that could be measured, with their names."""
        return ((name, process.memory) for name, process in self._processes.items() if process.memory is not None)

    @property
    def total(self) -> int:
        """Bytes of all processes together, shared pages counted once."""
        if self.shared is None:
            return self.mapped + sum(memory.pss for _, memory in self)
        return self.shared + sum(memory.uss for name, memory in self if name != ZYGOTE)

    def measure_largest(self) -> int:
        """Bytes that the process with the most of them has mapped, which is what RLIMIT_AS limits."""
        return max((measure_address_space(process.probe.pid) for process in self._processes.values()), default=0)
