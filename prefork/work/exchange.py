"""Tensors from one process to another through memory that both map; nothing of them is pickled."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Mapping

import torch

from prefork.engines.base import Tensors
from prefork.wire.memory_file import Layout, Place, open_memory

_ALIGNMENT = 64  # bytes; a cache line, and what torch's vectorised kernels like


def pack(tensors: Mapping[str, torch.Tensor]) -> tuple[int, Layout]:
    """Copies tensors, wherever they lie, into memory of their own: its descriptor, and where they are in it."""
    layout: list[Place] = []
    size = 0
    for name, tensor in tensors.items():
        layout.append(Place(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), size))
        size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
    fd = open_memory()
    try:
        os.truncate(fd, size)
        for name, view in _view(fd, layout, writable=True).items():
            view.copy_(tensors[name])
    except BaseException:
        os.close(fd)
        raise
    return fd, layout


def unpack(fd: int, layout: Layout) -> Tensors:
    """The tensors that `pack` has put there: views, which hold the memory as long as they live. The descriptor is
    closed."""
    try:
        return _view(fd, layout, writable=False)
    finally:
        os.close(fd)


def _view(fd: int, layout: Layout, writable: bool) -> dict[str, torch.Tensor]:
    size = os.fstat(fd).st_size
    memory = mmap.mmap(fd, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ) if size else b""
    return {place.name: _view_one(memory, place) for place in layout}


def _view_one(memory: mmap.mmap | bytes, place: Place) -> torch.Tensor:
    dtype = getattr(torch, place.dtype)
    count = torch.Size(place.shape).numel()
    if not count:
        return torch.empty(place.shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes to what was sent
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=place.offset).view(place.shape)
