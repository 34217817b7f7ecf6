"""Modules whose weight is of any kind that torch has."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from script_kinds import Made, kind
from script_tensors import Scaled

INPUT = torch.linspace(-1, 1, 24).reshape(3, 8)


def _quiet(function: Any, *arguments: Any, **options: Any) -> Any:
    """What torch has deprecated, and users still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


class Product(torch.nn.Module):
    """Its weight is of any kind that a matrix product takes."""

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return torch.mm(self.weight, value.T)


def multiply(model: Any) -> Any:
    return model(INPUT)


@kind("float8")
def make_float8() -> Made:
    weight = torch.randn(4, 8).to(torch.float8_e4m3fn)
    return Product(weight), lambda model: model.weight.float() @ INPUT.T


@kind("sparse")
def make_sparse() -> Made:
    return Product(torch.randn(4, 8).relu().to_sparse()), multiply


@kind("sparse CSR")
def make_sparse_csr() -> Made:
    return Product(torch.randn(4, 8).relu().to_sparse_csr()), multiply


@kind("quantised tensor")
def make_quantised() -> Made:
    weight = _quiet(torch.quantize_per_tensor, torch.randn(4, 8), 0.1, 3, torch.qint8)
    return Product(weight), lambda model: model.weight.dequantize() @ INPUT.T


@kind("nested")
def make_nested() -> Made:
    parts = torch.nested.nested_tensor([torch.randn(4, 8), torch.randn(2, 8)], layout=torch.jagged)
    return Product(parts), lambda model: [part @ INPUT.T for part in model.weight.unbind()]


@kind("nested, strided")
def make_nested_strided() -> Made:
    parts = _quiet(torch.nested.nested_tensor, [torch.randn(4, 8), torch.randn(2, 8)])
    return Product(parts), lambda model: [part @ INPUT.T for part in model.weight.unbind()]


@kind("mkldnn")
def make_mkldnn() -> Made:
    return Product(torch.randn(4, 8).to_mkldnn()), lambda model: model.weight.to_dense() @ INPUT.T


@kind("meta")
def make_meta() -> Made:
    model = Product(torch.randn(4, 8))
    with torch.device("meta"):
        model.unused = torch.nn.Linear(4, 4)
    return model, lambda model: [model(INPUT), model.unused.weight.shape]


@kind("zero-size")
def make_zero_size() -> Made:
    return Product(torch.randn(0, 8)), multiply


@kind("subclass")
def make_subclass() -> Made:
    return Product(torch.randn(4, 8).as_subclass(Scaled)), multiply


@kind("subclass with a tensor inside")
def make_wrapper() -> Made:
    from torch.testing._internal.two_tensor import TwoTensor

    return Product(TwoTensor(torch.randn(4, 8), torch.randn(4, 8))), lambda model: model.weight.b @ INPUT.T


@kind("conj")
def make_conj() -> Made:
    weight = torch.randn(4, 8, dtype=torch.complex64).conj()
    return Product(weight), lambda model: torch.view_as_real(
        (model.weight @ INPUT.T.to(torch.complex64)).resolve_conj()
    )
