"""Quantised layers: near what they replace, shared and sealed like any weights, and the same whoever is beside."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prefork.engines.base import Engine, LoadError
from prefork.engines.checkpoints import model_folder, quantization, whisper_layers
from prefork.engines.checkpoints.quantization import QuantizedLinear, quantize_linears
from prefork.engines.checkpoints.whisper_layers import SelfAttention, attend_in_bfloat16
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.ctc.recovery import CTCRecovery
from prefork.engines.whisper.aligner import WhisperAligner
from prefork.engines.whisper.asr import LanguageDetector, WhisperASR
from prefork.weights.arena import Arena

pytestmark = pytest.mark.dependencies

# What oneDNN gets wrong on processors without VNNI if weights use all 8 bits: every sum as large as it can be.
LARGEST_SUMS = """
import torch
from torch import nn
from prefork.engines.checkpoints.quantization import QuantizedLinear
linear = nn.Linear(384, 96, bias=False)
for sign in (1.0, -1.0):
    nn.init.constant_(linear.weight, sign)
    for rows in (1, 50):
        for value in (1.0, -1.0):
            output = QuantizedLinear(linear)(torch.full((rows, 384), value))
            assert torch.allclose(output, torch.full((rows, 96), 384.0 * sign * value)), output
"""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@torch.inference_mode()
def test_a_quantised_layer_is_near_the_one_it_replaces(bias: bool, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:  # as on a processor whose integers are not multiplied
        monkeypatch.setattr(quantization, "_multiplies_int8", lambda: False)
    linear = nn.Linear(384, 96, bias=bias)
    hidden = torch.randn(2, 50, 384)
    expected, found = linear(hidden), QuantizedLinear(linear)(hidden)
    assert found.shape == expected.shape and found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.02


@torch.inference_mode()
def test_a_row_gives_what_it_gives_alone_beside_louder_ones() -> None:
    layer = QuantizedLinear(nn.Linear(384, 96))
    rows = torch.randn(50, 384) * torch.logspace(-3, 3, 50)[:, None]
    together = layer(rows)
    assert all(torch.equal(layer(row[None])[0], together[index]) for index, row in enumerate(rows))


@torch.inference_mode()
def test_silence_and_a_weight_of_zeros_give_the_bias() -> None:
    linear = nn.Linear(64, 32)
    assert torch.equal(QuantizedLinear(linear)(torch.zeros(3, 64)), linear.bias.expand(3, -1))
    nn.init.zeros_(linear.weight)
    assert torch.equal(QuantizedLinear(linear)(torch.randn(3, 64)), linear.bias.expand(3, -1))


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_no_sum_overflows_whatever_the_processor_can_do(instructions: str) -> None:
    """oneDNN is told to use no more than these, as on an older processor, in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", LARGEST_SUMS], check=True, env=environment, timeout=60)


@torch.inference_mode()
def test_quantised_weights_are_shared_sealed_and_still_multiply() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8))
    quantize_linears(model)
    hidden = torch.randn(5, 64)
    before = model(hidden)
    arena = Arena.pack({"model": model})
    arena.seal()
    assert all(arena.find(tensor.data_ptr()) for tensor in model.state_dict().values())
    assert sum(tensor.dtype == torch.int8 for tensor in model.state_dict().values()) == 2
    assert torch.equal(model(hidden), before)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # its report is expected, and no news
        weights: Any = model[0].rows
        weights[0, 0] = 1
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV


@torch.inference_mode()
def test_quantised_weights_are_found_in_another_processs_arena(tmp_path: Path) -> None:
    first, second = nn.Sequential(nn.Linear(64, 32)), nn.Sequential(nn.Linear(64, 32))
    second.load_state_dict(first.state_dict())
    quantize_linears(first)
    quantize_linears(second)
    path = tmp_path / "arena"
    path.touch()
    manifest = Arena.pack({"model": first}, str(path)).describe()
    adopted = Arena.adopt({"model": second}, manifest)
    assert all(adopted.find(tensor.data_ptr()) for tensor in second.state_dict().values())
    hidden = torch.randn(5, 64)
    assert torch.equal(first(hidden), second(hidden))


def test_only_plain_linear_layers_are_replaced() -> None:
    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "own": nn.MultiheadAttention(4, 1), "other": nn.Conv1d(4, 4, 1)})
    quantize_linears(model)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name}
    assert kinds == {
        "plain": "QuantizedLinear",
        "own": "MultiheadAttention",
        "own.out_proj": "NonDynamicallyQuantizableLinear",
        "other": "Conv1d",
    }


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


