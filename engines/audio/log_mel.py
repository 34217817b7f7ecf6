"""The tables of Whisper's log-mel spectrogram."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HOP = 160  # samples from one mel frame to the next
N_FFT = 400  # samples under one window
DYNAMIC_RANGE = 8.0  # log10 units below a waveform's loudest mel value
# Slaney's scale (Auditory Toolbox, 1998), as librosa and transformers have it: linear up to 1000 Hz, then logarithmic.
_LINEAR = 200.0 / 3  # Hz of a mel
_LOG_FROM = 1000.0  # Hz
_LOG_STEP = np.log(6.4) / 27.0


@functools.cache
def make_mel_tables(bins: int, sampling_rate: int, device: str = "cpu") -> dict[str, Tensor]:
    """What Whisper's log-mel spectrogram is made with: filters, (bins, N_FFT // 2 + 1), and window, (N_FFT,)."""
    filters = torch.from_numpy(_make_filters(bins, sampling_rate).T).float().contiguous()
    window = torch.hann_window(N_FFT, dtype=torch.float32)  # the default is another while such a model is loaded
    return {"filters": filters.to(device), "window": window.to(device)}


def _make_filters(bins: int, sampling_rate: int) -> NDArray[np.float64]:
    """(N_FFT // 2 + 1, bins): triangles between neighbours on the mel scale, all of one area."""
    mels = np.linspace(0.0, _to_mel(sampling_rate / 2), bins + 2)
    edges = _to_hertz(mels)
    frequencies = np.linspace(0, sampling_rate // 2, N_FFT // 2 + 1)
    widths = np.diff(edges)
    slopes = np.expand_dims(edges, 0) - np.expand_dims(frequencies, 1)
    down = -slopes[:, :-2] / widths[:-1]
    up = slopes[:, 2:] / widths[1:]
    filters: NDArray[np.float64] = np.maximum(np.zeros(1), np.minimum(down, up))
    return filters * np.expand_dims(2.0 / (edges[2 : bins + 2] - edges[:bins]), 0)


def _to_mel(hertz: float) -> float:
    return float(15.0 + np.log(hertz / _LOG_FROM) / _LOG_STEP) if hertz >= _LOG_FROM else hertz / _LINEAR


def _to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels >= 15.0, _LOG_FROM * np.exp(_LOG_STEP * (mels - 15.0)), _LINEAR * mels)
