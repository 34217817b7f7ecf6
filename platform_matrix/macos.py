"""What macOS says of memory: of its own and of any process of the same user."""

from __future__ import annotations

import ctypes
import mmap

_RUSAGE_INFO_V0 = 0  # libproc.h
_AVAILABLE = ("vm.page_free_count", "vm.page_pageable_external_count", "vm.page_purgeable_count")


class _RusageInfo(ctypes.Structure):
    """struct rusage_info_v0, sys/resource.h."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        *((name, ctypes.c_uint64) for name in ("user_time", "system_time", "pkg_idle_wkups", "interrupt_wkups")),
        *((name, ctypes.c_uint64) for name in ("pageins", "wired_size", "resident_size", "phys_footprint")),
        *((name, ctypes.c_uint64) for name in ("proc_start_abstime", "proc_exit_abstime")),
    )


def read_footprint(pid: int) -> int | None:
    """Bytes that a process takes, as Activity Monitor shows it, compressed ones and the GPU's among them; None if it is
    gone or another user's. Pages that a forked process has looked at and not written to count as its own."""
    info = _RusageInfo()
    failed = ctypes.CDLL(None).proc_pid_rusage(pid, _RUSAGE_INFO_V0, ctypes.byref(info))
    return None if failed else int(info.phys_footprint)


def read_pressure() -> int | None:
    """How short memory is by the system's own account: 1 not at all, 2 it warns, 4 it is about to end processes. None
    if it does not say."""
    return _read_number("kern.memorystatus_vm_pressure_level")


def measure_available() -> int:
    """Bytes that are free or would be given up at once: of files, and what programs have said they can do without. What
    psutil calls available is part of it, and little: the system keeps memory full of files."""
    return mmap.PAGESIZE * sum(_read_number(name) or 0 for name in _AVAILABLE)


def _read_number(name: str) -> int | None:
    value, size = ctypes.c_uint64(), ctypes.c_size_t(8)
    library = ctypes.CDLL(None)
    failed = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value
