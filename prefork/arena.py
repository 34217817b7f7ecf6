"""The arena: the one place where the weights live, shared by every worker and read-only once sealed."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import tempfile
import types
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

_MADV_PAGEOUT = 21  # linux/mman.h
_ALIGNMENT = 64  # bytes; a cache line, and what torch's vectorised kernels like

# What is never walked through in search of tensors: it leads to the whole interpreter, not to the model.
_OPAQUE = (
    types.ModuleType,
    type,
    types.FrameType,
    types.CodeType,
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
)


@dataclass(frozen=True, slots=True)
class Region:
    """Where one storage lies in the arena, and which tensor of which engine it belongs to."""

    offset: int  # bytes
    size: int  # bytes
    owner: str
    tensor: str


@dataclass(slots=True)
class _Storage:
    """A storage outside the arena, with all the tensors that look into it: tied weights, slices, views."""

    owner: str
    name: str
    tensors: list[torch.Tensor] = field(default_factory=list)
    low: int = 0  # bytes, the part of the storage that the tensors use
    high: int = 0


class Arena:
    """One shared mapping that holds the tensors of several models.

    >>> model = torch.nn.Linear(2, 2)
    >>> arena = Arena.pack({"score": model})
    >>> arena.seal()    # from here on, a write to a weight kills the process that tries
    """

    def __init__(self, size: int) -> None:
        self.size = size  # bytes
        self._regions: list[Region] = []
        self._fd = _open_backing(size)
        self._mapping = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    @classmethod
    def pack(cls, models: Mapping[str, Any]) -> Arena:
        """Moves every CPU tensor that can be reached from the models into a new arena.

        Tensors keep their identity, shape, strides and ties. One storage is copied at a time and its old
        memory freed before the next, so that the peak is the weights plus the largest tensor.
        """
        storages = [storage for owner, model in models.items() for storage in _group(owner, model)]
        unique = list({id(storage): storage for storage in _merge(storages)}.values())
        sizes = [storage.high - storage.low for storage in unique]
        arena = cls(max(mmap.PAGESIZE, sum(_align(size) for size in sizes)))
        offset = 0
        while unique:
            storage, size = unique.pop(0), sizes.pop(0)
            arena._adopt(storage, offset)
            offset += _align(size)
        return arena

    def _adopt(self, storage: _Storage, offset: int) -> None:
        size = storage.high - storage.low
        target = torch.frombuffer(self._mapping, dtype=torch.uint8, count=size, offset=offset)
        source = torch.empty(0, dtype=torch.uint8).set_(
            storage.tensors[0].untyped_storage(), storage.low, (size,), (1,)
        )
        target.copy_(source)
        _release(source)
        shared = target.untyped_storage()
        for tensor in storage.tensors:
            start = tensor.storage_offset() - storage.low // tensor.element_size()
            tensor.data = torch.empty(0, dtype=tensor.dtype).set_(shared, start, tensor.size(), tensor.stride())
        self._regions.append(Region(offset, size, storage.owner, storage.name))

    def seal(self) -> None:
        """Makes the weights read-only for this process and for all that are forked from it."""
        libc = ctypes.CDLL(None, use_errno=True)
        size = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        if libc.mprotect(ctypes.c_void_p(self.address), ctypes.c_size_t(size), mmap.PROT_READ) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"cannot make the shared weights read-only: {os.strerror(code)}")

    def find(self, address: int) -> Region | None:
        """The region that holds a memory address; None outside the arena."""
        offset = address - self.address
        if not 0 <= offset < self.size or not self._regions:
            return None
        return self._regions[max(0, bisect_right(self._regions, offset, key=lambda r: r.offset) - 1)]


def _release(source: torch.Tensor) -> None:
    """Lets the kernel take back the pages of a weights file that has been copied from.

    MADV_PAGEOUT never loses data, so it does not matter who else looks at the storage; without it the file's
    pages stay in this process's resident set until its last tensor is gone: twice the weights at the peak.
    """
    start = -(-source.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (source.data_ptr() + source.numel() - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and size > 0:  # advice: a kernel too old for it (before 5.4) may ignore it
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_PAGEOUT)


def _open_backing(size: int) -> int:
    """A file without a name: memory that is accounted once, however many processes map it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("prefork-arena", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def _align(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _group(owner: str, model: Any) -> Iterator[_Storage]:
    storages: dict[int, _Storage] = {}
    for name, tensor in _find_tensors(model):
        key = tensor.untyped_storage().data_ptr()
        low, high = _extent(tensor)
        storage = storages.setdefault(key, _Storage(owner, name, low=low, high=high))
        storage.tensors.append(tensor)
        storage.low, storage.high = min(storage.low, low), max(storage.high, high)
    yield from storages.values()


def _merge(storages: list[_Storage]) -> list[_Storage]:
    """Joins what two engines have of one storage, so that a model which both use is packed once."""
    merged: dict[int, _Storage] = {}
    for storage in storages:
        known = merged.setdefault(storage.tensors[0].untyped_storage().data_ptr(), storage)
        if known is not storage:
            known.tensors += storage.tensors
            known.low, known.high = min(known.low, storage.low), max(known.high, storage.high)
    return list(merged.values())


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte + 1 of the storage that the tensor can touch."""
    last = sum((int(size) - 1) * int(step) for size, step in zip(tensor.size(), tensor.stride(), strict=True))
    low = int(tensor.storage_offset()) * tensor.element_size()
    return low, low + (last + 1) * tensor.element_size()


def _find_tensors(root: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every CPU tensor with memory of its own that can be reached from an object, each once, with its name."""
    names: dict[int, str] = {}
    seen: set[int] = set()
    keep: list[Any] = []  # what is made on the way (parameter wrappers of scripted modules) must keep its id
    stack = [root]
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, _OPAQUE):
            continue
        seen.add(id(thing))
        keep.append(thing)
        if isinstance(thing, torch.Tensor) and _has_memory(thing):
            yield names.get(id(thing), f"a {_describe(thing)} tensor"), thing
        if isinstance(thing, torch.nn.Module):
            named = [
                *thing.named_parameters(remove_duplicate=False),
                *thing.named_buffers(remove_duplicate=False),
            ]
            for name, tensor in named:
                names.setdefault(id(tensor), name)
            stack.extend(tensor for _, tensor in named)
        stack.extend(_references(thing))


def _references(thing: Any) -> list[Any]:
    if isinstance(thing, types.FunctionType):  # not its globals: they lead to everything
        return [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
    return gc.get_referents(thing)


def _has_memory(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.numel() == 0:
        return False
    return not hasattr(tensor, "__tensor_flatten__") and tensor.untyped_storage().nbytes() > 0


def _describe(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.size())) or "scalar"
