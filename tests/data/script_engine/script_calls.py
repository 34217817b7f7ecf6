"""Functions whose calls are limited, cancelled, initialised, streamed and watched."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefork import report_progress

_kept: dict[str, Any] = {}


def hold(lock: str, seconds: float) -> int:
    """Holds a lock that outlives its process: a file that must not be there."""
    fd = os.open(lock, os.O_CREAT | os.O_EXCL)
    try:
        time.sleep(seconds)
    finally:
        os.close(fd)
        Path(lock).unlink()
    return os.getpid()


def ignore_interruptions(marker: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            Path(marker).touch()
            time.sleep(seconds)
        except KeyboardInterrupt:
            pass


def note(log: str, what: str, seconds: float = 0.0) -> str:
    """A side effect, and then some time."""
    with open(log, "a") as file:
        file.write(f"{what}\n")
    time.sleep(seconds)
    return what


def note_and_die(log: str) -> None:
    note(log, "ran")
    os._exit(3)


def note_and_starve(log: str) -> None:
    note(log, "ran")
    raise MemoryError("no room for this")


def get_pid(*_: object) -> int:
    return os.getpid()


def keep(*things: Any) -> None:
    """An initializer."""
    _kept["things"] = things


def look() -> tuple[int, Any]:
    return os.getpid(), _kept.get("things")


def look_beside_model(model: torch.nn.Module) -> Any:
    kept_model, *others = _kept["things"]
    return kept_model is model, others


def raise_at_once() -> None:
    raise ConnectionError("the database is not there")


def raise_after_first(marker: str) -> None:
    """An initializer that works once."""
    fd = os.open(marker, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    if Path(marker).stat().st_size == 2:
        raise ConnectionError("the database is not there")


def sleep_for_ever() -> None:
    time.sleep(3600)


def load_narrow() -> torch.nn.Module:
    return torch.nn.Linear(4, 2)


def load_wide() -> torch.nn.Module:
    return torch.nn.Linear(8, 1)


def load_none() -> None:
    raise RuntimeError("the disk with the weights is gone")


def find_shape(model: torch.nn.Linear) -> tuple[int, ...]:
    return tuple(model.weight.shape)


def find_shapes(models: dict[str, torch.nn.Linear]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(model.weight.shape) for name, model in models.items()}


def count(until: int, log: str = "", pause: float = 0.0) -> Iterator[int]:
    for number in range(until):
        if log:
            note(log, str(number))
        time.sleep(pause)
        yield number


def count_and_fail(until: int) -> Iterator[int]:
    yield from range(until)
    raise LookupError("nothing is left")


def count_and_die(until: int) -> Iterator[int]:
    yield from range(until)
    time.sleep(0.5)
    os._exit(3)


class Bad:
    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise ValueError("it cannot be made here")


def give_bad() -> Iterator[Any]:
    yield 1
    yield Bad()
    time.sleep(3600)


def give_arrays(count: int, size: int) -> Iterator[np.ndarray[Any, Any]]:
    for number in range(count):
        yield np.full(size, number, np.float32)


def report(steps: int) -> str:
    for step in range(steps):
        report_progress((step, os.getpid()))
    return "done"


def report_unpicklable() -> None:
    report_progress(threading.Lock())


def load_filled(value: float) -> torch.nn.Module:
    model = torch.nn.Linear(4, 1)
    torch.nn.init.constant_(model.weight, value)
    torch.nn.init.zeros_(model.bias)
    return model


def load_slowly(value: float, marker: str, seconds: float) -> torch.nn.Module:
    Path(marker).touch()
    time.sleep(seconds)
    return load_filled(value)


def load_from(file: str) -> torch.nn.Module:
    return load_filled(float(Path(file).read_text()))


def load_without_bias() -> torch.nn.Module:
    return torch.nn.Linear(4, 1, bias=False)


def exit_at_once() -> None:
    os._exit(3)


def score(model: torch.nn.Linear) -> float:
    with torch.inference_mode():
        return float(model(torch.ones(4)).item())


def note_score(model: torch.nn.Linear, log: str, seconds: float) -> float:
    note(log, "begun", seconds)
    return score(model)


def find_parent(_: torch.nn.Module) -> int:
    return os.getppid()
