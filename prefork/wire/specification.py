"""What a process is to load, and what it says once it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefork.engines.batching import Batching
from prefork.platform_matrix.hazards import Hazard
from prefork.platform_matrix.matrix import Plan

if TYPE_CHECKING:
    from prefork.wire.messages import Memory

LOADED = "load"  # what is called by engine elsewhere, of what the user's function has returned


@dataclass(frozen=True, slots=True)
class Specification:
    """What a process loads. engines: name -> options. load: a pickled function without arguments, or None.

    plan: what has been decided for this machine; None only as long as it has not. preparation: what multiprocessing
    needs to import the user's script again; None if it is not needed. survey: look at the models, do not load them.
    arena: the file that takes the weights, for processes that are not forked; None for memory without a name.
    manifest: a pickled arena.Manifest of weights that another process has put there. batching: what the user wants of
    batches. remote: the models are in another process, which is asked. private: patterns of the names of tensors that
    are not shared. initializer: a pickled function and its arguments, for each worker to call first of all. expected:
    tensors of what is loaded, as the inventory has them; None for any.
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
    private: tuple[str, ...] = ()
    initializer: bytes | None = None
    expected: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a process says of itself once everything is loaded and sealed."""

    weights: int  # bytes in the arena
    seconds: float  # from the start of the process to here
    fingerprints: Mapping[str, Mapping[str, Any]]  # by engine
    hazards: tuple[Hazard, ...] = ()  # none of them unsafe, or there would be no inventory
    tf32: bool | None = None  # whether matrix products use it; None on devices that do not have it
    private: int | None = None  # bytes that a worker's own are estimated to be at its peak
    manifest: bytes | None = None  # for processes that are to share these weights
    suspicions: Mapping[str, str] = field(default_factory=dict)  # by engine: why one may doubt that this can fork
    batches: Mapping[str, float] = field(default_factory=dict)  # by engine: seconds of audio that it takes in one go
    warnings: tuple[str, ...] = ()  # of what the user has asked for
    memory: Memory | None = None  # of the process, before anybody shares it
    tensors: Mapping[str, str] = field(default_factory=dict)  # of what the user's function returned: name, shape, type
