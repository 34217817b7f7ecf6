"""The GPU that is tested, asked without CUDA in this process.

PREFORK_GPU_TESTS=cpu has the CPU stand for it: it tries the tests, where there is no GPU, and finds out nothing else.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest
import torch

from prefork.platform_matrix.matrix import Request
from prefork.platform_matrix.nvml import Load, LoadMeter
from prefork.pool.requests import make_plan

STAND_IN = os.environ.get("PREFORK_GPU_TESTS") == "cpu"
TORCH = "cpu" if STAND_IN else "cuda"  # as torch calls it, in a process that sees no other
DEVICES = ("cpu",) if STAND_IN else ("cuda:0",)  # as the user calls it
STRATEGIES = ("server", "spawn") if STAND_IN else ("server", "ipc", "spawn")
needs_cuda = pytest.mark.skipif(STAND_IN, reason="needs an NVIDIA GPU; the CPU stands for it here")

_COUNT = (
    "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); count = ctypes.c_int()\n"
    "assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0\n"
    "print(count.value)\n"
)
_EVERY = 0.1  # seconds between two looks


@functools.cache
def count_gpus() -> int:
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


@functools.cache
def find_reason() -> str | None:
    """Why these tests cannot run here."""
    if STAND_IN:
        return None
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return "this torch was built without CUDA"
    return None if count_gpus() else "needs an NVIDIA GPU and its driver"


def list_mig() -> list[str]:
    """UUIDs of MIG instances."""
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return re.findall(r"UUID: (MIG-[0-9a-f-]+)", done.stdout)


@functools.cache
def find_name() -> str:
    """Of the first GPU, as CUDA_VISIBLE_DEVICES has it."""
    plan = make_plan(Request(("ctc",), devices=DEVICES))
    return plan.devices[0] if plan.devices else ""


@functools.cache
def _open_meter() -> LoadMeter:
    return LoadMeter([find_name()])


def read_load() -> Load | None:
    """Of the GPU: from NVML, or from nvidia-smi where there is no nvidia-ml-py; None if neither says anything."""
    if STAND_IN:
        return None
    if loads := _open_meter().read():
        return loads[0]
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "-i", find_name(), "--query-gpu=utilization.gpu,memory.used"]
    done = subprocess.run([*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False)
    found = re.fullmatch(r"(\d+), (\d+)", done.stdout.strip())
    return Load(float(found[1]), int(found[2]) << 20) if found else None


@dataclass(slots=True)
class Meter:
    """Looks at the GPU for as long as its block runs."""

    loads: list[Load] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            if (load := read_load()) is not None:
                self.loads.append(load)

    @property
    def busy(self) -> float | None:
        """Percent of the time, the mean."""
        return statistics.fmean(load.busy for load in self.loads) if self.loads else None
