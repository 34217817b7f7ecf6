"""Tensors of every kind that torch has on the CPU, and what they hold, for a process to say."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.testing._internal.two_tensor import TwoTensor


class Scaled(torch.Tensor):
    """A subclass without tensors inside."""


def make(kind: str) -> torch.Tensor:
    """The same each time."""
    torch.manual_seed(0)
    complex_ = torch.randn(4, 5, dtype=torch.complex64)
    plain = torch.randn(4, 5)
    kinds: dict[str, Any] = {
        "conj": complex_.conj,
        "conj of a slice": complex_[1:, ::2].conj,
        "neg": lambda: complex_.conj().imag,
        "complex128 conj": lambda: complex_.to(torch.complex128).conj(),
        "nan": lambda: torch.tensor([float("nan"), -0.0, float("inf")]),
        "transposed": plain.t,
        "expanded": lambda: plain[:, :1].expand(4, 1000),
        "overlapping": lambda: plain.flatten().unfold(0, 6, 2),
        "zero-size": lambda: plain[:0],
        "scalar": lambda: torch.tensor(3.5),
        "bool": lambda: plain > 0,
        "uint16": lambda: torch.arange(5).to(torch.uint16),
        "bfloat16": plain.bfloat16,
        "float8": lambda: plain.to(torch.float8_e4m3fn),
        "sparse": plain.relu().to_sparse,
        "sparse csr": plain.relu().to_sparse_csr,
        "subclass": lambda: plain.as_subclass(Scaled),
        "parameter": lambda: torch.nn.Parameter(plain),
        "nested": lambda: torch.nested.nested_tensor([plain, plain[:2]], layout=torch.jagged),
        "nested, strided": lambda: torch.nested.nested_tensor([plain, plain[:2]]),
        "mkldnn": plain.to_mkldnn,
        "two tensors inside": lambda: TwoTensor(plain, plain + 1),
        "complex32 conj": lambda: complex_.to(torch.complex32).conj(),
        "quantised": lambda: _quantise(plain),
        "meta": lambda: torch.empty(2, 3, device="meta"),
    }
    made: torch.Tensor = kinds[kind]()
    return made


KINDS = (
    *("conj", "conj of a slice", "neg", "complex128 conj", "nan", "transposed", "expanded", "overlapping", "zero-size"),
    *("scalar", "bool", "uint16", "bfloat16", "float8", "sparse", "sparse csr", "subclass", "parameter", "nested"),
    *("quantised", "meta", "nested, strided", "mkldnn", "two tensors inside", "complex32 conj"),
)


def _quantise(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 3, torch.qint8)


def load() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {kind: make(kind) for kind in KINDS}


def describe(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[object, ...]]:
    """By kind: class, dtype, shape, and values as text, where there are any."""
    return {kind: _describe(tensor) for kind, tensor in tensors.items()}


def _describe(tensor: torch.Tensor) -> tuple[object, ...]:
    values = ""
    if isinstance(tensor, TwoTensor):
        values = str([_describe(tensor.a), _describe(tensor.b)])
    elif tensor.is_nested:
        values = str([part.tolist() for part in tensor.unbind()])
    elif tensor.device.type != "meta":
        dense = tensor.detach()
        dense = dense.to_dense() if dense.layout is not torch.strided else dense.as_subclass(torch.Tensor)
        dense = dense.dequantize() if dense.is_quantized else dense
        wider = {torch.float8_e4m3fn: torch.float32, torch.complex32: torch.complex64}
        values = str(dense.to(wider.get(dense.dtype, dense.dtype)).tolist())
    shape = () if tensor.is_nested else tuple(tensor.shape)
    return type(tensor).__name__, str(tensor.dtype), shape, tensor.is_conj(), tensor.is_neg(), values


def describe_shared(tensors: dict[str, torch.Tensor], _: int) -> dict[str, tuple[object, ...]]:
    return describe(tensors)
