"""How busy the GPUs are, from NVIDIA's management library (extra `gpu`: nvidia-ml-py). It initialises no CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """Of one GPU over the last sampling period of its driver. busy: percent. used: bytes of its memory."""

    busy: float
    used: int


class LoadMeter:
    """Reads the load of the machine's GPUs. Where that cannot be had, `missing` says why, and nothing is read."""

    def __init__(self) -> None:
        self.missing = ""
        self._library: Any = None
        try:
            import pynvml  # type: ignore[import-not-found]
        except ImportError:
            self.missing = "GPU utilisation needs nvidia-ml-py: pip install 'prefork[gpu]'"
            return
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self.missing = f"NVML: {error}"
            return
        self._library = pynvml

    def read(self) -> list[Load]:
        """By the driver's order of GPUs, which CUDA_VISIBLE_DEVICES does not change; empty if it cannot be had."""
        if self._library is None:
            return []
        try:
            return [self._read(handle) for handle in self._handles]
        except self._library.NVMLError as error:
            self.missing = f"NVML: {error}"
            return []

    def _read(self, handle: Any) -> Load:
        used = int(self._library.nvmlDeviceGetMemoryInfo(handle).used)
        return Load(float(self._library.nvmlDeviceGetUtilizationRates(handle).gpu), used)
