"""A head that tells phones apart, every 10 ms, on an encoder whose frames last 20: what word boundaries are measured
with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SILENCE = 0  # the column of what is no phone: pauses, breaths, noise
# ARPAbet, as CMUdict writes it, without stress; AX is its unstressed AH. Their columns follow that of SILENCE.
_ARPABET = "AA AE AH AO AW AX AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
PHONES = tuple(_ARPABET.split())
STEPS = 2  # outputs for each frame of the encoder


class Sizes(Protocol):
    """d_model, num_mel_bins: of the encoder. phone_dim: of this head's own layers."""

    @property
    def d_model(self) -> int: ...
    @property
    def num_mel_bins(self) -> int: ...
    @property
    def phone_dim(self) -> int: ...


class PhoneHead(nn.Module):
    """(batch, frames, 2 * d_model) of the encoder and its log-mel spectrogram to logits (batch, 2 * frames, phones).

    The encoder knows what is said; the spectrogram, whose frames are half as long, where one sound becomes another.
    """

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        size = config.phone_dim
        self.norm = nn.LayerNorm(2 * config.d_model)
        self.project = nn.Linear(2 * config.d_model, size)
        self.local = nn.Conv1d(config.num_mel_bins, size, 11, stride=STEPS, padding=5)
        self.conv1 = nn.Conv1d(size, size, 5, padding=2)
        self.conv2 = nn.Conv1d(size, size, 5, padding=2)
        self.classifier = nn.Linear(size, STEPS * (1 + len(PHONES)))

    def forward(self, features: Tensor, mel: Tensor, padded: Tensor, frames: Tensor) -> Tensor:
        """mel: (batch, bins, 2 * max padded). padded, frames: as the encoder takes them."""
        local = convolve(self.local, mel.to(self.local.weight.dtype), STEPS * padded)[..., : features.shape[1]]
        hidden = F.gelu(self.project(self.norm(features)) + local.transpose(1, 2)).transpose(1, 2)
        for convolution in (self.conv1, self.conv2):
            hidden = hidden + F.gelu(convolve(convolution, hidden, frames))
        logits: Tensor = self.classifier(hidden.transpose(1, 2))
        return logits.reshape(len(logits), -1, 1 + len(PHONES))


def convolve(convolution: nn.Module, values: Tensor, lengths: Tensor) -> Tensor:
    """(batch, channels, frames) of each row's own first frames, and zeros. lengths: (batch,), on the CPU.

    Each row by itself: torch chooses a convolution's algorithm by its input's size, and they round differently. So do
    layers that get what they get in another order in memory.
    """
    if len(values) == 1:
        return convolution(values[..., : int(lengths)])  # type: ignore[no-any-return]
    rows = [convolution(row[None, :, :length])[0] for row, length in zip(values, lengths.tolist(), strict=True)]
    longest = max(row.shape[1] for row in rows)
    return torch.stack([F.pad(row, (0, longest - row.shape[1])) for row in rows])
