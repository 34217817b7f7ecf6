"""What the user's calls consist of, on its way to another process and back: functions, arguments, results.

Functions go by name where that finds them there, else by value. Large arrays and tensors are left out of the pickle
(protocol 5, PEP 574): whoever sends it says where they lie.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LARGE = 1 << 16  # bytes from which a buffer is left out of a pickle; below, to copy it costs less than to place it
_MOST_LARGE = 32  # buffers that are left out of one pickle


@dataclass(slots=True)
class Pickled:
    """Something pickled. buffers: what was left out of it, each in one piece."""

    data: bytes
    buffers: Sequence[pickle.PickleBuffer | memoryview] = ()

    def load(self) -> Any:
        return pickle.loads(self.data, buffers=self.buffers)


def dump(thing: Any) -> bytes:
    """A function, or a call of one. Lambdas, closures, and what a notebook, `python -c` or stdin defines go by value.

    Raises what pickle raises for what can go neither way, such as a lock or an open socket in a closure.
    """
    return _dump(thing, None)


def dump_apart(thing: Any) -> Pickled:
    """As `dump`, with large buffers apart: they are the thing's own memory, and hold it."""
    buffers: list[pickle.PickleBuffer] = []

    def take(buffer: pickle.PickleBuffer) -> bool:
        """Whether it goes into the pickle."""
        if len(buffers) < _MOST_LARGE and buffer.raw().nbytes >= LARGE:
            buffers.append(buffer)
            return False
        return True

    return Pickled(_dump(thing, take), buffers)


def _dump(thing: Any, take: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
    if has_importable_main():
        try:
            if "torch" not in sys.modules:
                return pickle.dumps(thing, pickle.HIGHEST_PROTOCOL, buffer_callback=take)
            file = io.BytesIO()
            pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL, buffer_callback=take)
            pickler.dispatch_table = _make_dispatch_table()
            pickler.dump(thing)
            return file.getvalue()
        except (pickle.PicklingError, AttributeError, TypeError):
            pass  # a lambda, a closure; or nothing that helps, which is said next
    file = io.BytesIO()
    _make_pickler_by_value("torch" in sys.modules)(file, pickle.HIGHEST_PROTOCOL, buffer_callback=take).dump(thing)
    return file.getvalue()


@cache
def _make_pickler_by_value(tensors: bool) -> Any:
    import cloudpickle  # type: ignore[import-untyped]

    if not tensors:
        return cloudpickle.Pickler
    table = cloudpickle.Pickler.dispatch_table.new_child(_make_tensor_table())
    return type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})  # read when a pickler is made


@cache
def _make_dispatch_table() -> _DispatchTable:
    return _DispatchTable(_make_tensor_table())


class _DispatchTable(dict[type, Callable[[Any], Any]]):
    """Ours, and what packages register for all picklers, whenever they do."""

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        found: Callable[[Any], Any] = copyreg.dispatch_table[kind]
        return found


@cache
def _make_tensor_table() -> dict[type, Callable[[Any], Any]]:
    import torch

    return {torch.Tensor: _reduce_tensor}


def _reduce_tensor(tensor: Any) -> Any:
    """A dense tensor on the CPU as its elements; torch writes whole storages into the pickle, slowly, with all that
    lies in them beside the tensor."""
    import torch

    if (
        tensor.layout is not torch.strided
        or not tensor.is_cpu
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_conj()
        or tensor.is_neg()
        or not tensor.is_leaf
        or tensor._backward_hooks
        or not tensor.numel()
        or tensor.__dict__
    ):
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    plain = tensor.detach()
    if plain.is_contiguous():
        flat = plain.reshape(-1)
    elif _is_dense(plain.shape, plain.stride()):
        flat = plain.as_strided((plain.numel(),), (1,))
    else:
        plain = plain.contiguous()
        flat = plain.reshape(-1)
    where = (str(plain.dtype).removeprefix("torch."), tuple(plain.shape), plain.stride(), tensor.requires_grad)
    return _make_tensor, (pickle.PickleBuffer(flat.view(torch.uint8).numpy()), *where)


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie side by side, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _make_tensor(data: Any, kind: str, shape: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool) -> Any:
    """The tensor that has these bytes as its memory."""
    import torch

    flat = torch.frombuffer(data, dtype=getattr(torch, kind))
    tensor = flat.view(shape) if len(shape) < 2 else flat.as_strided(shape, stride)
    return tensor.requires_grad_() if requires_grad else tensor


@cache
def has_importable_main() -> bool:
    """Whether another process can import the main module of this one; looked up once, not with every call."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return True
    file = getattr(main, "__file__", None)
    return file is not None and Path(file).is_file()
