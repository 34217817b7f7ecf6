"""What the pool wants done: processes started and killed, messages sent, tasks ended. See `prefork.pool.processes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefork.platform_matrix.matrix import Plan
from prefork.pool.tasks import Task
from prefork.wire.calls import ContinueCall
from prefork.wire.messages import (
    AttachExports,
    ChangeCredits,
    ConnectServer,
    DecideBatch,
    DisconnectWorker,
    ForkWorker,
    InterruptWorker,
    KillWorker,
    RefuseRequest,
    RunTask,
    ServerOrder,
)
from prefork.wire.pickling import Pickled
from prefork.wire.specification import Specification


@dataclass(frozen=True, slots=True)
class StartZygote:
    """generation: of the weights that it loads; there may be one for each."""

    specification: Specification
    plan: Plan
    generation: int = 0


@dataclass(frozen=True, slots=True)
class EndZygote:
    """In order, and with it its workers; nothing that it has sent since matters."""

    generation: int = 0


@dataclass(frozen=True, slots=True)
class KillZygote:
    generation: int = 0


@dataclass(frozen=True, slots=True)
class SendZygote:
    message: KillWorker | InterruptWorker | AttachExports
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Fork:
    order: ForkWorker
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Spawn:
    """A process that loads once it gets its specification. device: for CUDA_VISIBLE_DEVICES, None to leave it."""

    number: int
    plan: Plan
    device: str | None


@dataclass(frozen=True, slots=True)
class SendWorker:
    number: int
    message: Specification | RunTask | RefuseRequest | ChangeCredits | ContinueCall


@dataclass(frozen=True, slots=True)
class SendCalls:
    """first: the number of the first call, as the worker counts them; the others follow. at_once: the worker has
    nothing to do, and begins it right away."""

    number: int
    first: int
    calls: Sequence[Task]
    at_once: bool


@dataclass(frozen=True, slots=True)
class PassOn:
    """What a call has yielded, or reported, to who waits for it."""

    call: Task
    thing: Pickled
    yielded: bool


@dataclass(frozen=True, slots=True)
class TakeCallsBack:
    """Those that a worker has not begun: CallsTakenBack says how many."""

    number: int


@dataclass(frozen=True, slots=True)
class KillSpawned:
    number: int


@dataclass(frozen=True, slots=True)
class InterruptSpawned:
    """As InterruptWorker, of a worker that was spawned."""

    number: int


@dataclass(frozen=True, slots=True)
class StartServer:
    """place: of its device, among those of the plan. device: for CUDA_VISIBLE_DEVICES, empty on the CPU."""

    place: int
    name: str
    plan: Plan
    device: str
    order: ServerOrder


@dataclass(frozen=True, slots=True)
class SendServer:
    place: int
    message: DecideBatch | DisconnectWorker


@dataclass(frozen=True, slots=True)
class Connect:
    """A worker with a server. message: for the worker."""

    number: int
    place: int
    message: ConnectServer


@dataclass(frozen=True, slots=True)
class KillServer:
    place: int


@dataclass(frozen=True, slots=True)
class EndServers:
    """idle: places of those that end by themselves; the others are killed, because nobody waits for what they do."""

    idle: frozenset[int]


@dataclass(frozen=True, slots=True)
class StartOwners:
    """One for each device of the plan. size: bytes of the weights, which are in the arena's file."""

    plan: Plan
    size: int


@dataclass(frozen=True, slots=True)
class EndOwners:
    pass


@dataclass(frozen=True, slots=True)
class OpenArena:
    """A file for the weights, if there is none: every specification names it from here on."""


@dataclass(frozen=True, slots=True)
class CloseArena:
    pass


@dataclass(frozen=True, slots=True)
class Complete:
    """A task has come to its end: with a pickled result, or an error."""

    task: Task
    result: bytes | Pickled | None
    error: BaseException | None

    def complete(self) -> None:
        self.task.done(self.result, self.error)


@dataclass(frozen=True, slots=True)
class Announce:
    """The models are loaded, or never will be."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Nothing new begins from here on, in the threads of services too."""


@dataclass(frozen=True, slots=True)
class Notify:
    """The user should know."""

    text: str


@dataclass(frozen=True, slots=True)
class LogText:
    """A traceback, beside what the processes print."""

    text: str


Action = (
    StartZygote
    | EndZygote
    | KillZygote
    | SendZygote
    | Fork
    | Spawn
    | SendWorker
    | SendCalls
    | PassOn
    | TakeCallsBack
    | KillSpawned
    | InterruptSpawned
    | StartServer
    | SendServer
    | Connect
    | KillServer
    | EndServers
    | StartOwners
    | EndOwners
    | OpenArena
    | CloseArena
    | Complete
    | Announce
    | Interrupt
    | Notify
    | LogText
)


class Outbox:
    """One turn of the pool: the time it happens at, by time.monotonic(), and what is to be done, in that order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._actions: list[Action] = []

    def do(self, action: Action) -> None:
        self._actions.append(action)

    def notify(self, text: str) -> None:
        self._actions.append(Notify(text))

    def take(self) -> list[Action]:
        """What is to be done, once."""
        actions, self._actions = self._actions, []
        return actions
