"""What the stages of a pipeline do to the memory of the device they run on: checkpoints, cleanups, warnings.

    monitor = MemoryMonitor(DeviceMeter("cuda:0"))
    models = Models(monitor, Residency.STAGE)
    with monitor.stage(MonitoredStage.PIPELINE):
        with monitor.stage(MonitoredStage.TRANSCRIPTION) as stage:
            text = models.get(stage, "Whisper", load_whisper).transcribe(audio)

On the host, what libraries set up when a stage is the first to use them is memory that it adds and never frees: 30 MB
for the first Whisper of a process, more if it is imported there. While a stage runs, so does a thread that watches: not
in a process that forks.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from prefork.memory.monitored_stages import MonitoredStage
from prefork.memory.probe import MemoryProbe, measure_memory
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.memory import read_memory
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.messages import Memory

ELEVATED = 70.0  # percent of the total that is allocated
CRITICAL = 85.0
PATIENCE = 30.0  # seconds above ELEVATED before there is an alert
EXPECTED = 95.0  # percent of what a stage has added that its cleanups should free
TOLERATED = 10.0  # percent of it that may stay
NOTABLE = 32 << 20  # bytes; libraries and malloc add and keep as much for reasons of their own

_logger = logging.getLogger("prefork.memory")


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of a device at one moment.

    kind: GPU or Host. allocated: in tensors; on the host what is this process's own (USS). held: what torch has
    reserved; on the host with the process's share of what it shares (PSS). free: for anybody. total: that may be used.
    """

    kind: str
    allocated: int
    held: int
    free: int
    total: int

    @property
    def percent(self) -> float:
        """Of the total that is allocated."""
        return self._share(self.allocated)

    def describe(self, name: str) -> str:
        """A checkpoint's line. A gb is 2**30 bytes, as in the tools that such lines are known from."""
        allocated, held = (f"{_format_size(size)} ({self._share(size):.1f}%)" for size in (self.allocated, self.held))
        free, total = _format_size(self.free), _format_size(self.total)
        if self.kind == "GPU":
            figures = f"Allocated: {allocated} | Reserved: {held} | Free: {free} | Total: {total}"
        else:
            figures = f"PSS: {held} | USS: {allocated} | Available: {free} | Total: {total}"
        return f"[{self.kind} Memory] {name}: {figures}"

    def find_warning(self) -> str:
        """Empty if there is nothing to warn of."""
        if self.percent > CRITICAL:
            state, advice = "critically high", "Consider reducing batch size or using a smaller model."
            return f"WARNING: {self.kind} memory usage is {state} ({self.percent:.1f}%). {advice}"
        if self.percent > ELEVATED:
            advice = "Monitor for potential OOM conditions."
            return f"NOTICE: {self.kind} memory usage is elevated ({self.percent:.1f}%). {advice}"
        return ""

    def _share(self, size: int) -> float:
        return 100 * size / self.total


def _format_size(size: int) -> str:
    return f"{size / 2**30:.2f}gb"


class Meter(Protocol):
    """Where readings come from."""

    def read(self) -> Reading:
        """Exactly."""

    def glance(self) -> Reading:
        """Cheaply, and such that nothing but what this process does changes what is allocated."""

    def release(self) -> None:
        """Gives back what is reserved for nothing."""


class DeviceMeter:
    """A GPU, as this process's torch sees it. It initialises the driver."""

    def __init__(self, device: str = "cuda") -> None:
        """device: as torch names it. Raises ValueError for one that has no memory of its own."""
        self._device = device
        self._kind = find_kind(device)
        if self._kind.name == "cpu":
            raise ValueError("the CPU's memory is the machine's: take HostMeter()")

    def read(self) -> Reading:
        memory = self._kind.read_memory(self._device)
        assert memory is not None
        return Reading("GPU", memory.allocated, memory.reserved, memory.free, memory.total)

    def glance(self) -> Reading:
        return self.read()

    def release(self) -> None:
        self._kind.empty_cache()


