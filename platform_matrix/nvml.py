"""How busy GPUs are, from NVIDIA's management library (extra `gpu`: nvidia-ml-py). It initialises no CUDA."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefork.platform_matrix.versions import find_requirement

_PATIENCE = 1.0  # seconds for an answer, which takes milliseconds
_OPENING_SECONDS = 10.0  # for the library, which may have to wake every GPU first


@dataclass(frozen=True, slots=True)
class Load:
    """Of one GPU over the last sampling period of its driver. busy: percent. used: bytes of its memory, whoever has
    them."""

    busy: float
    used: int


def list_watched(names: Sequence[str]) -> list[int]:
    """Which of these devices have a load to be read: for MIG instances, the driver counts no utilisation. names: as in
    CUDA_VISIBLE_DEVICES."""
    return [place for place, name in enumerate(names) if not name.startswith("MIG-")]


class LoadMeter:
    """Reads the load of GPUs. Where that cannot be had, `missing` says why, and nothing is read.

    names: as in CUDA_VISIBLE_DEVICES; MIG instances are left out. None for all GPUs of the machine.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.missing = ""
        self._library: Any = None
        self._handles: list[Any] = []
        self._asking: threading.Thread | None = None  # the last look, which may be waiting still
        watched = None if names is None else [names[place] for place in list_watched(names)]
        if watched is not None and not watched:
            return
        try:
            import pynvml  # type: ignore[import-not-found]
        except ImportError:
            self.missing = f"GPU utilisation needs nvidia-ml-py: pip install {find_requirement('nvidia-ml-py')}"
            return
        self._library = pynvml
        self._wait_for(partial(self._open, watched), _OPENING_SECONDS)

    def read(self) -> list[Load]:
        """By the order of the names, or else of the driver; empty if it cannot be had."""
        if self._library is None or (self._asking is not None and self._asking.is_alive()):
            return []
        found: list[Load] = []
        return found if self._wait_for(partial(self._ask, found), _PATIENCE) else []

    def _wait_for(self, ask: Callable[[], None], seconds: float) -> bool:
        """Whether it is done by then. In a thread of its own: a driver that waits for a GPU keeps it for ever."""
        self._asking = threading.Thread(target=ask, name="prefork-nvml", daemon=True)
        self._asking.start()
        self._asking.join(seconds)
        if self._asking.is_alive():
            self.missing = f"NVML has not answered within {seconds:g} s"
            return False
        return True

    def _open(self, watched: Sequence[str] | None) -> None:
        library = self._library
        try:
            library.nvmlInit()
            self._handles = self._find_all() if watched is None else [self._find(name) for name in watched]
        except (library.NVMLError, LookupError) as error:
            self.missing = f"NVML: {error}"
            self._library = None

    def _ask(self, found: list[Load]) -> None:
        try:
            found.extend([self._read(handle) for handle in self._handles])
        except self._library.NVMLError as error:
            self.missing = f"NVML: {error}"

    def _find_all(self) -> list[Any]:
        return [self._library.nvmlDeviceGetHandleByIndex(index) for index in range(self._library.nvmlDeviceGetCount())]

    def _find(self, name: str) -> Any:
        """Raises NVMLError, LookupError."""
        if name.startswith("GPU-"):
            return self._library.nvmlDeviceGetHandleByUUID(name)
        handles = self._find_all()
        if len(handles) != 1:  # NVML counts by PCI bus, CUDA by speed: the same number may be another GPU
            raise LookupError(f"which of {len(handles)} GPUs is number {name} of CUDA is not known")
        return handles[0]

    def _read(self, handle: Any) -> Load:
        used = int(self._library.nvmlDeviceGetMemoryInfo(handle).used)
        return Load(float(self._library.nvmlDeviceGetUtilizationRates(handle).gpu), used)
