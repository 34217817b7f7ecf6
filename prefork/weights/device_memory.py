"""Weights in a device's memory, once: an owner process puts them there, workers open what it exports.

    owner:   memory.upload(path, size) -> Export             worker:   attach(arena, models, memory, export) -> Guard
             ... until all readers are gone                            guard.check() after each batch
             memory.free()

`CUDAMemory` goes through CUDA IPC; `HostMemory` is the same over a file in memory, for machines without a GPU.

The GPU memory comes from the driver (cuMemAlloc), not from torch's caching allocator, so that PYTORCH_CUDA_ALLOC_CONF
has no say in it. What expandable segments and cudaMallocAsync give is memory that cudaIpcGetMemHandle does not take:
torch exports the first in a way of its own since pull request 130890 (see issue 130330), and refuses the second
("cudaMallocAsync does not yet support shareIpcHandle", c10/cuda/CUDAMallocAsyncAllocator.cpp).

The owner must outlive its readers. CUDA's documentation of cuIpcOpenMemHandle: "Calling cuMemFree on an exported memory
region before calling cuIpcCloseMemHandle in the importing context will result in undefined behavior". It says nothing
of an owner that dies, whose memory the driver frees: that is to be taken for the same, so when an owner has gone its
readers must be ended, and what they had not yet reported counts as never computed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from prefork.engines.base import LoadError
from prefork.platform_matrix import cuda_errors
from prefork.platform_matrix.cuda import CUDADriver, CUDAError
from prefork.platform_matrix.driver import is_served
from prefork.platform_matrix.errors import PreforkError
from prefork.weights.checksum import ROW_BYTES, Summer, measure
from prefork.wire.exports import Export
from prefork.wire.memory_file import MemoryFile

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from prefork.weights.arena import Arena

_CHUNK = 8192 * ROW_BYTES  # that are read and sent at a time
_GRANULE = 2 << 20  # bytes; allocations of whole ones share no block with others, which IPC would export along
_HANDLE_WORDS = 8  # of 8 bytes: CU_IPC_HANDLE_SIZE is 64
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is, and it must be given
_COMPUTE_MODE = 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE
_EXCLUSIVE = 3  # CU_COMPUTEMODE_EXCLUSIVE_PROCESS
_IPC_SUPPORTED = 125  # CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED, by which CUDA's documentation tests for IPC

_EXPORT = "export GPU memory to other processes"
_OPEN = "open the GPU memory that the owner of the weights exports"
_USE = "use the GPU"
# What the driver says to IPC from another container (its owner's pid means nothing there), across MIG instances, under
# WSL, and on virtual GPUs; when memory is exported or opened. Elsewhere the same names mean other things.
_REFUSALS = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "INVALID_VALUE",
        "INVALID_DEVICE",
        "INVALID_CONTEXT",
        "INVALID_HANDLE",
        "MAP_FAILED",
        "ALREADY_MAPPED",
        "MAPPING_OF_BUFFER_OBJECT_FAILED",
        "PEER_ACCESS_UNSUPPORTED",
        "TOO_MANY_PEERS",
        "OPERATING_SYSTEM",
        "NOT_PERMITTED",
        "DEVICE_UNAVAILABLE",
        "UNKNOWN",
    )
)


class DeviceError(PreforkError):
    """What could not be done with a device's memory. name: the code's, such as CUDA_ERROR_OUT_OF_MEMORY; empty where
    it was not the driver that refused. reason: in its words."""

    def __init__(self, what: str, name: str, reason: str) -> None:
        super().__init__(what, name, reason)
        self.what, self.name, self.reason = what, name, reason

    def __str__(self) -> str:
        return f"cannot {self.what}: {self.reason}{f' ({self.name})' if self.name else ''}"

    @property
    def refuses_ipc(self) -> bool:
        """Whether it means that memory cannot be shared between processes here, and one that has it alone may work.

        A handle whose owner has died is refused with the same codes: ask first whether it lives.
        """
        return self.name == "CUDA_ERROR_NOT_SUPPORTED" or (self.what in (_EXPORT, _OPEN) and self.name in _REFUSALS)

    @property
    def blames_device(self) -> bool:
        """Whether nothing can be done there, whoever tries."""
        return self.what == _USE or cuda_errors.blames_device(self.name)


class WeightsChanged(PreforkError):
    """The weights in a device's memory are not those that were put there: nothing computed since counts."""


class View(Protocol):
    """An owner's memory as a reader has it. tensor: (size,) uint8 on the device, not a copy."""

    @property
    def tensor(self) -> torch.Tensor: ...

    def close(self) -> None:
        """To be called when no tensor looks into the memory any more. A process that ends need not."""


class DeviceMemory(Protocol):
    def upload(self, path: str, size: int) -> Export:
        """In the owner: puts a file's first bytes into the device's memory, once per object. Raises DeviceError."""

    def open(self, export: Export) -> View:
        """In a reader, which is never the owner. Raises DeviceError."""

    def free(self) -> None:
        """In the owner, once all readers have closed theirs or have ended. Raises DeviceError."""