class HostMeter:
    """The memory of the process that makes it, of what machine and control group allow it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._probe = MemoryProbe(self._pid)
        self.glance()

    def read(self) -> Reading:
        """A walk through the page tables, which took 53 ms with 4 GB."""
        return self._compare(measure_memory(self._pid))

    def glance(self) -> Reading:
        """USS when this meter was made, and what has been allocated since. USS itself also grows by the pages of a
        library, 0.2 GB for torch, when the last other process that has them loaded ends."""
        return self._compare(self._probe.read())

    def release(self) -> None:
        SYSTEM.release_free_memory()

    def _compare(self, own: Memory | None) -> Reading:
        if own is None:
            raise OSError(f"cannot read the memory of process {self._pid}; may this user read /proc?")
        machine = read_memory()
        return Reading("Host", own.uss, own.pss, machine.available, machine.limit)


class Cleanups:
    """What is to be dropped when a stage ends, by name."""

    def __init__(self, stage: MonitoredStage) -> None:
        self._stage = stage
        self._drops: dict[str, list[Callable[[], object]]] = {}

    def defer(self, name: str, *drops: Callable[[], object]) -> None:
        """Has the stage end with that cleanup. Without drops it only gives back what is free already.

        drops: drop references, such as the `clear` of a dict or list that holds tensors. A variable of the stage's body
        keeps what it refers to. Raises ValueError if the stage has no cleanup of that name.
        """
        if name not in self._stage.cleanups:
            known = ", ".join(self._stage.cleanups) or "none"
            raise ValueError(f"{self._stage.title} has no cleanup {name!r}; it has: {known}")
        self._drops.setdefault(name, []).extend(drops)

    def __iter__(self) -> Iterator[tuple[str, list[Callable[[], object]]]]:
        """Those that were asked for, in the stage's order."""
        return ((name, self._drops[name]) for name in self._stage.cleanups if name in self._drops)


@dataclass(frozen=True, slots=True)
class MemoryRecovery:
    """added: bytes that a stage had allocated when its cleanups began, less what is meant to stay. left: of them."""

    added: int
    left: int

    @property
    def percent(self) -> float:
        """Of what was added that is free again."""
        return 100 * (self.added - self.left) / self.added


def measure_recovery(entry: int, begin: int, end: int) -> MemoryRecovery | None:
    """Bytes allocated when the stage, its first cleanup began and its last one ended. None if the stage added nothing
    to speak of."""
    added = begin - entry
    return MemoryRecovery(added, min(max(0, end - entry), added)) if added >= NOTABLE else None


class Alarm:
    """Goes off once whenever usage has been elevated for PATIENCE."""

    def __init__(self) -> None:
        self._since: float | None = None  # seconds; infinite once it has gone off

    def update(self, percent: float, now: float) -> bool:
        """Whether it goes off. now: seconds."""
        if percent <= ELEVATED:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= PATIENCE:
            self._since = math.inf
            return True
        return False


