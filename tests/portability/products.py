"""Children that are forked after this process has computed multiply matrices and convolve: status 0; -11 is a crash.

On macOS numpy and torch use Accelerate, which is not made for that. Run it with VECLIB_MAXIMUM_THREADS=1, as prefork's
processes have it, and without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
import torch

_SIZES = (64, 512, 3000)


def main() -> int:
    if not hasattr(os, "fork"):
        print("nothing to try: this system has no fork")
        return 0
    torch.set_num_threads(1)
    statuses = [_try(f"{name} {size}", compute) for size in _SIZES for name, compute in _list(size)]
    return int(any(statuses))


def _list(size: int) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("torch", lambda: torch.ones(size, size) @ torch.ones(size, size)),
        ("convolution", lambda: torch.nn.Conv1d(1, 512, 10, 5)(torch.ones(1, 1, 100 * size))),
        ("numpy", lambda: np.ones((size, size), np.float32) @ np.ones((size, size), np.float32)),
    ]


def _try(name: str, compute: Callable[[], object]) -> int:
    compute()
    if (pid := os.fork()) == 0:
        torch.set_num_threads(4)
        compute()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(name, status, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
