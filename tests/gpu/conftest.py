"""What needs an NVIDIA GPU. Run it, and see its figures, with

    pytest -m gpu tests/gpu -s

on a machine with a GPU and a torch that was built for CUDA; CUDA_VISIBLE_DEVICES chooses the GPU. Without `-m gpu`, or
without a GPU, everything here is skipped; see `tests.gpu.machine` for how the CPU can stand for it. The process that
runs the tests stands for the zygote: it must never use CUDA itself, or what it forks could not; whoever needs CUDA does
so in a process of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.gpu.machine import find_reason

# Whoever asks torch here whether there is a GPU, transformers for one, asks NVML: CUDA's runtime would be initialised.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest itself looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if _FOLDER in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        item.add_marker(pytest.mark.exec)  # as users' processes start, and not all that tests.launcher imports is there
    if not ours:
        return
    torch.set_num_threads(1)  # this process forks: it must have no pool of threads
    reason = find_reason() if "gpu" in config.option.markexpr else "is run by: pytest -m gpu tests/gpu"
    if reason is not None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
