"""What macOS has and Linux has not, made of what Linux has, for `tests.systems`."""

from __future__ import annotations

import ctypes
import os
from collections import namedtuple
from typing import Any

import psutil

_LINUX = frozenset({"prctl", "malloc_trim", "memfd_create"})  # functions of its C library alone
_own_load = ctypes.CDLL


def add(values: dict[str, dict[str, Any]]) -> None:
    """What prefork finds in each module in place of Linux's, or beside it."""
    values["platform"] = {"system": lambda: "Darwin", "release": lambda: "24.1.0", "machine": lambda: "arm64"}
    values["ctypes"] = {"CDLL": _load_library}
    psutil.Process.memory_full_info = _measure


def _load_library(name: str | None, *arguments: Any, **options: Any) -> Any:
    if name is None:
        return _Library(_own_load(None, *arguments, **options))
    raise OSError(f"dlopen({name}, 0x0006): tried: '{name}' (no such file)")


class _Library:
    """The process's own symbols: those of macOS that are made here, and the rest but Linux's."""

    def __init__(self, own: ctypes.CDLL) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        if name in _LINUX:
            raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
        return _FUNCTIONS[name] if name in _FUNCTIONS else getattr(self._own, name)


def _count_images() -> int:
    return 0


def _name_image(_: int) -> None:
    return None


_FUNCTIONS = {"_dyld_image_count": _count_images, "_dyld_get_image_name": _name_image}
_own_measure = psutil.Process.memory_full_info
_Memory = namedtuple("_Memory", "rss vms uss")


def _measure(process: Any) -> Any:
    """task_for_pid is denied for other processes, even those of the same user."""
    if process.pid != os.getpid():
        raise psutil.AccessDenied(process.pid)
    found = _own_measure(process)
    return _Memory(found.rss, found.vms, found.uss)
