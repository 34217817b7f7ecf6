"""Everything that one process of prefork says to another, a frozen dataclass for each message.

    supervisor -> zygote           Specification, then ForkWorker, KillWorker, InterruptWorker, AttachExports
    zygote -> supervisor           Surveyed | WeightsPacked, ModelsLoaded, then WorkerForked, WorkerExited
                                   or why not: LoadFailed, ForkUnsafe, IPCUnavailable
    supervisor -> worker           (Specification, if spawned;) RunTask, ConnectServer, ChangeCredits, RefuseRequest
    worker -> supervisor           (ModelsLoaded | LoadFailed, if spawned; WorkerInitializes, InitializerFailed, if it
                                   has an initializer;) WorkerReady, TaskProgress, ItemFailed,
                                   TaskDone | TaskFailed | TaskOutOfMemory, TaskUsage, WeightsCorrupted, WorkerBroken
    supervisor -> server           ServerOrder, then ConnectWorker, DisconnectWorker, DecideBatch
    server -> supervisor           ModelsLoaded or LoadFailed, then BatchStarted, BatchDone | BatchFailed,
                                   RequestsDropped, ServerBroken
    worker -> server               InferRequest, KeepRequests
    server -> worker               InferOutput, InferError

What a message carries as bytes is pickled by whoever made it: the supervisor passes it on, and never imports torch.
File descriptors go beside a message: see `prefork.wire.channel`. More are in `prefork.wire.calls`,
`prefork.wire.owner_messages`, and for `prefork check` in `prefork.check.messages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefork.wire.exports import Export
from prefork.wire.memory_file import Layout
from prefork.wire.specification import Inventory, Specification

Request = tuple[int, int]  # a worker's number, and that of its request
Group = tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process uses, in bytes. pss: its share of what it shares included. uss: its own alone."""

    pss: int
    uss: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a worker took for a task, and what it has after it. peak: bytes of its own at the most, None where nobody
    can say; taken: the same, less what it had before."""

    memory: Memory
    peak: int | None
    taken: int | None


@dataclass(frozen=True, slots=True)
class ServerOrder:
    """What a model server is told before it begins. threads: that it computes on, on the CPU. groups: batches, of
    requests as `prefork.pool.blame` knows them, to be run before all others, as they are. limit: what is left of the
    usual size of a batch. measured: by engine, what batches took, as `Loaded.measured` has it."""

    specification: Specification
    threads: int
    groups: Sequence[tuple[tuple[int, int], ...]] = ()
    limit: float = 1.0
    measured: Mapping[str, Sequence[tuple[float, int]]] = field(default_factory=dict)


# -- to the zygote, and what it answers -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForkWorker:
    """Fork one. place: of its device, among those of the plan. Descriptors: its channel, its stderr."""

    number: int
    threads: int
    place: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """Only its parent can be sure that a pid is still the worker's."""

    number: int


@dataclass(frozen=True, slots=True)
class InterruptWorker:
    """The call that it runs is to end."""

    number: int


@dataclass(frozen=True, slots=True)
class AttachExports:
    """The weights are on every device; workers attach to them."""

    exports: tuple[Export, ...]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What models say of themselves before they are loaded: bytes of the weights and of a worker's own, None if
    they cannot say; what outputs depend on, by engine."""

    weights: int | None
    private: int | None
    fingerprints: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ModelsLoaded:
    """Everything is loaded: by a zygote, a spawned worker, or a server."""

    inventory: Inventory


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """Nothing can be loaded, here or anywhere. traceback: empty where the reason says it all. device_failed: it is the
    device's fault."""

    reason: str
    traceback: str = ""
    device_failed: bool = False


@dataclass(frozen=True, slots=True)
class ForkUnsafe:
    """The zygote has loaded its models and must not fork."""

    reason: str


@dataclass(frozen=True, slots=True)
class IPCUnavailable:
    """Memory of a device cannot be shared between processes here."""

    reason: str


