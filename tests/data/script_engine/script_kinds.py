"""Models of many kinds, small and random, by name: how each is made, and what it computes.

A function that makes one returns it together with a function that computes with it. The same values come out each time,
in whatever process: what is random is seeded.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Made = tuple[Any, Callable[[Any], Any]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """needs: a package that not everybody has. alone: not in one process with the others."""

    make: Callable[[], Made]
    needs: str | None = None
    alone: bool = False


KINDS: dict[str, Kind] = {}


def kind(
    name: str, needs: str | None = None, alone: bool = False
) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def add(make: Callable[[], Made]) -> Callable[[], Made]:
        assert name not in KINDS, name
        KINDS[name] = Kind(make, needs, alone)
        return make

    return add


def list_kinds() -> dict[str, Kind]:
    for module in ("script_transformers", "script_modules", "script_weights", "script_others"):
        importlib.import_module(module)
    return KINDS


def make(name: str) -> Made:
    torch.manual_seed(0)
    np.random.seed(0)
    return list_kinds()[name].make()


def load(names: Sequence[str]) -> dict[str, Made]:
    return {name: make(name) for name in names}


def compute(made: Mapping[str, Made], name: str) -> Any:
    """What a model computes, twice, as `encode` has it."""
    model, run = made[name]
    with torch.no_grad():
        return [encode(run(model)) for _ in range(2)]


def encode(value: Any) -> Any:
    """As what can be compared bit by bit, and sent to another process."""
    if isinstance(value, torch.Tensor):
        dense = value.detach().to_dense() if value.layout is torch.sparse_coo else value.detach()
        dense = dense.as_subclass(torch.Tensor).contiguous()
        return str(dense.dtype), tuple(dense.shape), dense.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {key: encode(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [encode(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(dataclasses.asdict(value))
    return value
