"""Results as bytes: the same bytes for the same result, others for any other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from prefork.work.comparison import NotComparable, encode


@dataclass
class Point:
    x: float
    y: Any


def _results() -> list[Any]:
    """No two of them are the same."""
    return [
        None,
        0,
        0.0,
        -0.0,
        False,
        "",
        b"",
        "0",
        [],
        {},
        set(),
        [0],
        [[0]],
        [0, 0],
        {"a": 1},
        {"a": 2},
        {"b": 1},
        {"a"},
        Point(1.0, torch.zeros(2)),
        Point(1.0, torch.zeros(3)),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(1, 2),
        torch.tensor([0.0, -0.0]),
        torch.tensor(0.0),
        torch.zeros(0),
        np.zeros(2),
        np.zeros(2, np.int64),
        float("nan"),
        1 + 2j,
        ["ab", "c"],
        ["a", "bc"],
    ]


def test_the_same_result_is_the_same_and_no_other_is() -> None:
    first, second = [encode(result) for result in _results()], [encode(result) for result in _results()]
    assert first == second
    assert len(set(first)) == len(first)


def test_neither_order_of_keys_nor_layout_of_memory_matters() -> None:
    assert encode({"a": 1, "b": 2}) == encode(OrderedDict([("b", 2), ("a", 1)]))
    matrix = torch.arange(6.0).view(2, 3)
    assert encode(matrix.t()) == encode(matrix.t().contiguous())
    assert encode(matrix.requires_grad_()) == encode(matrix.detach())
    assert encode(torch.tensor([1.0, float("nan")])) == encode(torch.tensor([1.0, float("nan")]))


class Unreadable(list[int]):
    def __iter__(self) -> Any:
        raise OSError("the disk is gone\nfor good")


def _hold_itself() -> list[Any]:
    result: list[Any] = []
    result.append(result)
    return result


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (torch.ones(3, dtype=torch.complex64).conj(), r"a conjugate or negative view .* return its resolve_conj\(\)"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "a conjugate or negative view"),
        (torch.ones(3, device="meta"), "on the meta device .* it has no data; return one on the CPU"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), r"quantized .* return its dequantize\(\)"),
        (Unreadable([1]), r"a result cannot be compared \(OSError: the disk is gone\); return tensors"),
        (np.zeros(1, [("a", int), ("b", object)]), "an array that holds Python objects"),
        (np.zeros(1, [("a", int), ("b", object)])[0], "an array that holds Python objects"),
        (_hold_itself(), "holds itself, or is nested too deeply"),
    ],
)
def test_a_result_whose_comparison_fails_is_refused_in_one_line(result: Any, reason: str) -> None:
    with pytest.raises(NotComparable, match=reason) as caught:
        encode({"a": [result]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("result", [threading.Event(), [object()], {"a": lambda: 0}, np.array([object()])])
def test_what_nobody_can_compare_is_refused_with_its_type_and_the_remedy(result: Any) -> None:
    with pytest.raises(NotComparable, match="cannot be compared; return tensors"):
        encode(result)
