"""Tensors in pickles: the memory that they lie in, which may be left out of the pickle (protocol 5, PEP 574)."""

from __future__ import annotations

import pickle
from typing import Any


def _is_plain(thing: Any) -> bool:
    """Whether a tensor is a dense one on the CPU, and nothing beyond its elements."""
    import torch

    return (
        thing.layout is torch.strided
        and thing.is_cpu
        and thing.is_leaf
        and thing.numel() > 0
        and not (thing.is_quantized or thing.is_nested or thing.is_conj() or thing.is_neg())
        and not (thing._backward_hooks or thing.__dict__)
    )


class Memories:
    """Of the tensors in one pickle: those that share memory share it after it too.

    A tensor that takes less than half of its memory goes alone, as a copy: torch itself writes a slice with all that it
    is a slice of.
    """

    def __init__(self) -> None:
        self._all: dict[tuple[int, int], _Memory] = {}

    def reduce(self, tensor: Any) -> Any:
        """As __reduce_ex__; of a plain tensor as its memory, and where in it the elements lie."""
        if not _is_plain(tensor):
            return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        storage, start, length = tensor.untyped_storage(), tensor.storage_offset(), tensor.nbytes
        shape, stride = tuple(tensor.shape), tensor.stride()
        if 2 * length >= storage.nbytes():
            key = (storage.data_ptr(), storage.nbytes())
            if key not in self._all:
                self._all[key] = _Memory(_flatten(storage, 0, storage.nbytes()))
            memory = self._all[key]
        else:
            alone = tensor.detach().contiguous()
            memory = _Memory(_flatten(alone.untyped_storage(), alone.storage_offset() * alone.itemsize, length))
            start, stride = 0, alone.stride()
        kind = str(tensor.dtype).removeprefix("torch.")
        return _make_tensor, (memory, kind, start, shape, stride, tensor.requires_grad)


class _Memory:
    def __init__(self, elements: Any) -> None:
        self._elements = elements  # uint8

    def __reduce_ex__(self, _: Any) -> Any:
        return _flatten_buffer, (pickle.PickleBuffer(self._elements.numpy()),)


def _flatten(storage: Any, start: int, length: int) -> Any:
    """Some bytes of a storage, as a tensor of them."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage, start, (length,), (1,))


def _flatten_buffer(data: Any) -> Any:
    import torch

    return torch.frombuffer(data, dtype=torch.uint8)


def _make_tensor(
    memory: Any, kind: str, start: int, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool
) -> Any:
    import torch

    tensor = torch.empty(0, dtype=getattr(torch, kind), device="cpu").set_(
        memory.untyped_storage(), start, shape, stride
    )
    return tensor.requires_grad_() if requires_grad else tensor
