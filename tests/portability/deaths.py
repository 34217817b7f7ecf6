"""A worker that ends, crashes or is ended by force costs the call that it ran, and no other: `7` after each."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import psutil

from prefork import Runtime, WorkerDied


def load() -> Any:
    import torch

    torch.manual_seed(0)  # each worker loads by itself, and must have the same weights

    return torch.nn.Linear(8, 8)


def answer(_model: Any) -> int:
    return 7


def leave(_model: Any) -> None:
    os._exit(3)


def crash(_model: Any) -> int:
    return ctypes.c_int.from_address(0).value  # what ctypes calls, as string_at, raises OSError on Windows


def be_killed(_model: Any) -> None:
    psutil.Process().kill()


def main() -> int:
    died = 0
    with Runtime(load=load, workers=1, strategy="spawn", force_cpu=True, notice=lambda _: None) as runtime:
        for end in (leave, crash, be_killed):
            try:
                runtime.submit(end).result(60)
            except WorkerDied as error:
                died += 1
                print(f"{end.__name__}: {error}", flush=True)
            print(runtime.submit(answer).result(60), flush=True)
    return int(died < 3)


if __name__ == "__main__":
    sys.exit(main())
