"""Models and functions as users have them, for Runtime(load=...) and submit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Tied(torch.nn.Module):
    """Two layers with one weight, a buffer, a view, and weight normalisation, which cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 64)
        self.second = torch.nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(1, 1, 3))
        self.norm = torch.nn.BatchNorm1d(64)


class Holder:
    """A model that is no module's attribute: in a closure, in slots, in a list of dicts."""

    __slots__ = ("call", "parts")

    def __init__(self, model: torch.nn.Module) -> None:
        self.parts = [{"model": model}]
        self.call = lambda x: model(x) + 0


def load_linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(64, 64).eval()


def load_tied() -> Holder:
    return Holder(Tied())


def load_nothing_good() -> None:
    raise RuntimeError("the disk with the weights is gone")


def load_with_threads() -> torch.nn.Module:
    torch.set_num_threads(2)
    return load_linear()


def score(model: torch.nn.Module, value: float) -> float:
    return float(model(torch.full((64,), float(value))).sum().detach())


def _list_usable() -> list[int]:
    """Descriptors that can be read from or written to."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            found += [fd] if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH else []
    return sorted(found)


def describe(model: torch.nn.Module, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "threads": torch.get_num_threads(),
        "random": (random.random(), float(np.random.random()), float(torch.rand(1))),
        "fds": _list_usable(),
        "group": os.getsid(0),
    }


def train(model: torch.nn.Linear) -> None:
    model.weight.data.mul_(2)


def die(model: torch.nn.Module, status: int = 3) -> None:
    os._exit(status)


def die_once(model: torch.nn.Module, marker: str) -> int:
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(3)
    return os.getpid()


def fail(model: torch.nn.Module) -> None:
    raise LookupError("nothing of that name")


def add(left: int, right: int) -> int:
    return left + right


def return_unpicklable(model: torch.nn.Module) -> Any:
    return threading.Lock()


def return_closure(model: torch.nn.Module, value: int) -> Any:
    return lambda: value


class Demanding(Exception):
    """Can be pickled, and is not made again by pickle: it wants two arguments and keeps one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)
        self.why = why


def demand(model: torch.nn.Module) -> None:
    raise Demanding("more", "because")


def load_with_threads_if(marker: str) -> torch.nn.Module:
    return load_with_threads() if Path(marker).exists() else load_linear()


def load_at_random() -> torch.nn.Module:
    return torch.nn.Linear(64, 64)


def find_mapping(model: torch.nn.Linear) -> tuple[int, str]:
    """This process, and the line of its memory map that the model's weight lies in."""
    time.sleep(0.3)
    address = model.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return os.getpid(), line
    return os.getpid(), ""
