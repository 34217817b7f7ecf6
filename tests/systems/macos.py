"""What macOS has and Linux has not, made of what Linux has, for `tests.systems`."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import select
import socket
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PRESSURE = "PREFORK_TESTS_PRESSURE"  # the variable: how short memory is, 1, 2 or 4
_LINUX = frozenset({"prctl", "malloc_trim", "memfd_create"})  # functions of its C library alone
_own_load = ctypes.CDLL
_own_pair: Any = socket.socketpair


def add(values: dict[str, dict[str, Any]]) -> None:
    """What prefork finds in each module in place of Linux's, or beside it."""
    values["platform"] = {"system": lambda: "Darwin", "release": lambda: "24.1.0", "machine": lambda: "arm64"}
    values["ctypes"] = {"CDLL": _load_library}
    values["socket"] = {"socketpair": _pair_sockets}
    values["select"] = {
        "kqueue": _Queue,
        "kevent": _Event,
        "KQ_FILTER_PROC": -5,
        "KQ_EV_ADD": 1,
        "KQ_NOTE_EXIT": 0x80000000,
    }
    psutil.Process.memory_full_info = _measure
    psutil.virtual_memory = _look


def _load_library(name: str | None, *arguments: Any, **options: Any) -> Any:
    if name is None:
        return _Library(_own_load(None, *arguments, **options))
    raise OSError(f"dlopen({name}, 0x0006): tried: '{name}' (no such file)")


def _pair_sockets(family: int | None = None, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> Any:
    """Python has the name of each kind; the kernel knows streams and datagrams alone between processes."""
    if kind == socket.SOCK_SEQPACKET:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")
    return _own_pair(family, kind, protocol)


class _Library:
    """The process's own symbols: those of macOS that are made here, and the rest but Linux's."""

    def __init__(self, own: ctypes.CDLL) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        if name in _LINUX:
            raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
        return _FUNCTIONS[name] if name in _FUNCTIONS else getattr(self._own, name)


class _Event(NamedTuple):
    """What is waited for: the end of a process."""

    ident: int
    filter: int
    flags: int
    fflags: int


class _Queue:
    """kqueue(2), as far as prefork asks it: which processes have ended."""

    def __init__(self) -> None:
        self._waiting = select.poll()
        self._events: dict[int, _Event] = {}

    def control(self, changes: Iterable[_Event] | None, most: int, timeout: float | None = None) -> list[_Event]:
        for event in changes or ():
            assert event[1:] == (-5, 1, 0x80000000)
            descriptor = os.pidfd_open(event.ident)
            self._events[descriptor] = event
            self._waiting.register(descriptor, select.POLLIN)
        if not most:
            return []
        return [self._events[fd] for fd, _ in self._waiting.poll(None if timeout is None else 1000 * timeout)][:most]


def _count_images() -> int:
    return 0


def _name_image(_: int) -> None:
    return None


def _measure_footprint(pid: int, _flavor: int, info: Any) -> int:
    """Of shared memory what the process has looked at counts as its own, as on macOS."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return -1
    sizes = dict(re.findall(r"^(RssAnon|RssShmem):\s+(\d+) kB", status, re.MULTILINE))
    info._obj.phys_footprint = 1024 * sum(map(int, sizes.values()))
    return 0


def _read_system(name: bytes, value: Any, _size: Any, _new: Any, _new_size: Any) -> int:
    """A Mac has little available all the time, most of which is full of files; and is not short of memory for that."""
    numbers = {
        b"kern.memorystatus_vm_pressure_level": int(os.environ.get(PRESSURE, "1")),
        b"vm.page_free_count": 1000,
        b"vm.page_pageable_external_count": _own_look().available // mmap.PAGESIZE,
        b"vm.page_purgeable_count": 1000,
    }
    if name not in numbers:
        return -1
    value._obj.value = numbers[name]
    return 0


_FUNCTIONS = {
    "_dyld_image_count": _count_images,
    "_dyld_get_image_name": _name_image,
    "proc_pid_rusage": _measure_footprint,
    "sysctlbyname": _read_system,
}
_own_look = psutil.virtual_memory
_own_measure = psutil.Process.memory_full_info
_Memory = namedtuple("_Memory", "rss vms uss")


def _look() -> Any:
    found = _own_look()
    return found._replace(available=found.total // 50)


def _measure(process: Any) -> Any:
    """task_for_pid is denied for other processes, even those of the same user."""
    if process.pid != os.getpid():
        raise psutil.AccessDenied(process.pid)
    found = _own_measure(process)
    return _Memory(found.rss, found.vms, found.uss)
