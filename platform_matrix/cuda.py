"""CUDA's driver, by ctypes: docs.nvidia.com/cuda/cuda-driver-api. Needs neither the toolkit nor torch.

The one binding that prefork has. `cuda-bindings` would do the same, but comes with torch on Linux alone, and whoever
looks at a machine may have no torch.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from prefork.platform_matrix.errors import PreforkError

_LIBRARIES = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_NOT_INITIALIZED, _NO_DEVICE = 3, 100  # CUDA_ERROR_NOT_INITIALIZED, CUDA_ERROR_NO_DEVICE, cuda.h


class CUDAError(PreforkError):
    """A call that the driver does not do. code: the CUresult, None where there is no such call, or no driver. name: the
    code's, such as CUDA_ERROR_OUT_OF_MEMORY, or empty. reason: in the driver's words."""

    def __init__(self, function: str, code: int | None, name: str, reason: str) -> None:
        super().__init__(f"{function}: {name or reason}")
        self.code, self.name, self.reason = code, name, reason


class CUDADriver:
    """Its functions by name. The constructor raises CUDAError where there is no NVIDIA driver."""

    def __init__(self, library: str = "") -> None:
        try:
            self._library = ctypes.CDLL(library or _LIBRARIES.get(sys.platform, "libcuda.so.1"))
        except OSError as error:
            raise CUDAError("load", None, "", f"there is no NVIDIA driver on this machine ({error})") from error

    def call(self, function: str, *arguments: Any) -> None:
        """Raises CUDAError unless the driver does it."""
        try:
            status = getattr(self._library, function)(*arguments)
        except AttributeError as error:
            raise CUDAError(function, None, "", f"this NVIDIA driver is too old: it has no {function}") from error
        if status != 0:
            name, reason = (self._look_up(f"cuGetError{kind}", status) for kind in ("Name", "String"))
            raise CUDAError(function, status, name, reason)

    def read_attribute(self, attribute: int, device: ctypes.c_int) -> int | None:
        """Of a device, by CUdevice_attribute; None if this driver does not know it."""
        value = ctypes.c_int()
        status = self._library.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), device)
        return value.value if status == 0 else None

    def _look_up(self, function: str, status: int) -> str:
        text = ctypes.c_char_p()
        known = getattr(self._library, function, None)
        if known is not None:
            known(ctypes.c_int(status), ctypes.byref(text))
        return (text.value or b"error %d" % status).decode(errors="replace")


def is_initialised() -> bool | None:
    """Whether CUDA's driver is initialised in this process, as it says itself; None if it is not even loaded."""
    driver = _find_loaded()
    return None if driver is None else bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)


def finds_no_gpu() -> bool:
    """Whether CUDA's driver was asked in this process for GPUs, all of which were and are hidden: then it is not
    initialised, and whatever it has opened was not inherited. It is asked once more, which changes nothing."""
    driver = _find_loaded() if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else None
    return driver is not None and driver.cuInit(0) == _NO_DEVICE


def _find_loaded() -> ctypes.CDLL | None:
    """The driver, if something in this process has loaded it; only Linux tells."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(_LIBRARIES["linux"], mode=os.RTLD_NOLOAD)
    except OSError:  # not loaded
        return None
