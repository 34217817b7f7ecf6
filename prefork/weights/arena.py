"""The arena: the one place where the weights live, shared by every worker and read-only once sealed."""

from __future__ import annotations

import mmap
import os
import warnings
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefork.platform_matrix.systems import SYSTEM
from prefork.weights.private import is_copied_on_write, is_private
from prefork.weights.walk import (
    NamedTensors,
    SharedStorage,
    collect,
    describe_shape,
    group,
    is_real,
    join,
    keep_tensors,
    must_stay,
    visit,
    walk,
    walk_all,
)
from prefork.wire.memory_file import find_want, open_memory

_ALIGNMENT = 64  # bytes; a cache line, and what torch's vectorised kernels like


@dataclass(frozen=True, slots=True)
class Region:
    """Where one storage lies in the arena, and which tensor of which engine it belongs to."""

    offset: int  # bytes
    size: int  # bytes
    owner: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What lies in the file of an arena, for processes that were not forked from the one that packed it."""

    path: str
    size: int  # bytes
    regions: tuple[Region, ...]
    digests: tuple[int, ...]  # CRC-32 of each


class Arena:
    """One shared mapping that holds the tensors of several models.

    >>> model = torch.nn.Linear(2, 2)
    >>> arena = Arena.pack({"score": model})
    >>> arena.seal()    # from here on, a write to a weight kills the process that tries
    """

    def __init__(self, fd: int, size: int, access: int, path: str | None = None) -> None:
        self.size = size  # bytes
        self.path = path  # of the file, None if it has no name
        self._regions: list[Region] = []
        self._populated = False
        self._mapping = mmap.mmap(fd, size, access=access)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # that is the point of it
            self._bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self.address = self._bytes.data_ptr()

    @classmethod
    def pack(
        cls,
        models: Mapping[str, Any],
        path: str | None = None,
        private: Sequence[str] = (),
        named: Mapping[str, NamedTensors] | None = None,
    ) -> Arena:
        """Moves every CPU tensor that can be reached from the models into a new arena.

        path: a file that takes the weights, for `describe`; else they are in memory without a name. private: patterns
        of the names of tensors that are not moved, and can be written to by each process alone. named: what
        `walk_all` finds in the models, if that is known. Tensors keep their identity, shape, strides and ties. One
        storage is copied at a time and its old memory freed before the next, so that the peak is the weights plus the
        largest tensor. Raises ValueError if a tensor lies on a GPU, or if the disk of the file has no room.
        """
        unique = _set_apart(collect(walk_all(models) if named is None else named), private)
        size = max(mmap.PAGESIZE, sum(_align(storage.high - storage.low) for storage in unique))
        fd = _open_backing(size, path)
        arena = cls(fd, size, mmap.ACCESS_WRITE, path)
        if fd != -1:
            os.close(fd)
        offset = 0
        while unique:
            storage = unique.pop(0)
            source = storage.read()
            region = Region(offset, source.numel(), storage.owner, storage.name)
            arena._view(region).copy_(source)
            arena._replace(storage, region)
            _release(source)
            del source
            arena._regions.append(region)
            offset += _align(region.size)
        return arena

    def describe(self) -> Manifest:
        """For processes that load the same models and are to share these weights."""
        assert self.path is not None
        digests = tuple(_digest(self._view(region)) for region in self._regions)
        return Manifest(self.path, self.size, tuple(self._regions), digests)

    @classmethod
    def adopt(
        cls,
        models: Mapping[str, Any],
        manifest: Manifest,
        private: Sequence[str] = (),
        named: Mapping[str, NamedTensors] | None = None,
    ) -> Arena:
        """Replaces every tensor of models that were loaded here by the one in another process's arena that is the
        same byte for byte. Raises ValueError if one has no equal there: no two workers may have different weights.
        private, named: as for `pack`."""
        with open(manifest.path, "rb") as file:
            arena = cls(file.fileno(), manifest.size, mmap.ACCESS_READ)
        arena._regions = list(manifest.regions)
        known = {(r.size, digest): r for r, digest in zip(manifest.regions, manifest.digests, strict=True)}
        unique = _set_apart(collect(walk_all(models) if named is None else named), private)
        while unique:
            storage = unique.pop(0)
            source = storage.read()
            region = known.get((source.numel(), _digest(source)))
            if region is None or not torch.equal(arena._view(region), source):
                raise ValueError(
                    f"{storage.owner}: its tensor {storage.name} is not what it was in the process that loaded it "
                    "first; seed what is random in it, or load it from a file"
                )
            arena._replace(storage, region)
            _release(source)
            del source
        return arena

    def _view(self, region: Region) -> torch.Tensor:
        return self._bytes[region.offset : region.offset + region.size]

    def _replace(self, storage: SharedStorage, region: Region) -> None:
        _move(storage, torch.frombuffer(self._mapping, dtype=torch.uint8, count=region.size, offset=region.offset))

    def rebind(self, models: Mapping[str, Any], buffer: torch.Tensor) -> list[str]:
        """Has every tensor of the models that looks into the arena look into a copy of it, at the same place.

        buffer: (size,) uint8 on any device, with the bytes of the arena's file. Tensors keep their identity, shape,
        strides and ties; the models are searched anew, since nothing is kept of who looks where. Empty tensors and
        those that were made after the models were packed (a table that the first inference has cached) are moved to
        the buffer's device too, as memory of this process's own. Once per process, sealed or not, forked or not.

        Gives the names of what stays on the CPU: sparse and quantised tensors, tensor subclasses with tensors inside,
        and C++ objects such as the packed weights of torch.ao.quantization, which only the CPU can compute with.
        Raises ValueError if a tensor lies on a GPU already, or if the buffer is of another size.

        A tensor's `data` may be replaced by one of another device where torch says that the two are compatible, which
        the CPU and CUDA are: torch.nn.Module.to does the same (torch/nn/modules/module.py, _apply). "meta" is not.
        """
        if (buffer.dtype, tuple(buffer.shape)) != (torch.uint8, (self.size,)):
            raise ValueError(f"{describe_shape(buffer)} {buffer.dtype} is no copy of the arena's {self.size} bytes")
        found = {owner: list(visit(model)) for owner, model in models.items()}
        left = [f"{owner}: {name}" for owner, things in found.items() for name, thing in things if must_stay(thing)]
        for storage in join(group(owner, keep_tensors(things)) for owner, things in found.items()):
            source = storage.read()
            offset = source.data_ptr() - self.address
            inside = 0 <= offset < self.size
            _look(storage, buffer[offset : offset + source.numel()] if inside else source.to(buffer.device, copy=True))
        for tensor in [tensor for things in found.values() for _, tensor in keep_tensors(things)]:
            if tensor.device.type == "cpu" and tensor.numel() == 0 and not must_stay(tensor):
                tensor.data = torch.empty_strided(
                    tensor.size(), tensor.stride(), dtype=tensor.dtype, device=buffer.device
                )
        return left

    def seal(self) -> None:
        """Makes the weights read-only for this process and for all that are forked from it."""
        try:
            SYSTEM.protect(self.address, _align(self.size, mmap.PAGESIZE))
        except OSError as error:
            raise OSError(error.errno, f"cannot make the shared weights read-only: {error.strerror}") from error

    def populate(self) -> None:
        """Enters all the weights into this process's page tables, once: what they would enter one by one as they are
        used would look like memory that the first task takes."""
        if not self._populated:
            SYSTEM.populate(self.address, self.size)
        self._populated = True

    def digest(self) -> int:
        """CRC-32 of all the weights."""
        return _digest(self._bytes)

    def find(self, address: int) -> Region | None:
        """The region that holds a memory address; None outside the arena."""
        offset = address - self.address
        if not 0 <= offset < self.size or not self._regions:
            return None
        return self._regions[max(0, bisect_right(self._regions, offset, key=lambda r: r.offset) - 1)]


def _release(source: torch.Tensor) -> None:
    """Lets the kernel take back the pages of a weights file that has been copied from.

    Nothing is lost by it, so it does not matter who else looks at the storage; without it the file's
    pages stay in this process's resident set until its last tensor is gone: twice the weights at the peak.
    """
    start = -(-source.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (source.data_ptr() + source.numel() - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0:
        SYSTEM.page_out(start, size)


def _set_apart(storages: list[SharedStorage], private: Sequence[str]) -> list[SharedStorage]:
    """Those that are shared. The private ones stay where they are, unless a process cannot write there alone."""
    shared = []
    for storage in storages:
        if not is_private(storage.names, private):
            shared.append(storage)
        elif not is_copied_on_write(source := storage.read()):
            _move(storage, source.clone())
    return shared


def _move(storage: SharedStorage, memory: torch.Tensor) -> None:
    """Has the tensors of a storage look into a copy of it. Raises ValueError if one is not what it was before."""
    before = [tensor.detach() for tensor in storage.tensors]
    _look(storage, memory)
    for old, tensor in zip(before, storage.tensors, strict=True):
        if not is_same(old, tensor.detach()):
            raise ValueError(
                f"{storage.owner}: its tensor {storage.name} ({describe_shape(old)} {old.dtype}) has other values "
                "in shared memory than before; keep `tensor.clone()` in the model instead"
            )


def _look(storage: SharedStorage, memory: torch.Tensor) -> None:
    """Has the tensors of a storage look into other memory: (bytes,) uint8, what was the used part of the storage."""
    for tensor in storage.tensors:
        size = tensor.element_size()
        start = memory.storage_offset() // size + tensor.storage_offset() - storage.low // size
        with torch.inference_mode(tensor.is_inference()):
            strided = torch.empty(0, dtype=tensor.dtype, device=memory.device)
            strided.set_(memory.untyped_storage(), start, tensor.size(), tensor.stride())
            if tensor.is_conj():  # what is beyond storage, shape, strides and dtype
                strided = torch._conj(strided)
            if tensor.is_neg():
                strided = torch._neg_view(strided)
            tensor.data = strided


def is_same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two strided tensors are equal, bit for bit, so that NaN is equal to NaN; without a copy of either, unless
    it is to be conjugated or negated when it is read."""
    if (left.dtype, left.size(), left.is_conj(), left.is_neg()) != (
        right.dtype,
        right.size(),
        right.is_conj(),
        right.is_neg(),
    ):
        return False
    return torch.equal(*(_view_bits(tensor.resolve_conj().resolve_neg()) for tensor in (left, right)))


def _view_bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.element_size() == 16:
        tensor = torch.view_as_real(tensor)
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _digest(data: torch.Tensor) -> int:
    array: Any = data.numpy()  # a buffer, whatever its stubs say
    return zlib.crc32(array)


def measure_weights(models: Mapping[str, Any]) -> int:
    """Bytes of all parameters and buffers, wherever they lie, each counted once."""
    tensors = [t for model in models.values() for _, t in walk(model) if t.layout is torch.strided and is_real(t)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _open_backing(size: int, path: str | None) -> int:
    """A file, by default without a name: memory that is accounted once, however many processes map it. -1 for memory
    that only forked processes have, where a file without a name would be on a disk. Raises ValueError if there is no
    room for it."""
    if path is None and not SYSTEM.has_nameless_files:
        return -1
    if path is not None and (want := find_want(path, size)):
        raise ValueError(want)
    fd = open_memory() if path is None else os.open(path, os.O_RDWR)
    os.truncate(fd, 0)
    os.truncate(fd, size)
    return fd


def _align(size: int, to: int = _ALIGNMENT) -> int:
    return -(-size // to) * to
