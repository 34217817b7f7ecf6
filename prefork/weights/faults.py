"""The fatal line: what a worker still prints when it writes to shared weights and is killed for it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from prefork.wire.endings import FATAL
from prefork.wire.specification import LOADED

if TYPE_CHECKING:
    from prefork.weights.arena import Arena


_SA_SIGINFO = 4  # linux: asm-generic/signal.h
_SI_CODE_OFFSET = 8  # bytes into siginfo_t on 64-bit Linux
_SI_ADDR_OFFSET = 16

_installed: list[Any] = []
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Sigaction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


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
    """Makes this process name the weight it wrote to, on `fd`, before SIGSEGV ends it.

    Python's own signal handlers run between two bytecodes, which a faulting instruction never reaches; this one
    runs inside the fault. Whatever else faults passes through it unharmed. Linux only; elsewhere the worker dies
    without a fatal line.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    before = _Sigaction()

    def handle(signum: int, info: int, _context: Any) -> None:
        code = ctypes.c_int.from_address(info + _SI_CODE_OFFSET).value
        if code <= 0:  # a process has sent it: no instruction runs again
            libc.sigaction(signum, ctypes.byref(before), None)
            os.kill(os.getpid(), signum)
            return
        address = ctypes.c_void_p.from_address(info + _SI_ADDR_OFFSET).value or 0
        text = describe_write(arena, address) or f"invalid memory access at {address:#x} (SIGSEGV)"
        os.write(fd, f"{FATAL}{text}\n".encode())
        libc.sigaction(signum, ctypes.byref(before), None)  # the instruction runs again, and now it is the end

    handler = _Handler(handle)
    _installed.append(handler)  # ctypes does not keep it alive
    action = _Sigaction(ctypes.cast(handler, ctypes.c_void_p).value, flags=_SA_SIGINFO)
    if libc.sigaction(signal.SIGSEGV, ctypes.byref(action), ctypes.byref(before)) != 0:
        raise OSError(ctypes.get_errno(), "cannot watch for writes to shared weights")