@pytest.mark.parametrize(
    ("engine", "suggested", "dtype"),
    [
        (CTCAligner(), "int8", "int8"),
        (CTCAligner(), "float32", "float32"),
        (CTCAligner(dtype="bfloat16"), "int8", "bfloat16"),
        (CTCAligner("a wav2vec2"), "int8", "float32"),  # whose results in int8 nobody has looked at
        (CTCRecovery(), "int8", "int8"),
        (WhisperASR(), "int8", "int8"),
        (WhisperASR("tiny.en", dtype="float32"), "int8", "float32"),
        (LanguageDetector(), "int8", "int8"),
        (WhisperAligner(), "int8", "int8"),
        (WhisperAligner(dtype="float16"), "int8", "float16"),
    ],
    ids=lambda value: value.name if isinstance(value, Engine) else value,
)
def test_what_is_best_on_a_machine_is_taken_unless_the_user_has_chosen(
    engine: Engine, suggested: str, dtype: str
) -> None:
    engine.suggest_dtype(suggested)
    own: Any = engine._aligner if isinstance(engine, CTCRecovery) else engine
    assert own._dtype == dtype


@torch.inference_mode()
def test_an_embedding_gives_its_rows_and_blocks_give_what_the_whole_gives() -> None:
    layer = QuantizedLinear(nn.Linear(64, 1000, bias=False))
    indices = torch.tensor([[3, 999], [0, 3]])
    assert torch.equal(layer.select(indices), layer.weight[indices])
    rows = torch.randn(1100, 64)
    assert torch.equal(layer(rows), torch.cat([layer(rows[first : first + 300]) for first in range(0, 1100, 300)]))


def test_nothing_symbolic_is_imported_to_count_weights() -> None:
    """Whose libraries take a second."""
    code = "import sys; from prefork.engines.whisper.asr import WhisperASR; engine = WhisperASR('tiny.en', 'int8'); "
    code += "engine.setup(); assert 40e6 < engine.count_weights() < 45e6; engine.load(); "
    code += "assert not {'sympy', 'transformers', 'torch._dynamo'} & set(sys.modules), sorted(sys.modules)"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ | {"PYTHONPATH": str(root)})


@pytest.mark.parametrize("kind", [CTCAligner, CTCRecovery, WhisperASR, LanguageDetector, WhisperAligner])
@pytest.mark.parametrize("dtype", ["", "int4"])
def test_what_no_weights_can_be_held_in_is_refused(kind: Any, dtype: str) -> None:
    with pytest.raises(LoadError, match=f"dtype must be one of float32, bfloat16, float16, int8, not '{dtype}'"):
        kind(dtype=dtype)


@pytest.mark.parametrize("kind", [CTCAligner, WhisperASR, WhisperAligner])
def test_weights_of_7_bits_have_another_fingerprint(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one processor has made is not taken for what the other would make."""

    def identify(limit: int, dtype: str) -> Any:
        monkeypatch.setattr(model_folder, "find_weight_limit", lambda: limit)
        engine = kind(None if kind is CTCAligner else "tiny.en", dtype=dtype)
        engine.setup()
        return engine.fingerprint()

    assert identify(64, "int8") != identify(127, "int8")
    assert identify(64, "float32") == identify(64, "float32") != identify(64, "int8")


@pytest.mark.parametrize("count", [256, 700, 1500])
@torch.inference_mode()
def test_attention_in_bfloat16_is_near_that_in_float32_and_of_each_row_alone(count: int) -> None:
    parts = torch.randn(3, 2, 2, count, 64)
    found = attend_in_bfloat16(*parts)
    expected = torch.nn.functional.scaled_dot_product_attention(*parts)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.01
    assert torch.equal(attend_in_bfloat16(*parts[:, 1:])[0], found[1])


@torch.inference_mode()
def test_attention_is_in_bfloat16_only_beside_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, hidden = SelfAttention(128, 2, bfloat16=True), torch.randn(1, 300, 128)
    used: list[int] = []

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        used.append(parts[0].shape[2])
        return attend_in_bfloat16(*parts)

    monkeypatch.setattr(whisper_layers, "attend_in_bfloat16", attend)
    monkeypatch.setattr(whisper_layers, "multiplies_bfloat16", lambda: True)
    layer.attend(*layer.project(hidden))
    assert not used
    quantize_linears(layer)
    layer.attend(*layer.project(hidden))
    assert used
    aligner = SelfAttention(128, 2)
    quantize_linears(aligner)
    aligner.attend(*aligner.project(hidden))
    monkeypatch.setattr(whisper_layers, "multiplies_bfloat16", lambda: False)
    layer.attend(*layer.project(hidden))
    assert len(used) == 1
