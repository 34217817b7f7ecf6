"""An Apple GPU, as far as torch's users can tell: tensors that say they are on `mps`, and are computed by the CPU.

They refuse what MPS refuses: data types that it lacks, operations with tensors of another device, to be read by numpy,
and what there is no memory for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytest import MonkeyPatch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_LACKS = (torch.float64, torch.complex128)
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_WITH_CPU = (  # indices, lengths
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
    torch.ops.aten.index_put.default,
    torch.ops.aten._pack_padded_sequence.default,
)


class MetalTensor(torch.Tensor):
    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> MetalTensor:
        kind: Any = torch.Tensor
        made: MetalTensor = kind._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device("mps:0"),
        )
        made.on_cpu = on_cpu
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"MetalTensor({self.on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        if _is_composed(function):
            return function.decompose(*arguments, **(options or {}))
        return _compute(function, arguments, options or {})


class _Metal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        if _is_composed(function):  # in inference mode they come whole
            with self:
                return function.decompose(*arguments, **(options or {}))
        return _compute(function, arguments, options or {})


def _is_composed(function: Any) -> bool:
    if function is torch.ops.aten.scaled_dot_product_attention.default:  # asks each device how it does it
        return False
    core: Any = torch._C
    return bool(core._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"))


class _Numbered(TorchFunctionMode):
    """`mps` is the first of its kind. Without a number, torch asks the kind itself, which is not there."""

    def __torch_function__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        if arguments and isinstance(arguments[0], MetalTensor):
            if function is torch.Tensor.tolist:
                return arguments[0].cpu().tolist()
            if function is torch.Tensor.numpy:
                raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
        arguments, options = tree_map(_number, arguments), tree_map(_number, options or {})
        if function in (torch.tensor, torch.as_tensor) and str(options.get("device")) == "mps:0":
            return function(*arguments, **{**options, "device": "cpu"}).to("mps:0")
        try:
            return function(*arguments, **options)
        except RuntimeError as error:  # asked of the kind itself by C++: strides, indices
            if "not linked with support for mps" not in str(error):
                raise
        arguments, options = tree_map(_unwrap, (arguments, options))
        return tree_map(lambda x: _wrap(x, {}, is_ours=True), function(*arguments, **options))


def _number(thing: Any) -> Any:
    is_whole = (isinstance(thing, str) and thing == "mps") or (isinstance(thing, torch.device) and str(thing) == "mps")
    return torch.device("mps:0") if is_whole else thing


@contextmanager
def apple_gpu(most: int = 0) -> Iterator[None]:
    """In this process, and with a torch that was built without CUDA. most: bytes that a tensor may have; 0 for any."""
    core: Any = torch._C

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    answers: dict[str, Callable[..., Any]] = {
        "_mps_is_available": lambda: True,
        "_mps_emptyCache": lambda: None,
        "_mps_deviceSynchronize": lambda: None,
        "_mps_setMemoryFraction": lambda _: None,
        "_mps_currentAllocatedMemory": lambda: 0,
        "_mps_driverAllocatedMemory": lambda: 0,
        "_mps_recommendedMaxMemory": lambda: 12 << 30,
    }
    cuda = ("_lazy_init", "memory_allocated", "memory_reserved", "mem_get_info", "empty_cache", "synchronize")
    modes: Any = _Metal, _Numbered
    with MonkeyPatch.context() as patch, modes[0](), modes[1]():
        patch.setattr(core, "_has_mps", True)
        for name, answer in answers.items():
            patch.setattr(core, name, answer, raising=False)
        for name in cuda:
            patch.setattr(torch.cuda, name, refuse)
        # A parameter that is moved becomes another: its data cannot be replaced by that of another class.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        patch.setattr(_limit, "most", most)
        torch.backends.mps.is_available.cache_clear()
        yield
    torch.backends.mps.is_available.cache_clear()


@dataclass
class _Limit:
    most: int = 0


_limit = _Limit()


def _compute(function: Any, arguments: Any, options: dict[str, Any]) -> Any:
    tensors = [thing for thing in tree_flatten((arguments, options))[0] if isinstance(thing, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, MetalTensor)]
    asked = options.get("device")
    is_ours = bool(ours) if asked is None else torch.device(asked).type == "mps"
    if not ours and not is_ours:
        return function(*arguments, **options)
    if ours and function not in (*_MOVES, *_WITH_CPU) and any(t.dim() for t in tensors if t not in _Same(ours)):
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, but found at least two")
    if function is torch.ops.aten.copy_.default:
        is_ours = isinstance(arguments[0], MetalTensor)
    known = {id(tensor.on_cpu): tensor for tensor in ours}
    options = {name: torch.device("cpu") if name == "device" and value else value for name, value in options.items()}
    arguments, options = tree_map(_unwrap, (arguments, options))
    made = function(*arguments, **options)
    if function is torch.ops.aten._pack_padded_sequence.default:
        return _wrap(made[0], known, is_ours), made[1]  # sizes stay on the CPU
    return tree_map(lambda x: _wrap(x, known, is_ours), made)


def _unwrap(thing: Any) -> Any:
    return thing.on_cpu if isinstance(thing, MetalTensor) else thing


class _Same:
    """Whether a tensor is one of these, and not equal to one."""

    def __init__(self, tensors: list[MetalTensor]) -> None:
        self._ids = set(map(id, tensors))

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._ids


def _wrap(made: Any, known: dict[int, MetalTensor], is_ours: bool) -> Any:
    if not isinstance(made, torch.Tensor) or isinstance(made, MetalTensor):
        return made
    if id(made) in known:  # written in place
        return known[id(made)]
    if not is_ours:
        return made
    if made.dtype in _LACKS:
        name = str(made.dtype).removeprefix("torch.")
        raise TypeError(f"Cannot convert a MPS Tensor to {name} dtype as the MPS framework doesn't support {name}.")
    if _limit.most and made.numel() * made.element_size() > _limit.most:
        raise RuntimeError(f"MPS backend out of memory (MPS allocated: 1 MiB, max allowed: {_limit.most} bytes).")
    return MetalTensor(made)
