"""How far two results are from one another, computed on different devices or in different company."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefork.work.comparison import NotComparable

_ROUNDINGS = 16  # of the type that weights are multiplied in, that a whole model may add up to
_TF32 = 2.0**-10  # what GPUs multiply float32 in: en.wikipedia.org/wiki/TensorFloat-32

Numbers = dict[str, NDArray[Any]]


class Unlike(Exception):
    """Two results of which no number says how far apart they are: other shapes, or other decisions. Says which."""


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """largest: of two numbers. relative: the length of the difference as a vector, of that of the reference. where:
    which part of the result."""

    largest: float = 0.0
    relative: float = 0.0
    where: str = ""

    def __str__(self) -> str:
        where = f" in {self.where}" if self.where else ""
        return f"the largest difference is {self.largest:.1e}{where}, the relative difference {self.relative:.1e}"


def flatten(result: Any) -> Numbers:
    """All numbers of a result, by where they are in it. Raises NotComparable if there are none."""
    found = dict(_walk(result, ""))
    if not found:
        raise NotComparable("a result without numbers cannot be compared between devices; return tensors")
    return found


def _walk(thing: Any, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(thing, torch.Tensor):
        dense = thing.detach().cpu()
        dense = dense.to_dense() if dense.layout is not torch.strided else dense
        dense = dense.dequantize() if dense.is_quantized else dense.resolve_conj().resolve_neg()
        yield name, (dense.float() if dense.dtype in (torch.bfloat16, torch.float16) else dense).numpy().copy()
    elif isinstance(thing, np.ndarray | np.generic | int | float | complex):
        yield name, np.array(thing)
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from _walk({field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}, name)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _walk(value, f"{name}.{key}" if name else str(key))
    elif isinstance(thing, Sequence) and not isinstance(thing, str | bytes):
        for index, value in enumerate(thing):
            yield from _walk(value, f"{name}[{index}]")


def measure_difference(found: Numbers, reference: Numbers) -> Difference:
    """The worst of all parts. Infinite where something is no number in one alone. Raises Unlike where shapes or whole
    numbers differ."""
    if found.keys() != reference.keys():
        raise Unlike(f"its parts are different: {', '.join(sorted(found.keys() ^ reference.keys()))}")
    parts = [_measure(name, found[name], reference[name]) for name in reference]
    largest = max(part.largest for part in parts)
    return dataclasses.replace(max(parts, key=lambda part: part.relative), largest=largest)


def _measure(name: str, found: NDArray[Any], reference: NDArray[Any]) -> Difference:
    if found.shape != reference.shape:
        raise Unlike(f"{name} has the shape {found.shape}, not {reference.shape}")
    if not found.size:
        return Difference()
    if not np.issubdtype(reference.dtype, np.inexact):
        if differing := int((found != reference).sum()):
            raise Unlike(f"{differing} of {found.size} whole numbers in {name} differ")
        return Difference()
    if not np.array_equal(np.isnan(found), np.isnan(reference)):
        return Difference(np.inf, np.inf, name)
    same = (found == reference) | np.isnan(reference)  # infinite ones, too
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(found - reference).astype(np.float64))
    length = float(np.linalg.norm(np.where(np.isfinite(reference), np.abs(reference), 0.0).astype(np.float64)))
    distance = float(np.linalg.norm(off))
    return Difference(float(off.max()), distance / length if length else distance, name)


def find_dtype(models: Mapping[str, Any]) -> str:
    """The coarsest type that weights have, by its name in torch; float32 if unknown."""
    dtypes = {
        parameter.dtype
        for model in models.values()
        if isinstance(model, torch.nn.Module)
        for parameter in model.parameters()
        if parameter.is_floating_point()
    }
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return str(coarsest).removeprefix("torch.")


def find_tolerance(dtype: str) -> float:
    """What a result may be off by, of its length as a vector, where a model has weights of this type."""
    eps = torch.finfo(getattr(torch, dtype)).eps
    return float(_ROUNDINGS * (_TF32 if dtype == "float32" else eps))
