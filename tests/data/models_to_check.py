"""Models of other people: one that is safe to share by fork, and those that are not, each in its own way."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

LOADED_BY = os.getpid()


def load_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.BatchNorm1d(256)).eval()


def infer(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.ones(64, 256))
    return result


# 1: its own pool of threads, started in the parent; a child has the pool and none of the threads.
class Pooled:
    def __init__(self) -> None:
        self.model = load_model()
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="decoder")
        list(self.pool.map(str, range(2)))


def infer_in_pool(pooled: Pooled) -> torch.Tensor:
    return pooled.pool.submit(infer, pooled.model).result()


# 2: OpenMP has its threads in the parent, though torch says afterwards that it uses one.
def load_with_openmp() -> torch.nn.Module:
    torch.set_num_threads(2)
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    torch.set_num_threads(1)
    return load_model()


def load_with_two_threads() -> torch.nn.Module:
    torch.set_num_threads(2)
    return load_model()


# 3: writes to a buffer while it infers: running statistics.
def load_training() -> torch.nn.Module:
    return load_model().train()


# 4: hangs in a child alone.
def infer_and_hang(model: torch.nn.Module) -> torch.Tensor:
    if os.getpid() != LOADED_BY:
        threading.Event().wait()
    return infer(model)


def infer_and_hang_everywhere(model: torch.nn.Module) -> torch.Tensor:
    threading.Event().wait()
    return infer(model)


# What else a child may do.
def infer_with_segfault(model: torch.nn.Module) -> Any:
    ctypes.string_at(0)


def infer_and_exit(model: torch.nn.Module) -> Any:
    os._exit(0)


def infer_and_print(model: torch.nn.Module) -> torch.Tensor:
    os.write(1, b"\xff\xfe\0garbage" * 10_000)
    os.write(2, b"\x1b[31mprefork: not fatal\n")
    return infer(model)


def infer_and_fork(model: torch.nn.Module) -> torch.Tensor:
    if os.fork() == 0:
        time.sleep(600)
    return infer(model)


def infer_and_call_exit(model: torch.nn.Module) -> Any:
    sys.exit(3)


# What the parent alone does, and no child.
def infer_or_raise_in_the_parent(model: torch.nn.Module) -> torch.Tensor:
    if os.getpid() == LOADED_BY:
        os.fork()  # both come back
        raise LookupError("no such word")
    return infer(model)


def infer_or_hang_in_the_parent(model: torch.nn.Module) -> torch.Tensor:
    if os.getpid() == LOADED_BY:
        time.sleep(600)
    return infer(model)


CACHE: dict[str, torch.nn.Module] = {}


def load_into_the_module() -> torch.nn.Module:
    CACHE["model"] = load_model()
    return CACHE["model"]


def infer_from_the_module(_: torch.nn.Module) -> torch.Tensor:
    return infer(CACHE["model"])


# A lock that a thread holds for ever; no child may ask for it.
LOCK = threading.RLock()


def load_with_a_lock_held() -> torch.nn.Module:
    held = threading.Event()

    def hold() -> None:
        with LOCK:
            held.set()
            time.sleep(600)

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    return load_model()


def infer_at_random(model: torch.nn.Module) -> torch.Tensor:
    return torch.rand(3) + time.monotonic()


def infer_what_holds_itself(model: torch.nn.Module) -> list[Any]:
    result: list[Any] = []
    result.append(result)
    return result


def infer_otherwise_in_children(model: torch.nn.Module) -> float:
    return infer(model).sum().item() + (os.getpid() != LOADED_BY)


def infer_only_in_the_parent(model: torch.nn.Module) -> torch.Tensor:
    if os.getpid() != LOADED_BY:
        raise ConnectionError("the server closed the connection")
    return infer(model)


def load_nothing() -> None:
    return None


def load_and_raise() -> None:
    raise RuntimeError("the disk with the weights is gone")


def load_and_die() -> None:
    os._exit(9)


def load_and_exit() -> None:
    sys.exit()


def load_and_fork() -> torch.nn.Module:
    os.fork()  # both come back
    return load_model()


def load_and_close_everything() -> None:
    os.closerange(3, 1024)
    time.sleep(600)


def load_where_nothing_more_can_be_forked() -> torch.nn.Module:
    def fork() -> int:
        raise BlockingIOError("too many processes")

    os.fork = fork
    return load_model()
