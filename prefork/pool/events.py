"""What happens to the pool: messages from its processes, their ends, and what the program asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prefork.pool.calls import Call
from prefork.pool.tasks import Task
from prefork.wire.messages import (
    FromServer,
    FromWorker,
    FromZygote,
    Memory,
)
from prefork.wire.owner_messages import FromOwner
from prefork.wire.pickling import Pickled


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of all: load the models."""


@dataclass(frozen=True, slots=True)
class ZygoteSent:
    """generation: of the weights that it loads."""

    message: FromZygote
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ZygoteExited:
    """Its workers have died with it. status: as subprocess has it. out_of_memory: the kernel has killed it for want of
    memory. stderr_tail: the last that it has printed. unbegun: numbers of calls that they had not begun, by worker.
    generation: of its weights."""

    status: int
    out_of_memory: bool = False
    stderr_tail: str = ""
    unbegun: Mapping[int, Sequence[int]] = field(default_factory=dict)
    generation: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A worker that was spawned has a pid."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class WorkerSent:
    number: int
    message: FromWorker


class CallEnded(NamedTuple):
    """A worker has answered a call. number: of the call. result: what it has returned; else error, or reason: for want
    of memory. (A tuple, because there may be thousands a second.)"""

    worker: int
    number: int
    result: Pickled | None = None
    error: BaseException | None = None
    reason: str = ""


class CallGave(NamedTuple):
    """A call has yielded something, or reported it, while it runs."""

    worker: int
    number: int
    thing: Pickled
    yielded: bool


@dataclass(frozen=True, slots=True)
class CallsTakenBack:
    """numbers: of calls that a worker was given, and will not begin."""

    worker: int
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class WorkerClosed:
    """Its channel is at its end: it is dead, or will be."""

    number: int


@dataclass(frozen=True, slots=True)
class WorkerReaped:
    """It has exited, and all that it had sent before was handled. unbegun: numbers of calls that it was given and
    has not begun. The rest as for ZygoteExited."""

    number: int
    status: int
    out_of_memory: bool = False
    stderr_tail: str = ""
    unbegun: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ServerSent:
    """place: of its device, among those of the plan."""

    place: int
    message: FromServer


@dataclass(frozen=True, slots=True)
class ServerExited:
    """The rest as for ZygoteExited."""

    place: int
    pid: int
    status: int
    out_of_memory: bool = False
    stderr_tail: str = ""


@dataclass(frozen=True, slots=True)
class OwnerSent:
    place: int
    message: FromOwner


@dataclass(frozen=True, slots=True)
class OwnerExited:
    place: int
    name: str
    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class TasksSubmitted:
    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class CallsSubmitted:
    calls: Sequence[Call]


@dataclass(frozen=True, slots=True)
class CallCancelled:
    """Nobody wants what comes of the call that has this future."""

    future: object


@dataclass(frozen=True, slots=True)
class CallContinued:
    """So many of the things that the call has yielded which has this future were taken."""

    future: object
    count: int


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """load: the pickled function that loads other weights. task: ends with it."""

    load: bytes
    task: Task


@dataclass(frozen=True, slots=True)
class WaitingCancelled:
    """Every task that has not begun ends now."""


@dataclass(frozen=True, slots=True)
class CloseRequested:
    """All ends once the tasks are done."""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Nothing new is started; all ends when what runs is done, or at this time."""

    until: float


@dataclass(frozen=True, slots=True)
class Aborted:
    """Nothing can be done any more, for this reason."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class MemoryMeasured:
    """memory: of the workers, by number; those that could not be measured are left out."""

    memory: Mapping[int, Memory]


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time has passed."""


Event = (
    Started
    | ZygoteSent
    | ZygoteExited
    | WorkerStarted
    | WorkerSent
    | CallEnded
    | CallGave
    | CallsTakenBack
    | WorkerClosed
    | WorkerReaped
    | ServerSent
    | ServerExited
    | OwnerSent
    | OwnerExited
    | TasksSubmitted
    | CallsSubmitted
    | CallCancelled
    | CallContinued
    | ReloadRequested
    | WaitingCancelled
    | CloseRequested
    | DrainRequested
    | Aborted
    | MemoryMeasured
    | Tick
)
