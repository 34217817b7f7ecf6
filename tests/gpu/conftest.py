"""What needs an NVIDIA GPU. Run it, and see its figures, with

    pytest -m gpu tests/gpu -s

on a machine with a GPU and a torch that was built for CUDA; CUDA_VISIBLE_DEVICES chooses the GPU. Without `-m gpu`, or
without a GPU, everything here is skipped. The process that runs the tests stands for the zygote: it must never use CUDA
itself, or what it forks could not; whoever needs CUDA does so in a process of its own.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_FOLDER = Path(__file__).parent
_COUNT = (
    "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); count = ctypes.c_int()\n"
    "assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0\n"
)


@functools.cache
def _find_reason() -> str | None:
    """Why these tests cannot run here."""
    if not torch.backends.cuda.is_built():
        return "this torch was built without CUDA"
    if subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, check=False).returncode != 0:
        return "needs an NVIDIA GPU and its driver"
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest itself looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if _FOLDER in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
    if not ours:
        return
    torch.set_num_threads(1)  # this process forks: it must have no pool of threads
    reason = _find_reason() if "gpu" in config.option.markexpr else "is run by: pytest -m gpu tests/gpu"
    if reason is not None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