class MemoryMonitor:
    """Logs checkpoints, runs the cleanups of stages, and warns. May be used by one thread at a time."""

    def __init__(
        self,
        meter: Meter,
        logger: logging.Logger = _logger,
        clock: Callable[[], float] = time.monotonic,
        interval: float = 1.0,
    ) -> None:
        """Checkpoints go to the logger as info. clock, interval: seconds; of the alarm and between two samples."""
        self._meter = meter
        self._logger = logger
        self._clock = clock
        self._interval = interval
        self._alarm = Alarm()
        self._watched = False

    def checkpoint(self, name: str) -> Reading:
        reading = self._meter.read()
        self._logger.info(reading.describe(name))
        if warning := reading.find_warning():
            self._logger.warning(warning)
        return reading

    def sample(self) -> None:
        """Looks whether an alert is due. The thread does that while a stage runs."""
        reading = self._meter.glance()
        if self._alarm.update(reading.percent, self._clock()):
            state = f"has been above {ELEVATED:.0f}% for {PATIENCE:.0f} s, now {reading.percent:.1f}%"
            advice = "Reduce batch size, use a smaller model, or unload models with --residency stage."
            self._logger.warning(f"ALERT: {reading.kind} memory usage {state}. {advice}")

    def settle(self) -> int:
        """Bytes allocated after all unreferenced memory has been given back."""
        gc.collect()
        self._meter.release()
        return self._meter.glance().allocated

    @contextmanager
    def stage(self, stage: MonitoredStage) -> Iterator[Cleanups]:
        """Runs the body between the stage's checkpoints, then the cleanups that it has deferred, also when it raises.

        A cleanup that raises is logged and the rest goes on; if the body did not raise, the first such error is raised.
        """
        cleanups = Cleanups(stage)
        if stage is MonitoredStage.PIPELINE:
            cleanups.defer("Final")
        with self._watch():
            self.checkpoint(stage.before)
            entry, completed = self._meter.glance().allocated, False
            try:
                yield cleanups
                completed = True
            except BaseException as error:
                _empty_frames(error)
                raise
            finally:
                failures = self._clean_up(stage, cleanups, entry)
                if completed and failures:
                    raise failures[0]

    def _clean_up(self, stage: MonitoredStage, cleanups: Cleanups, entry: int) -> list[Exception]:
        """Returns what has failed, which may be the meter too. entry: bytes allocated when the stage began."""
        failures: list[Exception] = []
        sizes: list[int] = []  # before and after each cleanup
        for name, drops in cleanups:
            attempt = partial(self._attempt, failures, f"{name} Cleanup")
            with attempt():
                self.checkpoint(f"Before {name} Cleanup")
                sizes.append(self._meter.glance().allocated)
            for drop in drops:
                with attempt():
                    drop()
            with attempt():
                sizes.append(self.settle())
                self.checkpoint(f"After {name} Cleanup")
        if len(sizes) > 1 and (recovery := measure_recovery(entry, sizes[0], sizes[-1])):
            self._report(stage, recovery)
        if stage.after:
            with self._attempt(failures, stage.title):
                self.checkpoint(stage.after)
        return failures

    @contextmanager
    def _attempt(self, failures: list[Exception], what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  the body's own error, and the other cleanups, come first
            self._logger.error("ERROR: %s failed: %s: %s", what, type(error).__name__, error)
            failures.append(error)

    def _report(self, stage: MonitoredStage, recovery: MemoryRecovery) -> None:
        title, percent, left = stage.title, recovery.percent, _format_size(recovery.left)
        self._logger.info(
            f"Memory recovered: {percent:.1f}% of the {_format_size(recovery.added)} that {title} had added"
        )
        if 100 - percent > TOLERATED:
            reason = (
                "Look for what still refers to it: a variable of the stage's body, a cache, an exception that is kept."
            )
            self._logger.error(f"ERROR: {left} ({100 - percent:.1f}%) stays allocated after {title}. {reason}")
        elif percent < EXPECTED:
            self._logger.warning(f"WARNING: {left} stays allocated after {title}; {EXPECTED:.0f}% should be recovered.")

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """A stage within another one is watched already."""
        if self._watched:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._sample_until, args=(ended,), name="prefork-memory", daemon=True)
        self._watched = True
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._watched = False

    def _sample_until(self, ended: threading.Event) -> None:
        try:
            self.sample()
            while not ended.wait(self._interval):
                self.sample()
        except Exception as error:  # noqa: BLE001  monitoring must not end the work
            self._logger.error("ERROR: Memory is no longer monitored: %s: %s", type(error).__name__, error)


def _empty_frames(error: BaseException) -> None:
    """The traceback of an error holds the variables of every function that it came through, and so their tensors."""
    seen: set[int] = set()  # two errors may be each other's cause
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
