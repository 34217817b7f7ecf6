"""Every message between `prefork check`, the processes that examine a target, and the children that these fork.

command -> examining process    ForkOrder | DeviceOrder, once
examining process -> command    StepBegins, StepEnds ..., DeviceResult, ExaminationEnds
forked child -> its parent      ChildResult | ChildRefused, on a device; elsewhere the encoded result alone
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefork.check.steps import Finding, Step
from prefork.check.targets import Target
from prefork.wire.specification import Specification


@dataclass(frozen=True, slots=True)
class ForkOrder:
    """What the process is told that examines whether a target survives being forked."""

    specification: Specification
    target: Target
    deadline: float | None  # seconds for an inference in a child; None for what follows from the parent's own
    threads: int


@dataclass(frozen=True, slots=True)
class DeviceOrder:
    """What a process is told that examines a target on a device.

    expected: what the device has computed, as the process that did so has left it; None in that process itself.
    device: for CUDA_VISIBLE_DEVICES. kind: of the device's memory: "cuda", or "host" for the CPU in its place.
    no_ipc: why memory cannot be shared there, no_server: why no server can have the model; empty if they can.
    served: what a server is to load.
    """

    specification: Specification
    target: Target
    deadline: float  # seconds for a forked child
    threads: int
    device: str
    kind: str
    expected: bytes | None = None
    served: Specification | None = None
    no_ipc: str = ""
    no_server: str = ""


@dataclass(frozen=True, slots=True)
class StepBegins:
    """A step has begun. patience: seconds that may pass before the next message.

    alone: it runs the target's code itself, with no child: whatever goes wrong tells nothing about forking. who: the
    process, in messages.
    """

    step: str
    patience: float
    alone: bool = False
    who: str = "the process that forks itself"

    @property
    def failure(self) -> Finding:
        """What it means if nothing comes of it."""
        return Finding.UNKNOWN if self.alone else Finding.UNSAFE


@dataclass(frozen=True, slots=True)
class StepEnds:
    """A step is done."""

    step: Step


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """What the device has computed, for the process that examines its children: pickled `difference.Numbers`."""

    numbers: bytes


@dataclass(frozen=True, slots=True)
class ExaminationEnds:
    """No further step is taken, and no further message comes."""


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What a forked child has returned."""

    content: Any


@dataclass(frozen=True, slots=True)
class ChildRefused:
    """Why the device does not let a forked child do it."""

    reason: str
