"""The GE2E voice encoder: one vector for the voice of a stretch of speech.

Wan et al. 2018, Generalized End-to-End Loss for Speaker Verification, in the form and with the weights of Resemblyzer
(Apache-2.0), whose features and averaging are computed here with torch: the spectrogram, the level, the partials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchaudio.functional
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE = 16_000  # Hz
DIMENSION = 256
_HIDDEN, _LAYERS, _MELS = 256, 3, 40
_WINDOW, _HOP = 400, 160  # samples: 25 and 10 ms
_PARTIAL = 160  # frames that the network hears at a time
_PARTIAL_STEP = 77  # frames from one partial to the next: 1.3 a second
_COVERAGE = 0.75  # of the last partial that must be speech; else it is left out
_LEVEL = -30.0  # dBFS that quieter speech is brought to
_LEAST = 6_400  # samples; a voice is hardly told from less than 0.4 s


class VoiceEncoder(torch.nn.Module):
    """Waveforms to unit vectors, called as pyannote's embedding models are."""

    mels: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(_MELS, _HIDDEN, _LAYERS, batch_first=True)
        self.linear = torch.nn.Linear(_HIDDEN, DIMENSION)
        filters = torchaudio.functional.melscale_fbanks(
            _WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, _MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("mels", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(_WINDOW), persistent=False)
        self.dimension = DIMENSION

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:
        """(batch, dimension), or (batch, speakers, dimension) if weights have speakers.

        waveforms: (batch, 1, samples). weights: (batch, frames) or (batch, speakers, frames), above 0 in the frames,
        of any length, whose speech is heard; a speaker without any has zeros. Raises ValueError for less than 0.4 s.
        """
        if weights is None:
            if waveforms.shape[-1] < _LEAST:
                raise ValueError(f"{waveforms.shape[-1]} samples are too few for a voice; give at least {_LEAST}")
            return self.embed([waveform[0] for waveform in waveforms])
        if weights.dim() == 2:
            return self.forward(waveforms, weights[:, None])[:, 0]
        heard = functional.interpolate(weights, size=waveforms.shape[-1], mode="nearest") > 0
        speeches = [w[0][mask] for w, masks in zip(waveforms, heard, strict=True) for mask in masks]
        return self.embed(speeches).reshape(*weights.shape[:2], DIMENSION)

    def embed(self, speeches: Sequence[Tensor]) -> Tensor:
        """(speeches, dimension) of unit length for (samples,) of one voice each; zeros if there is nothing to hear."""
        result = self.linear.weight.new_zeros(len(speeches), DIMENSION)
        audible = [i for i, speech in enumerate(speeches) if speech.any()]
        if not audible:
            return result
        partials = [self._cut(speeches[i]) for i in audible]
        vectors = torch.split(self._encode(torch.cat(partials)), [len(p) for p in partials])
        result[audible] = functional.normalize(torch.stack([v.mean(dim=0) for v in vectors]), dim=1)
        return result

    def _encode(self, partials: Tensor) -> Tensor:
        """(partials, dimension) unit vectors of (partials, frames, mels)."""
        _, (hidden, _) = self.lstm(partials)
        return functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)

    def _cut(self, speech: Tensor) -> Tensor:
        """(partials, frames, mels): half of one and the next are the same."""
        features, samples = self._compute_features(_raise_level(speech)), len(speech)
        frames = -(-(samples + 1) // _HOP)
        starts = list(range(0, max(1, frames - _PARTIAL + _PARTIAL_STEP + 1), _PARTIAL_STEP))
        if (samples - starts[-1] * _HOP) / (_PARTIAL * _HOP) < _COVERAGE and len(starts) > 1:
            starts.pop()
        return torch.stack([features[start : start + _PARTIAL] for start in starts])

    def _compute_features(self, speech: Tensor) -> Tensor:
        """(frames, mels) power, with silence for another partial at the end."""
        padded = functional.pad(speech, (_WINDOW // 2, _WINDOW // 2 + _PARTIAL * _HOP))
        spectrum = torch.stft(padded, _WINDOW, _HOP, window=self.window, center=False, return_complex=True)
        return spectrum.abs().square().T @ self.mels


def _raise_level(speech: Tensor) -> Tensor:
    level = 10 * torch.log10(speech.square().mean())
    return speech * 10 ** ((_LEVEL - level).clamp(min=0) / 20)


def is_voice_encoder(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is a checkpoint of this network, as Resemblyzer's pretrained.pt is one."""
    state = content.get("model_state")
    return isinstance(state, Mapping) and "similarity_weight" in state and "lstm.weight_ih_l0" in state


def build_voice_encoder(content: Mapping[str, Any]) -> VoiceEncoder:
    """The network with a checkpoint's weights. Raises RuntimeError if they do not fit."""
    model = VoiceEncoder()
    model.load_state_dict({k: v for k, v in content["model_state"].items() if not k.startswith("similarity_")})
    return model.eval()
