"""What makes a fork unsafe in this process as it is now. Reads, never changes; never imports torch."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_CUDA_ERROR_NOT_INITIALIZED = 3  # cuda.h
_SETTLE_SECONDS = 1.0  # how long a thread may take to come to rest


class Severity(StrEnum):
    HARMLESS = "harmless"  # known not to matter in a forked child
    SUSPECT = "suspect"  # may matter; a canary has to prove that it does not
    UNSAFE = "unsafe"  # a child forked now may hang or crash


@dataclass(frozen=True, slots=True)
class Hazard:
    """Something that a forked child would inherit and may not survive."""

    name: str
    severity: Severity
    what: str  # what is true of this process
    remedy: str


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of this process other than the one that forks. waiting: blocked in the kernel, holding nothing up."""

    tid: int
    name: str
    python: bool  # known to Python's threading module
    waiting: bool


def find_hazards() -> list[Hazard]:
    """Every hazard of this process. A process without an unsafe one may fork."""
    return [*_find_torch_hazards(), *_find_driver_hazards(), *judge_threads(_settle_threads())]


def judge_threads(threads: list[Thread]) -> list[Hazard]:
    """A waiting thread simply does not exist in the child; a running one may hold a lock that stays locked there."""
    return [
        Hazard(
            "thread",
            Severity.HARMLESS if thread.waiting else Severity.UNSAFE,
            f"{'Python' if thread.python else 'native'} thread {thread.name} ({thread.tid}) is "
            f"{'waiting' if thread.waiting else 'running'}",
            "end it before the models are loaded, or load this engine in spawned workers",
        )
        for thread in threads
    ]


def _find_torch_hazards() -> list[Hazard]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    hazards = []
    if (count := torch.get_num_threads()) != 1:
        hazards.append(
            Hazard(
                "openmp",
                Severity.UNSAFE,
                f"torch computes with {count} threads; OpenMP's pool does not survive a fork, and a child hangs in it",
                "call torch.set_num_threads(1) before the first tensor operation, and nothing that raises it again",
            )
        )
    if torch.cuda.is_initialized():
        hazards.append(_cuda_hazard("via torch.cuda"))
    return hazards


def _cuda_hazard(how: str) -> Hazard:
    return Hazard(
        "cuda",
        Severity.UNSAFE,
        f"CUDA was initialised by this process (pid {os.getpid()}, {how}); its runtime does not survive a fork",
        "load this engine on CPU (--force-cpu)",
    )


def _find_driver_hazards() -> list[Hazard]:
    """CUDA initialised behind torch's back: the driver, if it is loaded, says so itself."""
    if sys.platform != "linux" or "libcuda.so" not in Path("/proc/self/maps").read_text():
        return []
    count = ctypes.c_int()
    if ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) == _CUDA_ERROR_NOT_INITIALIZED:
        return []
    return [_cuda_hazard("through the driver API")]


def _settle_threads() -> list[Thread]:
    """The other threads, once those that are about to come to rest have done so."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        threads = _list_threads()
        if all(thread.waiting for thread in threads) or time.monotonic() > deadline:
            return threads
        time.sleep(0.01)


def _list_threads() -> list[Thread]:
    own = threading.get_native_id()
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    if sys.platform != "linux":
        return [Thread(tid or 0, name, True, False) for tid, name in python.items() if tid != own]
    threads = []
    for entry in Path("/proc/self/task").iterdir():
        if (tid := int(entry.name)) == own:
            continue
        try:
            name = (entry / "comm").read_text().strip()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
        threads.append(Thread(tid, python.get(tid) or name, tid in python, state == "S"))
    return threads
