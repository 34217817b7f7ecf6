"""The tables of Whisper's log-mel spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

HOP = 160  # samples from one mel frame to the next
N_FFT = 400  # samples under one window
DYNAMIC_RANGE = 8.0  # log10 units below a waveform's loudest mel value


def make_mel_tables(bins: int, sampling_rate: int) -> dict[str, Tensor]:
    """What Whisper's log-mel spectrogram is made with: filters, (bins, N_FFT // 2 + 1), and window, (N_FFT,)."""
    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    window = torch.hann_window(N_FFT, dtype=torch.float32)  # the default is another while such a model is loaded
    return {"filters": torch.from_numpy(filters.T).float().contiguous(), "window": window}
