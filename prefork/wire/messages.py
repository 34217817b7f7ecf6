"""Everything that one process of prefork says to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefork.engines.batching import Batching
from prefork.platform_matrix.hazards import Hazard
from prefork.platform_matrix.matrix import Plan

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
class Specification:
    """What a process loads. engines: name -> options. load: a pickled function without arguments, or None.

    plan: what has been decided for this machine; None only as long as it has not. preparation: what multiprocessing
    needs to import the user's script again; None if it is not needed. survey: look at the models, do not load them.
    arena: the file that takes the weights, for processes that are not forked; None for memory without a name.
    manifest: a pickled arena.Manifest of weights that another process has put there. batching: what the user wants of
    batches. remote: the models are in another process, which is asked.
    """

    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    load: bytes | None = None
    plan: Plan | None = None
    preparation: Mapping[str, Any] | None = None
    survey: bool = False
    checkpoints: bool = False
    arena: str | None = None
    manifest: bytes | None = None
    batching: Batching = Batching()  # noqa: RUF009  frozen, so one may serve all
    remote: bool = False


@dataclass(frozen=True, slots=True)
class ServerOrder:
    """What a model server is told before it begins. threads: that it computes on, on the CPU. groups: batches, of
    requests as `prefork.pool.blame` knows them, to be run before all others, as they are. limit: what is left of the
    usual size of a batch."""

    specification: Specification
    threads: int
    groups: Sequence[tuple[tuple[int, int], ...]] = ()
    limit: float = 1.0


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a process says of itself once everything is loaded and sealed."""

    weights: int  # bytes in the arena
    seconds: float  # from the start of the process to here
    fingerprints: Mapping[str, Mapping[str, Any]]  # by engine
    hazards: tuple[Hazard, ...] = ()  # none of them unsafe, or there would be no inventory
    names: tuple[str, ...] = ()
    tf32: bool | None = None  # whether matrix products use it; None on devices that do not have it
    private: int | None = None  # bytes that a worker's own are estimated to be at its peak
    manifest: bytes | None = None  # for processes that are to share these weights
    suspicions: Mapping[str, str] = field(default_factory=dict)  # by engine: why one may doubt that this can fork
    batches: Mapping[str, float] = field(default_factory=dict)  # by engine: seconds of audio that it takes in one go
    warnings: tuple[str, ...] = ()  # of what the user has asked for


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of memory as 64-bit words in this machine's byte order, laid out in rows of 1,024: the sum modulo 2^64 of each
    row, mixed with the row's number and added up, and the same of the columns.

    Every change of a single word is seen, and every other that changes a row's or a column's sum, but for one in 2^64.
    Missed is what keeps them all (four words at the corners of a rectangle, plus and minus the same), and what is
    undone before anybody looks.
    """

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Export:
    """What another process needs to open an owner's memory. handle: CUDA's, or a path. device: for people."""

    kind: str
    handle: bytes
    size: int  # bytes
    checksum: Checksum  # of the file that was uploaded
    device: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies. dtype: its name in torch. offset: bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


Layout = Sequence[Place]
