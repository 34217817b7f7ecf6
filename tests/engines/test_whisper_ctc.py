"""The embedded aligner's architecture, with its real weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from prefork.engines.ctc.aligner import EMBEDDED
from prefork.engines.ctc.checkpoint import load_model, open_checkpoint
from prefork.engines.ctc.whisper_ctc import compute_log_mel


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(open_checkpoint(str(EMBEDDED)))


@pytest.fixture(scope="module")
def check() -> dict[str, Tensor]:
    return load_file(EMBEDDED / "check.safetensors")


@torch.inference_mode()
def emit(model: Any, waveform: Tensor, mask: Tensor | None = None) -> Tensor:
    emission: Tensor = model(waveform, attention_mask=mask).logits.log_softmax(-1)
    return emission


def test_real_speech_gives_the_emissions_of_the_trained_model(model: Any, check: dict[str, Tensor]) -> None:
    emission = emit(model, check["waveform"][None])[0]
    assert emission.shape == check["log_probs"].shape
    torch.testing.assert_close(emission, check["log_probs"], atol=1e-3, rtol=0)


def test_a_row_of_a_batch_gives_what_it_gives_alone(model: Any, check: dict[str, Tensor]) -> None:
    lengths = [48_000, 47_999, 30_081, 16_160, 16_159, 700, 161, 100]
    waveform = torch.full((len(lengths), 48_000), 0.3)  # what is masked must not matter
    mask = torch.zeros(len(lengths), 48_000, dtype=torch.long)
    for row, length in enumerate(lengths):
        waveform[row, :length] = check["waveform"][:length]
        mask[row, :length] = 1
    batch = emit(model, waveform, mask)
    for row, length in enumerate(lengths):
        alone = emit(model, check["waveform"][None, :length])[0]
        assert len(alone) == (length // 160 + 1) // 2
        torch.testing.assert_close(batch[row, : len(alone)], alone, atol=1e-4, rtol=0)


def test_a_batch_shorter_than_its_padding_gives_the_frames_of_its_longest_row(
    model: Any, check: dict[str, Tensor]
) -> None:
    mask = (torch.arange(48_000) < 16_000).long()[None]
    emission = emit(model, check["waveform"][None], mask)
    torch.testing.assert_close(emission, emit(model, check["waveform"][None, :16_000]), atol=1e-4, rtol=0)


def test_thirty_seconds_give_what_whisper_gives_and_more_is_refused(model: Any, check: dict[str, Tensor]) -> None:
    whisper: Any = WhisperEncoder(WhisperConfig())  # the defaults are tiny's sizes
    whisper.eval()
    stored = load_file(EMBEDDED / "model.safetensors")
    parts = {name.removeprefix("encoder."): tensor for name, tensor in stored.items() if name.startswith("encoder.")}
    whisper.load_state_dict(parts)
    waveform = check["waveform"].repeat(10)[None]
    with torch.inference_mode():
        mel = compute_log_mel(model.config, waveform)
        full = torch.tensor([1500])
        ours = model.encoder(mel, full, full)[..., :384]
        theirs = whisper(mel).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="at most 30 s"):
        emit(model, torch.zeros(1, 480_320))
