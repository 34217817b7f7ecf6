"""A Whisper model at work: its weights, its features, its encoder."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration

from prefork.engines.audio.log_mel import DYNAMIC_RANGE, HOP, N_FFT, make_mel_tables
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.checkpoints.quantization import quantize_linears
from prefork.engines.whisper.checkpoint import WhisperCheckpoint


def load_whisper(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> WhisperForConditionalGeneration:
    """The model for inference, with every weight; that of the output is the embedding's. dtype: one of DTYPES. Raises
    LoadError."""
    model: Any = checkpoint.source.load(WhisperForConditionalGeneration, dtype, _quantize)
    return model  # type: ignore[no-any-return]


def count_whisper_weights(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> int:
    """Bytes that the model will take once `load_whisper` has it in this dtype. Raises LoadError."""
    kind: Any = WhisperForConditionalGeneration
    return checkpoint.source.count_weights(kind._from_config, checkpoint.config, dtype, _quantize)


def _quantize(model: nn.Module) -> None:
    """All linear layers but the output: its weight is the embedding's, and is there in float32 anyway."""
    inner: Any = model.model
    quantize_linears(inner)


@functools.cache
def _make_tables(bins: int) -> dict[str, Tensor]:
    return make_mel_tables(bins, SAMPLE_RATE)


def compute_features(checkpoint: WhisperCheckpoint, waveform: Tensor) -> Tensor:
    """The log-mel spectrogram of a window, (mel bins, 3000) float32, bit for bit that of WhisperFeatureExtractor.

    waveform: (samples,) at 16 kHz; silence is appended up to 30 s, and what is beyond is left out.
    """
    tables = _make_tables(int(checkpoint.config.num_mel_bins))
    filters, window = (tables[name].to(waveform.device) for name in ("filters", "window"))
    samples = checkpoint.frames * 2 * HOP
    waveform = F.pad(waveform.float()[:samples], (0, max(0, samples - len(waveform))))
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True)[..., :-1]
    mel = (filters @ (spectrum.abs() ** 2).contiguous()).clamp(min=1e-10).log10()
    features: Tensor = (torch.maximum(mel, mel.max() - DYNAMIC_RANGE) + 4.0) / 4.0
    return features


def encode(model: WhisperForConditionalGeneration, features: Tensor) -> Tensor:
    """What the decoder looks at. features: (batch, mel bins, 3000), or of one window without `batch`.

    (batch, 1500, d_model), in the type that the model computes in, where its weights are.
    """
    encoder: Any = model.model.encoder
    features = features if features.ndim == 3 else features[None]
    weight: Tensor = encoder.conv1.weight
    states: Tensor = encoder(features.to(weight.device, weight.dtype)).last_hidden_state
    return states
