"""A Whisper model at work: its weights, its features, its encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from prefork.engines.audio.log_mel import DYNAMIC_RANGE, HOP, N_FFT, make_mel_tables
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.checkpoints.model_folder import build_empty
from prefork.engines.checkpoints.whisper_layers import list_sources
from prefork.engines.whisper.checkpoint import WhisperCheckpoint
from prefork.engines.whisper.network import WhisperConfig, WhisperNetwork, release_host_memory

SILENCE = 100  # frames of 20 ms
CONTEXT_STEP = 125
LEAST_CONTEXT = 750


def load_whisper(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> WhisperNetwork:
    """The model for inference, with every weight. dtype: one of DTYPES. Raises LoadError."""
    network: WhisperNetwork = build_empty(WhisperNetwork, checkpoint.config)
    checkpoint.source.fill(network, dtype, list_sources)
    return network


def count_whisper_weights(checkpoint: WhisperCheckpoint, dtype: str = "float32") -> int:
    """Bytes that the model will take once `load_whisper` has it in this dtype. Raises LoadError."""

    def build(config: WhisperConfig, dtype: torch.dtype) -> WhisperNetwork:
        return WhisperNetwork(config).to(dtype)

    return checkpoint.source.count_weights(build, checkpoint.config, dtype)


def count_context(checkpoint: WhisperCheckpoint, frames: int) -> int:
    """Of a window whose sound has so many of the encoder's frames, those that the encoder is given: with silence after
    the sound, but not up to 30 s, as it was trained.

    Of 21 recordings of learners with whisper-tiny.en in int8 (tests/benchmarks/transcription.py), words that are wrong,
    and of no length: with all 30 s 34.9 %, 11; up to the next 2.5 s after 2 s of silence 33.6 %, 8; with 1 s 38.7 %,
    71; with none 48.6 %, 174. Of 160 single utterances of these, words that are wrong, and texts that go on and on:
    with 30 s 41.5 %, 0; with 15 s at least 40.0 %, 1; with 10 s 40.4 %, 2; with as little as it takes 41.0 %, 3.
    """
    return min(checkpoint.frames, max(LEAST_CONTEXT, math.ceil((frames + SILENCE) / CONTEXT_STEP) * CONTEXT_STEP))


def compute_features(checkpoint: WhisperCheckpoint, waveform: Tensor) -> Tensor:
    """The log-mel spectrogram of a window, (mel bins, 2 * frames) float32, frames as `count_context` has them; as far
    as it goes, bit for bit that of WhisperFeatureExtractor.

    waveform: (samples,) at 16 kHz; silence is appended up to 30 s, and what is beyond is left out.
    """
    tables = make_mel_tables(checkpoint.config.num_mel_bins, SAMPLE_RATE, str(waveform.device))
    frames = 2 * count_context(checkpoint, count_frames(checkpoint, len(waveform)))
    samples = checkpoint.frames * 2 * HOP
    waveform = waveform.float()[:samples]
    waveform = F.pad(waveform, (0, min(samples, frames * HOP + N_FFT) - len(waveform)))
    spectrum = torch.stft(waveform, N_FFT, HOP, window=tables["window"], return_complex=True)[..., :frames]
    mel = (tables["filters"] @ (spectrum.abs() ** 2).contiguous()).clamp(min=1e-10).log10()
    features: Tensor = (torch.maximum(mel, mel.max() - DYNAMIC_RANGE) + 4.0) / 4.0
    return features


def count_frames(checkpoint: WhisperCheckpoint, samples: int) -> int:
    """The encoder's frames of a window that are no padding."""
    return min(checkpoint.frames, max(1, math.ceil(samples / (2 * HOP))))


def encode(network: WhisperNetwork, features: Sequence[Tensor]) -> list[Tensor]:
    """What the decoder looks at. features: of each window, (mel bins, 2 * frames).

    Of each window (frames, size), in the type that the model computes in, where its weights are; those that are equally
    long are computed together.
    """
    found: dict[int, Tensor] = {}
    for length in {tensor.shape[1] for tensor in features}:
        places = [place for place, tensor in enumerate(features) if tensor.shape[1] == length]
        # A worker's largest moments are a spectrogram, an encoder and a decoder: each in what the one before it gave
        # back, and not beside it.
        release_host_memory(features[0])
        states = network.encoder(torch.stack([features[place] for place in places]))
        found.update(zip(places, states, strict=True))
    if features:
        release_host_memory(features[0])
    return [found[place] for place in range(len(features))]