def make_memory(kind: str) -> DeviceMemory:
    """kind: "cuda", the first GPU that CUDA_VISIBLE_DEVICES leaves this process, or "host". Raises DeviceError."""
    return HostMemory() if kind == "host" else CUDAMemory()


class CUDAMemory:
    """One allocation of the first GPU that this process sees."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._driver = GPU(library)
        self._address = 0

    def upload(self, path: str, size: int) -> Export:
        driver = self._driver
        driver.enter()
        if driver.ask(_COMPUTE_MODE) == _EXCLUSIVE and not driver.is_served:
            raise DeviceError(
                _EXPORT, "CUDA_ERROR_NOT_SUPPORTED", f"{driver.device} is in exclusive mode, for one process at a time"
            )
        if driver.ask(_IPC_SUPPORTED) == 0:
            raise DeviceError(_EXPORT, "CUDA_ERROR_NOT_SUPPORTED", f"{driver.device} does not have CUDA IPC")
        address = ctypes.c_uint64()
        room = -(-size // _GRANULE) * _GRANULE
        driver.call(f"take {room / 1e9:.2f} GB of {driver.device}", "cuMemAlloc_v2", ctypes.byref(address), _size(room))
        self._address = address.value
        summer = Summer(size)
        for offset, chunk in _read_file(path, size):
            target, source = ctypes.c_uint64(self._address + offset), ctypes.c_void_p(chunk.ctypes.data)
            driver.call(f"copy weights to {driver.device}", "cuMemcpyHtoD_v2", target, source, _size(chunk.nbytes))
            summer.add(chunk)
        driver.call(f"copy weights to {driver.device}", "cuCtxSynchronize")  # a copy may return while it is under way
        handle = _Handle()
        driver.call(_EXPORT, "cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(self._address))
        return Export("cuda", bytes(handle), size, summer.sum(), driver.device)

    def open(self, export: Export) -> View:
        """Makes this process's context on the GPU, torch's own, if it has none."""
        import torch

        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch first: it says best why it cannot
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
            kept = "or the process that forked this one has asked for GPUs and been told that there are none"
            raise DeviceError(_USE, "", f"{why}, {kept}") from error
        return CUDAView(self._driver, export)

    def free(self) -> None:
        if self._address:
            self._driver.call("free the weights", "cuCtxSynchronize")  # a client of NVIDIA's MPS must not just end
            self._driver.call("free the weights", "cuMemFree_v2", ctypes.c_uint64(self._address))
            self._address = 0


class CUDAView:
    """GPU memory of another process, mapped into this one."""

    def __init__(self, driver: GPU, export: Export) -> None:
        import torch

        self._driver = driver
        driver.enter()
        self._address = driver.open_handle(export.handle)
        pointer = _Pointer(self._address, export.size)
        # torch/csrc/utils/tensor_new.cpp and tensor_numpy.cpp: a tensor over the pointer, which keeps the object; it is
        # copied only to another device or dtype.
        try:
            self._tensor: torch.Tensor | None = torch.as_tensor(pointer, device="cuda:0")
        except RuntimeError as error:
            raise DeviceError(_OPEN, "", str(error).splitlines()[0]) from error
        if self._tensor.data_ptr() != self._address:
            raise DeviceError(_OPEN, "", f"torch {torch.__version__} copied it")

    @property
    def tensor(self) -> torch.Tensor:
        assert self._tensor is not None, "closed"
        return self._tensor

    def close(self) -> None:
        if self._tensor is not None:
            self._tensor = None
            self._driver.call("close the weights", "cuIpcCloseMemHandle", ctypes.c_uint64(self._address))


class _Pointer:
    """Device memory, as numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html has it."""

    def __init__(self, address: int, size: int) -> None:
        # torch takes no memory that is said to be read-only, and CUDA IPC knows none
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 2}


class _Handle(ctypes.Structure):
    """CUipcMemHandle, passed by value. Words for its 64 chars: old versions of ctypes pass no arrays by value."""

    _fields_ = tuple((f"word{number}", ctypes.c_uint64) for number in range(_HANDLE_WORDS))


_size = ctypes.c_size_t


class GPU:
    """The device that this process sees, by CUDA's driver."""

    def __init__(self, library: str) -> None:
        try:
            self._driver = CUDADriver(library)
        except CUDAError as error:
            raise DeviceError(_USE, error.name, error.reason) from error
        self.device = "the GPU"
        self._index = ctypes.c_int()
        self._context: ctypes.c_void_p | None = None

    def enter(self) -> None:
        """Makes the device's primary context, the one that torch uses too, the current one of this thread."""
        if self._context is None:
            self.call(_USE, "cuInit", ctypes.c_uint(0))
            self.call(_USE, "cuDeviceGet", ctypes.byref(self._index), ctypes.c_int(0))
            name = ctypes.create_string_buffer(100)
            self.call(_USE, "cuDeviceGetName", name, ctypes.c_int(len(name)), self._index)
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            label = f"GPU {visible}" if visible.isdigit() else visible  # or a UUID, which says what it is of
            self.device = f"{label} ({name.value.decode(errors='replace')})"
            context = ctypes.c_void_p()
            self.call(f"use {self.device}", "cuDevicePrimaryCtxRetain", ctypes.byref(context), self._index)
            self._context = context
        self.call(f"use {self.device}", "cuCtxSetCurrent", self._context)

    def ask(self, attribute: int) -> int | None:
        """One of the device's; None if this driver does not know it."""
        return self._driver.read_attribute(attribute, self._index)

    @property
    def is_served(self) -> bool:
        """Whether NVIDIA's MPS is the one process that computes there, for all."""
        return is_served(self._driver, self._index)

    def open_handle(self, handle: bytes) -> int:
        """The address in this process."""
        address = ctypes.c_uint64()
        flags = ctypes.c_uint(_LAZY_PEER_ACCESS)
        words = _Handle.from_buffer_copy(handle)
        self.call(_OPEN, "cuIpcOpenMemHandle_v2", ctypes.byref(address), words, flags)
        return address.value

    def call(self, what: str, function: str, *arguments: Any) -> None:
        """Raises DeviceError with what was to be done, and why the driver does not do it."""
        try:
            self._driver.call(function, *arguments)
        except CUDAError as error:
            raise DeviceError(what, error.name, error.reason) from error


