"""Linear layers in int8: how far they are from float32, and that their weights can be shared like any others."""

from __future__ import annotations

import pytest
import torch

from engines.ctc_aligner import CTCAligner
from engines.quantization import QuantizedLinear, quantize_linears
from prefork.arena import Arena


@pytest.fixture
def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(384, 1536).eval()


@torch.inference_mode()
def test_a_quantized_layer_is_close_to_the_one_it_was_made_of(linear: torch.nn.Linear) -> None:
    rows = torch.randn(2, 50, 384) * torch.logspace(-3, 3, 50)[:, None]  # each row has a scale of its own
    exact, result = linear(rows), QuantizedLinear(linear)(rows)
    error = (result - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert result.shape == exact.shape
    assert float(error.max()) < 0.02


@torch.inference_mode()
def test_a_row_is_the_same_whoever_shares_its_batch(linear: torch.nn.Linear) -> None:
    layer = QuantizedLinear(linear)
    rows = torch.randn(33, 384)
    rows[0] *= 1000
    together = layer(rows)
    assert all(torch.equal(layer(row[None])[0], result) for row, result in zip(rows, together, strict=True))


@torch.inference_mode()
def test_rows_of_zeros_are_no_exception(linear: torch.nn.Linear) -> None:
    assert torch.equal(QuantizedLinear(linear)(torch.zeros(3, 384)), linear.bias.expand(3, -1))


@torch.inference_mode()
def test_quantized_weights_go_to_the_arena_and_compute_there(linear: torch.nn.Linear) -> None:
    model = torch.nn.Sequential(linear, torch.nn.ReLU(), torch.nn.Linear(1536, 32)).eval()
    quantize_linears(model)
    rows = torch.randn(10, 384)
    before = model(rows)
    arena = Arena.pack({"model": model})
    arena.seal()
    assert 384 * 1536 + 1536 * 32 < arena.size < 1.05 * (384 * 1536 + 1536 * 32)
    assert all(arena.find(tensor.data_ptr()) for tensor in model.state_dict().values())
    assert torch.equal(model(rows), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_the_aligner_emits_much_the_same_whatever_its_weights_are_held_in(dtype: str) -> None:
    emissions = []
    for name in ("float32", dtype):
        engine = CTCAligner(dtype=name)
        engine.setup()
        with torch.inference_mode():
            (output,) = engine.infer(engine.load(), [engine.example()])
        engine.verify(output)
        emissions.append(output["log_probs"].exp())
        assert output["log_probs"].dtype == torch.float32
        assert ("dtype", name) in engine.fingerprint().items()
    assert 0 < float((emissions[0] - emissions[1]).abs().mean()) < 0.002
