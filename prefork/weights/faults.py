"""The fatal line: what a worker still prints when it writes to shared weights and is killed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.endings import FATAL
from prefork.wire.specification import LOADED

if TYPE_CHECKING:
    from prefork.weights.arena import Arena


def describe_write(arena: Arena, address: int) -> str | None:
    """What to say of a write to this address; None if it is not in the arena."""
    region = arena.find(address)
    if region is None:
        return None
    who = "the model" if region.owner == LOADED else f"engine {region.owner}"
    text = (
        f"{who} wrote to shared weights ({region.tensor}), which are read-only in a worker; "
        "put the model into eval mode, or let it write to a copy"
    )
    if region.owner == LOADED:
        text += f"; if each worker is to have its own: Runtime(..., private=({region.tensor!r},))"
    return text


def watch_for_writes(arena: Arena, fd: int) -> None:
    """Makes this process name the weight it wrote to, on `fd`, before SIGSEGV ends it. Linux only; elsewhere the worker
    dies without a fatal line."""

    def describe(address: int) -> bytes:
        text = describe_write(arena, address) or f"invalid memory access at {address:#x} (SIGSEGV)"
        return f"{FATAL}{text}\n".encode()

    SYSTEM.watch_faults(describe, fd)