class HostMemory:
    """A file in memory instead of a device's. Readers map it read-only: a write kills them."""

    def __init__(self) -> None:
        self._file: MemoryFile | None = None

    def upload(self, path: str, size: int) -> Export:
        self._file = file = MemoryFile()
        summer = Summer(size)
        try:
            with open(file.path, "r+b", buffering=0) as copy:
                for _, chunk in _read_file(path, size):
                    copy.write(chunk.data)
                    summer.add(chunk)
        except OSError as error:
            raise _describe_error(f"copy {size / 1e9:.2f} GB of weights", error) from error
        return Export("host", os.fsencode(file.path), size, summer.sum(), "the host's memory")

    def open(self, export: Export) -> View:
        try:
            return HostView(export)
        except (OSError, ValueError) as error:  # ValueError: mmap, of a file that is shorter
            raise _describe_error("open the weights", error) from error

    def free(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class HostView:
    def __init__(self, export: Export) -> None:
        import warnings

        import torch

        with open(export.handle, "rb") as file:
            mapping = mmap.mmap(file.fileno(), export.size, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # that is the point of it
            self._tensor: torch.Tensor | None = torch.frombuffer(mapping, dtype=torch.uint8)

    @property
    def tensor(self) -> torch.Tensor:
        assert self._tensor is not None, "closed"
        return self._tensor

    def close(self) -> None:
        self._tensor = None  # the mapping goes with the last tensor that looks into it


class Guard:
    """Sees whether the weights of a device are still those that were uploaded."""

    def __init__(self, view: View, export: Export) -> None:
        self.view = view
        self._export = export

    def check(self) -> None:
        """Raises WeightsChanged. Waits for what the device is still computing: what comes after it is sound."""
        if measure(self.view.tensor) != self._export.checksum:
            raise WeightsChanged(
                f"the weights in the memory of {self._export.device} are not those that were put there: another "
                "process, or a fault of the hardware, has written over them; nothing computed with them is kept"
            )


def attach(arena: Arena, models: Mapping[str, Any], memory: DeviceMemory, export: Export) -> Guard:
    """In a worker: has the models' tensors look into an owner's copy of their arena, once it has been found intact.

    Raises DeviceError, WeightsChanged, and LoadError if something of the models cannot leave the CPU.
    """
    guard = Guard(memory.open(export), export)
    guard.check()
    if left := arena.rebind(models, guard.view.tensor):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise LoadError(
            f"{', '.join(left[:3])}{more} cannot be moved to {export.device}: what is quantised or sparse stays on the "
            "CPU; load the model in float32, bfloat16 or float16, or run with --devices cpu"
        )
    return guard


def _read_file(path: str, size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Offsets and chunks of a file, each good until the next is asked for. What has been read is let go again, and does
    not count as this process's memory. Raises DeviceError."""
    import numpy as np

    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is shorter
        raise _describe_error("read the weights", error) from error
    whole = np.frombuffer(mapping, np.uint8)
    for offset in range(0, size, _CHUNK):
        yield offset, whole[offset : offset + _CHUNK]
        if hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED, offset, min(_CHUNK, size - offset))


def _describe_error(what: str, error: OSError | ValueError) -> DeviceError:
    import errno

    number = getattr(error, "errno", None)
    return DeviceError(what, errno.errorcode.get(number, "") if number else "", str(error))