@dataclass(frozen=True, slots=True)
class WeightsPacked:
    """The zygote has the weights in their file, and waits until they are on every device. size: bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class WorkerForked:
    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """status: as `os.waitstatus_to_exitcode` has it, or CUT_OFF."""

    number: int
    status: int


# -- to a worker, and what it answers -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunTask:
    """task: its name and arguments, pickled."""

    task: bytes


@dataclass(frozen=True, slots=True)
class ConnectServer:
    """Here is a connection to the server, perhaps not the first. Descriptor: its socket.

    credits: elements that may be under way, by engine. most: requests that may be."""

    credits: Mapping[str, int]
    most: int


@dataclass(frozen=True, slots=True)
class ChangeCredits:
    """The server's batches have another size. credits: as of ConnectServer."""

    credits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RefuseRequest:
    """No server can do this. error: as `pickle_error` makes it."""

    request: int
    error: bytes


@dataclass(frozen=True, slots=True)
class WorkerInitializes:
    """It calls the user's initializer."""


@dataclass(frozen=True, slots=True)
class InitializerFailed:
    """The worker ends. error: as `pickle_error` makes it."""

    error: bytes


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """It waits for its first task."""

    pid: int


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """One item of the task is done. position: seconds reached in the recording."""

    item: int
    position: float
    result: bytes


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """One item of the task can never be done; the others go on. error: as `pickle_error` makes it."""

    item: int
    error: bytes


@dataclass(frozen=True, slots=True)
class TaskDone:
    result: bytes


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """error: as `pickle_error` makes it."""

    error: bytes


@dataclass(frozen=True, slots=True)
class TaskOutOfMemory:
    reason: str


@dataclass(frozen=True, slots=True)
class TaskUsage:
    """What the task has taken, and what the worker keeps. usage: None if nobody can say. steps: seconds, by engine and
    step."""

    usage: Usage | None
    steps: Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class WeightsCorrupted:
    """The weights in a device's memory are not what they were; what was computed on them does not count."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerBroken:
    """As ServerBroken, of a worker that computes by itself."""

    reason: str
    device_failed: bool


# -- to a model server, and what it answers -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConnectWorker:
    """Descriptor: a socket to the worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class DisconnectWorker:
    """A worker has gone."""

    worker: int


@dataclass(frozen=True, slots=True)
class DecideBatch:
    """What becomes of a batch that has failed. groups: batches to be run before all others, as they are. refused:
    requests that are not run again. limit: what is left of the usual size of a batch."""

    groups: Sequence[Group]
    refused: Sequence[Request]
    limit: float


@dataclass(frozen=True, slots=True)
class BatchStarted:
    batch: int
    requests: Group
    elements: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """engine: whose it was. size, taken: bytes of the device's memory as estimated, and taken; 0 if nobody can say.
    seconds: of audio that its batches take from now on; None if as many as before."""

    batch: int
    engine: str = ""
    size: float = 0.0
    taken: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """The server lives. error: as `pickle_error` makes it. text: the same, to read."""

    batch: int
    out_of_memory: bool
    error: bytes
    text: str


@dataclass(frozen=True, slots=True)
class RequestsDropped:
    """Nobody waits for these any more."""

    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class ServerBroken:
    """Its GPU can be used no more by this process, which ends. device_failed: nothing that was computed is to blame."""

    reason: str
    device_failed: bool = False


# -- between a worker and a server ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A segment, prepared. elements: its length. seed: for what draws random numbers. Descriptor: the memory with its
    tensors."""

    request: int
    engine: str
    elements: int
    seed: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class KeepRequests:
    """Of all that this worker has asked, it still waits for these."""

    requests: Sequence[int]


@dataclass(frozen=True, slots=True)
class InferOutput:
    """Descriptor: the memory with the tensors."""

    request: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class InferError:
    """error: as `pickle_error` makes it."""

    request: int
    error: bytes


FromZygote = (
    Surveyed | WeightsPacked | ModelsLoaded | LoadFailed | ForkUnsafe | IPCUnavailable | WorkerForked | WorkerExited
)
FromWorker = (
    ModelsLoaded
    | LoadFailed
    | WorkerInitializes
    | InitializerFailed
    | WorkerReady
    | TaskProgress
    | ItemFailed
    | TaskDone
    | TaskFailed
    | TaskOutOfMemory
    | TaskUsage
    | WeightsCorrupted
    | WorkerBroken
)
FromServer = ModelsLoaded | LoadFailed | BatchStarted | BatchDone | BatchFailed | RequestsDropped | ServerBroken
