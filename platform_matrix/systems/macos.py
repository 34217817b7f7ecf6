"""What only macOS has."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import threading
from typing import Any

from prefork.platform_matrix.systems.posix import Posix

_GET_PATH = 50  # F_GETPATH, sys/fcntl.h
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


class MacOS(Posix):
    has_metal = True
    loses_descriptors = True
    network_spoils_forks = True
    hides_memory = True

    # -- processes ---------------------------------------------------------------------------------------------

    def watch_parent(self, parent: int) -> None:
        """The kernel tells of its end: NOTE_EXIT, kqueue(2)."""
        queue = _select.kqueue()
        event = _select.kevent(parent, _select.KQ_FILTER_PROC, _select.KQ_EV_ADD, _select.KQ_NOTE_EXIT)
        try:
            queue.control([event], 0)
        except ProcessLookupError:  # it ended before we asked
            os._exit(1)
        if os.getppid() != parent:
            os._exit(1)
        threading.Thread(target=_wait_and_end, args=(queue,), name="prefork-parent", daemon=True).start()

    def list_libraries(self) -> list[bytes]:
        loader = ctypes.CDLL(None)
        loader._dyld_get_image_name.restype = ctypes.c_char_p
        return [loader._dyld_get_image_name(index) or b"" for index in range(loader._dyld_image_count())]

    def name_descriptor(self, fd: int) -> str:
        import fcntl

        try:
            return os.fsdecode(fcntl.fcntl(fd, _GET_PATH, bytes(1024)).rstrip(b"\0"))
        except OSError:
            return ""

    # -- memory --------------------------------------------------------------------------------------------------

    def count_own(self, pid: int) -> int | None:
        """What Activity Monitor shows, compressed memory and the GPU's included. Pages that a forked process has looked
        at and not written to are among them."""
        info = _RusageInfo()
        failed = ctypes.CDLL(None).proc_pid_rusage(pid, _RUSAGE_INFO_V0, ctypes.byref(info))
        return None if failed else int(info.phys_footprint)

    def read_pressure(self) -> int | None:
        return _read_number("kern.memorystatus_vm_pressure_level")

    def measure_available(self) -> int:
        """Free, of files, and what programs have said they can do without. psutil counts a part of it, and little: the
        system keeps memory full of files."""
        return mmap.PAGESIZE * sum(_read_number(name) or 0 for name in _AVAILABLE)


def _read_number(name: str) -> int | None:
    """sysctl(3); None if the system has none of that name."""
    value, size = ctypes.c_uint64(), ctypes.c_size_t(8)
    library = ctypes.CDLL(None)
    failed = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def _wait_and_end(queue: Any) -> None:
    while not queue.control(None, 1):
        pass
    os._exit(1)


_select: Any = select  # of which type checkers do not know all on other systems
