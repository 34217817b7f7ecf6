"""Which machine gets which unit of work. Touches no process, socket or clock.

A machine is given as many units as it has workers, and one more. When one is lost, so are its units, and they wait
again. One of them may have been the reason: until it is done, a unit that was lost is alone of its kind on a machine,
so that a second loss has one suspect alone, which is set aside. What a machine leaves behind in order is no suspect.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MOST_LOSSES = 2  # machines that a unit may take with it
MOST_FAILURES = 2  # machines on which it may fail for what is not its input's fault
_MOST_IN_A_ROW = 3  # units that may fail so on a machine that does none, where there are others
_SLOW = 3.0  # times the usual time for its length, after which a unit is given to a second machine too
_PATIENCE = 20.0  # seconds on top
_LOOKED_AT = 1000  # units that wait, of which a machine may perhaps have one


class MachineState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    LEFT = "left"


@dataclass(eq=False, slots=True)
class Unit:
    """A job, or a task of a long one. order: smaller ones go first. payload: what it is, for others. sendable: its
    files may be sent to a machine that does not see them. losses: machines that were lost while they had it.
    failures: those on which it failed."""

    order: tuple[int, ...]
    seconds: float
    payload: Any = None
    sendable: bool = True
    losses: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    machines: set[str] = field(default_factory=set)  # that have it now
    since: float = 0.0  # when it was last given to one
    over: bool = False


@dataclass(eq=False, slots=True)
class Machine:
    """One that has joined. room: units that it may have at a time. blind: it does not see the files of the driver."""

    address: str
    name: str
    room: int = 0
    state: MachineState = MachineState.LOADING
    blind: bool = False
    reason: str = ""  # why it was refused
    units: list[Unit] = field(default_factory=list)
    done: int = 0
    seconds: float = 0.0  # of audio, in what it has done
    failed: int = 0  # units, since it last did one

    @property
    def has_room(self) -> bool:
        return self.state is MachineState.READY and len(self.units) < self.room

    @property
    def has_suspect(self) -> bool:
        return any(unit.losses for unit in self.units)


class Dispatch:
    """All machines of a run, and all its units. What a unit has come to is told by who calls."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self._free: dict[str, Machine] = {}  # those that have room, by address
        self._waiting: list[tuple[tuple[int, ...], int, Unit]] = []  # a heap
        self._suspects: list[Unit] = []
        self._ranks = itertools.count()
        self._took = 0.0  # seconds, of all units that are done,
        self._length = 0.0  # for so many seconds of audio

    # -- units ---------------------------------------------------------------------------------------------------------

    def add(self, unit: Unit) -> None:
        if unit.losses:
            self._suspects.append(unit)
        else:
            heapq.heappush(self._waiting, (unit.order, next(self._ranks), unit))

    def drop(self, unit: Unit) -> None:
        """Nobody wants it any more."""
        unit.over = True
        for address in list(unit.machines):
            self._take_back(unit, address)
        if unit in self._suspects:
            self._suspects.remove(unit)

    def finish(self, unit: Unit, address: str, now: float) -> bool:
        """A machine has done it; False if another had before, or nobody wants it any more."""
        if unit.over:
            return False
        machine = self.machines[address]
        machine.done += 1
        machine.failed = 0
        machine.seconds += unit.seconds
        self._took += now - unit.since
        self._length += unit.seconds
        self.drop(unit)
        return True

    def fail(self, unit: Unit, address: str) -> bool:
        """It has failed on a machine for a reason that another machine may not have. Whether it is over."""
        if unit.over:
            return False
        unit.failures.append(address)
        self.machines[address].failed += 1
        self._take_back(unit, address)
        if len(unit.failures) >= MOST_FAILURES or not any(self._list_others(unit)):
            if unit.machines:  # a second machine may do it yet
                return False
            unit.over = True
            return True
        if not unit.machines:
            self.add(unit)
        return False

    def fails_at_all(self, address: str) -> bool:
        """Whether a machine fails at whatever it is given, as with a full disk, and others are there."""
        return self.machines[address].failed >= _MOST_IN_A_ROW and len(self.usable) > 1

    def give_back(self, unit: Unit, address: str) -> None:
        """A machine could not begin it, for no fault of the unit's."""
        if not unit.over:
            self._take_back(unit, address)
            if not unit.machines:
                self.add(unit)

    def _take_back(self, unit: Unit, address: str) -> None:
        unit.machines.discard(address)
        self.machines[address].units.remove(unit)
        self._note_room(self.machines[address])

    def _list_others(self, unit: Unit) -> Iterator[Machine]:
        """Machines on which it has not failed."""
        states = (MachineState.READY, MachineState.LOADING)
        return (m for m in self.machines.values() if m.state in states and m.address not in unit.failures)

    def list_left(self) -> list[Unit]:
        """Units that wait or are with a machine."""
        waiting = [unit for _, _, unit in self._waiting if not unit.over]
        given = {id(unit): unit for machine in self.machines.values() for unit in machine.units}
        return [*waiting, *self._suspects, *given.values()]

    # -- machines ------------------------------------------------------------------------------------------------------

    def join(self, address: str, name: str) -> None:
        self.machines.setdefault(address, Machine(address, name))

    def make_ready(self, address: str, room: int) -> None:
        machine = self.machines[address]
        if machine.state is MachineState.LOADING:
            machine.state, machine.room = MachineState.READY, max(1, room)
            self._note_room(machine)

    def refuse(self, address: str, reason: str) -> None:
        """It gets nothing more, and what it had waits again."""
        machine = self.machines[address]
        machine.state, machine.reason = MachineState.REFUSED, reason
        self._note_room(machine)
        for unit in list(machine.units):
            self.give_back(unit, address)

    def leave(self, address: str, in_order: bool) -> list[Unit]:
        """It is gone; the units that are set aside for that."""
        machine = self.machines.get(address)
        if machine is None or machine.state is MachineState.LEFT:
            return []
        was_refused = machine.state is MachineState.REFUSED
        machine.state = MachineState.LEFT
        self._free.pop(address, None)
        if was_refused:
            return []
        ended = []
        for unit in list(machine.units):
            if not in_order:
                unit.losses.append(address)
            self._take_back(unit, address)
            if unit.machines:
                continue
            if not in_order and len(unit.losses) >= MOST_LOSSES:
                unit.over = True
                ended.append(unit)
            else:
                self.add(unit)
        return ended

    @property
    def usable(self) -> list[Machine]:
        return [m for m in self.machines.values() if m.state in (MachineState.READY, MachineState.LOADING)]

    # -- who gets what -------------------------------------------------------------------------------------------------

    def assign(self, now: float) -> list[tuple[Machine, Unit]]:
        """What is to be given to whom now; the machines have it from here on. A machine gets one unit at a time, so
        that few are shared by all."""
        given: list[tuple[Machine, Unit]] = []
        asked = list(self._free.values())
        while asked:
            again = []
            for machine in asked:
                unit = self._choose(machine)
                if unit is not None:
                    given.append((machine, self._give(machine, unit, now)))
                    if machine.has_room:
                        again.append(machine)
            asked = again
        return given

    def assign_slow(self, now: float) -> list[tuple[Machine, Unit]]:
        """Where nothing waits, and a machine has room: what another has had for too long is given to this one too."""
        if self.waits or not self._free:
            return []
        usual = self._took / self._length if self._length else 0.0
        ready = [machine for machine in self.machines.values() if machine.state is MachineState.READY]
        slow = [
            unit
            for machine in ready
            for unit in machine.units
            if len(unit.machines) == 1
            and not unit.losses
            and now - unit.since > _PATIENCE + _SLOW * usual * unit.seconds
        ]
        given: list[tuple[Machine, Unit]] = []
        for unit in sorted(slow, key=lambda unit: unit.since):
            machine = next((m for m in self._free.values() if self._may_have(m, unit)), None)
            if machine is not None:
                given.append((machine, self._give(machine, unit, now)))
        return given

    def _give(self, machine: Machine, unit: Unit, now: float) -> Unit:
        unit.machines.add(machine.address)
        unit.since = now
        machine.units.append(unit)
        self._note_room(machine)
        return unit

    def _choose(self, machine: Machine) -> Unit | None:
        if self._suspects and not machine.has_suspect:
            for unit in self._suspects:
                if self._may_have(machine, unit):
                    self._suspects.remove(unit)
                    return unit
        passed: list[tuple[tuple[int, ...], int, Unit]] = []
        found: Unit | None = None
        while self._waiting and found is None and len(passed) < _LOOKED_AT:
            entry = heapq.heappop(self._waiting)
            if entry[2].over:
                continue
            if self._may_have(machine, entry[2]):
                found = entry[2]
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._waiting, entry)
        return found

    @staticmethod
    def _may_have(machine: Machine, unit: Unit) -> bool:
        tried = machine.address in unit.failures or machine.address in unit.machines
        return not tried and (unit.sendable or not machine.blind)

    def _note_room(self, machine: Machine) -> None:
        if machine.has_room:
            self._free[machine.address] = machine
        else:
            self._free.pop(machine.address, None)

    @property
    def waiting(self) -> int:
        """Units that do, and some that are over."""
        return len(self._waiting) + len(self._suspects)

    @property
    def waits(self) -> bool:
        """Whether a unit does."""
        return bool(self._suspects) or any(not unit.over for _, _, unit in self._waiting)

    def take_hopeless(self) -> list[Unit]:
        """Where nothing is under way and nobody is loading: units that none of the machines that are ready may have.
        They are over."""
        states = {machine.state for machine in self.machines.values()}
        if MachineState.READY not in states or MachineState.LOADING in states or not self.waits:
            return []
        ready = [machine for machine in self.machines.values() if machine.state is MachineState.READY]
        if any(machine.units for machine in ready):
            return []
        hopeless = [unit for unit in self.list_left() if not any(self._may_have(machine, unit) for machine in ready)]
        for unit in hopeless:
            self.drop(unit)
        return hopeless
