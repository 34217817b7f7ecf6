"""What CUDA's errors say of the device: data, with the codes and the words of cuda.h and driver_types.h (CUDA 13.0).

A code says more than a class: torch raises the same AcceleratorError for a batch that is too large, a segment that
trips an assertion, and memory that has lost a bit.
"""

from __future__ import annotations

import re

from prefork.platform_matrix.failures import Failure

# The device's own, whatever was computed: nothing else that is computed there may be trusted, or can be.
_DEVICE = {
    46: ("DEVICE_UNAVAILABLE", "busy or unavailable"),
    100: ("NO_DEVICE", "no CUDA-capable device is detected"),
    101: ("INVALID_DEVICE", "invalid device ordinal"),
    209: ("NO_BINARY_FOR_GPU", "no kernel image is available"),
    214: ("ECC_UNCORRECTABLE", "uncorrectable ECC error"),
    220: ("NVLINK_UNCORRECTABLE", "uncorrectable NVLink error"),
    222: ("UNSUPPORTED_PTX_VERSION", "unsupported toolchain"),
    226: ("CONTAINED", "Invalid access of peer GPU memory"),
    304: ("OPERATING_SYSTEM", "OS call failed"),
    714: ("HARDWARE_STACK_ERROR", "hardware stack error"),
    802: ("SYSTEM_NOT_READY", "system not yet initialized"),
    803: ("SYSTEM_DRIVER_MISMATCH", "unsupported display driver / cuda driver combination"),
    805: ("MPS_CONNECTION_FAILED", "MPS client failed to connect"),
    806: ("MPS_RPC_FAILURE", "MPS client failed to communicate"),
    807: ("MPS_SERVER_NOT_READY", "MPS server is not ready"),
    810: ("MPS_CLIENT_TERMINATED", "MPS client has been terminated"),
    919: ("FABRIC_NOT_READY", "fabric is not ready"),
    999: ("UNKNOWN", "unknown error"),  # of a GPU that has fallen off the bus (Xid 79)
}
_MEMORY = 2
# Of libraries that have codes of their own, and say so in words alone.
_LIBRARIES = r"CU(BLAS|DNN|SOLVER|SPARSE)_STATUS|CUFFT"
_MEMORY_WORDS = re.compile(rf"CUDA error: out of memory|({_LIBRARIES})_ALLOC_FAILED")
# What torch says where it finds no device to begin with, as of a GPU that was lost before a process was started again:
# c10/cuda/CUDAFunctions.cpp, which gives no code.
_NONE_WORDS = re.compile(
    "No CUDA GPUs are available|CUDA driver initialization failed|CUDA unknown error|Found no NVIDIA driver|"
    "driver on your system is too old|Unexpected error from cudaGetDeviceCount"
)
_CUDA_WORDS = re.compile(rf"CUDA error|({_LIBRARIES})_")


def classify(code: int | None, text: str) -> Failure | None:
    """code: cudaError_t or CUresult, which agree; None if only words are known. text: the error's."""
    if code == _MEMORY or _MEMORY_WORDS.search(text):
        return Failure.MEMORY
    if code in _DEVICE or (code is None and _names_device(text)):
        return Failure.DEVICE
    return Failure.CONTEXT if code is not None or _CUDA_WORDS.search(text) else None


def _names_device(text: str) -> bool:
    said = "CUDA error" in text and any(words in text for _, words in _DEVICE.values())
    return said or _NONE_WORDS.search(text) is not None


def blames_device(name: str) -> bool:
    """name: of a CUresult, such as CUDA_ERROR_NO_DEVICE."""
    return name.removeprefix("CUDA_ERROR_") in [known for known, _ in _DEVICE.values()]
