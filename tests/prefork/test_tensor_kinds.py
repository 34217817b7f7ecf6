"""A tensor in a worker equals the tensor in the process that loaded it, whatever kind of tensor it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefork import Runtime
from prefork.weights.arena import Arena, is_same


@pytest.mark.usefixtures("script_engine")
@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_every_kind_of_tensor_is_the_same_in_a_worker(strategy: str) -> None:
    import script_tensors

    expected = script_tensors.describe(script_tensors.load())
    with Runtime(load=script_tensors.load, workers=2, strategy=strategy, notice=lambda _: None) as runtime:
        for found in runtime.map(script_tensors.describe_shared, range(2)):
            assert found == expected


DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128, torch.int16, torch.bfloat16, torch.uint8]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.sampled_from(["transpose", "slice", "step", "flip", "conj", "imag", "expand", "select"]), max_size=5),
)
def test_a_view_of_any_kind_has_its_values_in_the_arena(dtype: torch.dtype, steps: list[str]) -> None:
    base = torch.arange(1, 61).reshape(3, 4, 5).to(dtype)
    if dtype.is_complex:
        base = base * (1 - 2j)
    view = base
    for step in steps:
        view = _take(view, step)
    before = view.clone()
    flags = view.is_conj(), view.is_neg()
    arena = Arena.pack({"model": [view, base]})
    arena.seal()
    assert is_same(view.clone(), before) and (view.is_conj(), view.is_neg()) == flags
    if view.numel():
        assert arena.find(view.data_ptr()) is not None


def _take(view: torch.Tensor, step: str) -> torch.Tensor:
    if step == "transpose" and view.dim() > 1:
        return view.transpose(0, -1)
    if step == "slice":
        return view[1:] if view.dim() and view.size(0) > 1 else view
    if step == "step":
        return view[..., ::2] if view.dim() else view
    if step == "flip":
        return view.flip(0) if view.dim() else view
    if step == "conj":
        return view.conj()
    if step == "imag":
        return view.imag if view.is_complex() else view
    if step == "expand":
        return view[..., None].expand(*view.shape, 3)
    return view[0] if view.dim() and view.size(0) else view


def test_what_differs_in_one_bit_is_not_the_same() -> None:
    values = torch.tensor([1.0, float("nan"), 0.0])
    assert is_same(values, values.clone())
    assert not is_same(values, torch.tensor([1.0, float("nan"), -0.0]))
    assert not is_same(values, values.double())
    conjugated = torch.tensor([1 + 2j]).conj()
    assert not is_same(conjugated, conjugated.resolve_conj())


def test_a_tensor_that_the_arena_changes_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch comes to have beside storage, shape, strides and dtype."""
    monkeypatch.setattr(torch, "_conj", lambda tensor: tensor)
    model = torch.nn.Module()
    model.register_buffer("filt", torch.randn(3, dtype=torch.complex64).conj())
    with pytest.raises(ValueError, match=r"stft: its tensor filt \(3 torch\.complex64\) has other values"):
        Arena.pack({"stft": model})


def test_what_has_no_values_yet_is_refused_by_name() -> None:
    """Each worker would make its own, at random."""
    with pytest.raises(ValueError, match=r"load: its tensor 0\.(weight|bias) has no values yet, .*run the model once"):
        Arena.pack({"load": torch.nn.Sequential(torch.nn.LazyLinear(4))})
