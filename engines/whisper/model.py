"""A Whisper model at work: its weights, its features, its encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prefork.engines.audio.log_mel import DYNAMIC_RANGE, HOP, N_FFT, make_mel_tables
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.whisper.checkpoint import WhisperCheckpoint
from prefork.engines.checkpoints.whisper_layers import list_sources
from prefork.engines.whisper.network import WhisperConfig, WhisperNetwork


def load_whisper(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> WhisperNetwork:
    """The model for inference, with every weight. dtype: one of DTYPES. Raises LoadError."""
    with torch.device("meta"):
        network = WhisperNetwork(checkpoint.config)
    checkpoint.source.fill(network, dtype, list_sources)
    return network


def count_whisper_weights(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> int:
    """Bytes that the model will take once `load_whisper` has it in this dtype. Raises LoadError."""

    def build(config: WhisperConfig, dtype: torch.dtype) -> WhisperNetwork:
        return WhisperNetwork(config).to(dtype)

    return checkpoint.source.count_weights(build, checkpoint.config, dtype)


def compute_features(checkpoint: WhisperCheckpoint, waveform: Tensor) -> Tensor:
    """The log-mel spectrogram of a window, (mel bins, 3000) float32, bit for bit that of WhisperFeatureExtractor.

    waveform: (samples,) at 16 kHz; silence is appended up to 30 s, and what is beyond is left out.
    """
    tables = make_mel_tables(checkpoint.config.num_mel_bins, SAMPLE_RATE, str(waveform.device))
    filters, window = tables["filters"], tables["window"]
    samples = checkpoint.frames * 2 * HOP
    waveform = F.pad(waveform.float()[:samples], (0, max(0, samples - len(waveform))))
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True)[..., :-1]
    mel = (filters @ (spectrum.abs() ** 2).contiguous()).clamp(min=1e-10).log10()
    features: Tensor = (torch.maximum(mel, mel.max() - DYNAMIC_RANGE) + 4.0) / 4.0
    return features


def encode(network: WhisperNetwork, features: Tensor) -> Tensor:
    """What the decoder looks at. features: (batch, mel bins, 3000), or of one window without `batch`.

    (batch, 1500, d_model), in the type that the model computes in, where its weights are.
    """
    states: Tensor = network.encoder(features if features.ndim == 3 else features[None])
    return states
