"""Whisper's encoder with a character head: the architecture of the embedded aligner, `models/ctc-aligner-en`.

It differs from Whisper's own encoder in what alignment needs: the input is a waveform of any length up to 30 s instead
of exactly 30 s of features, and each row of a batch is computed as if it were alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefork.engines.audio.log_mel import DYNAMIC_RANGE, HOP, N_FFT, make_mel_tables
from prefork.engines.checkpoints.whisper_layers import EncoderConfig
from prefork.engines.ctc.phone_head import PhoneHead, convolve

FRAME = 2 * HOP  # samples from one output frame to the next: the encoder's second convolution halves


@dataclass(frozen=True)
class WhisperCTCConfig(EncoderConfig):
    """What the heads and an aligner need beside the encoder's sizes.

    tap_layer: the encoder layer whose output the heads see beside the last one. phone_dim: of the head that tells
    phones apart; 0 for a model without it. end_offset_seconds: what a token's last frame's end is off by.
    """

    model_type: str = "whisper-ctc"
    vocab_size: int = 32
    tap_layer: int = 2
    head_dim: int = 256
    head_kernel_size: int = 5
    phone_dim: int = 0
    pad_token_id: int = 0
    sampling_rate: int = 16_000
    frame_seconds: float = 0.02
    end_offset_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CTCOutput:
    """logits: (batch, frames, vocabulary). phones: (batch, 2 * frames, phones) logits, of a model that has them."""

    logits: Tensor
    phones: Tensor | None = None


def compute_log_mel(config: WhisperCTCConfig, waveform: Tensor) -> Tensor:
    """(batch, samples) to Whisper's log-mel spectrogram, (batch, bins, samples // 160); in float32, whatever the
    model's weights are: a spectrum spans more than half precision can tell apart."""
    tables = make_mel_tables(config.num_mel_bins, config.sampling_rate, str(waveform.device))
    spectrum = torch.view_as_real(
        torch.stft(waveform, N_FFT, HOP, window=tables["window"], center=True, return_complex=True)[..., :-1]
    )
    mel = (tables["filters"] @ spectrum.square().sum(-1)).clamp_(min=1e-10).log10_()
    # The padding of a shorter row is 1e-10 everywhere and cannot be its maximum.
    loudest = mel.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(mel, loudest - DYNAMIC_RANGE) + 4.0) / 4.0


class Encoder(nn.Module):
    """Whisper's, for as many frames as there are."""

    def __init__(self, config: WhisperCTCConfig) -> None:
        super().__init__()
        self.tap_layer = config.tap_layer
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.layers = config.make_layers()
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, mel: Tensor, padded: Tensor, frames: Tensor) -> Tensor:
        """(batch, bins, 2 * max padded) to (batch, max frames, 2 * d_model).

        padded, frames: (batch,) output frames of each row with and without the silence that is appended to it, on the
        CPU.
        """
        hidden = F.gelu(convolve(self.conv1, mel.to(self.conv1.weight.dtype), 2 * padded))
        hidden = F.gelu(convolve(self.conv2, hidden, 2 * padded)).transpose(1, 2)
        hidden = hidden[:, : int(frames.max())]
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        own = None if bool((frames >= hidden.shape[1]).all()) else frames
        tapped = hidden
        for index, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, own)
            if index == self.tap_layer:
                tapped = hidden
        return torch.cat([self.layer_norm(hidden), tapped], dim=-1)


class Head(nn.Module):
    """(batch, frames, 2 * d_model) to logits (batch, frames, vocab)."""

    def __init__(self, config: WhisperCTCConfig) -> None:
        super().__init__()
        size, kernel = config.head_dim, config.head_kernel_size
        self.norm = nn.LayerNorm(2 * config.d_model)
        self.project = nn.Linear(2 * config.d_model, size)
        self.conv1 = nn.Conv1d(size, size, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv1d(size, size, kernel, padding=kernel // 2)
        self.classifier = nn.Linear(size, config.vocab_size)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        hidden = F.gelu(self.project(self.norm(features))).transpose(1, 2)
        for convolution in (self.conv1, self.conv2):
            hidden = hidden + F.gelu(convolve(convolution, hidden, frames))
        return self.classifier(hidden.transpose(1, 2))  # type: ignore[no-any-return]


class WhisperCTC(nn.Module):
    """The aligner. A batch gives each row what the row gives alone: what looks beyond a frame, convolutions and
    attention, is computed for each row by itself, what does not for all rows together. On a CPU, the bits
    are the same."""

    main_input_name = "input_values"
    batch_invariant = True  # on a CPU
    input_dtype = torch.float32  # of the waveform, whatever the weights are

    def __init__(self, config: WhisperCTCConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = Head(config)
        self.phones = PhoneHead(config) if config.phone_dim else None

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> CTCOutput:
        """input_values: (batch, samples) at 16 kHz, in -1 to 1. attention_mask: (batch, samples), 1 on a row's
        samples and 0 on the padding to its right.

        The logits are (batch, frames, vocab), a frame for each 20 ms of the longest row; a row of n samples has
        (n // 160 + 1) // 2 of its own, and what follows them means nothing. Raises ValueError beyond 30 s.
        """
        if attention_mask is None:
            samples = torch.full((len(input_values),), input_values.shape[1])
        else:
            samples = attention_mask.long().sum(-1).cpu()  # lengths stay there: the host waits for the device but once
            input_values = input_values[:, : int(samples.max())] * attention_mask[:, : int(samples.max())]
        frames = self._get_feat_extract_output_lengths(samples)
        longest = int(frames.max())
        if longest > self.config.max_source_positions:
            seconds = self.config.max_source_positions * self.config.frame_seconds
            raise ValueError(f"the model takes at most {seconds:g} s at once, not {longest} frames; cut the waveform")
        if longest == 0:
            return CTCOutput(logits=input_values.new_zeros(len(samples), 0, self.config.vocab_size))
        padded = (samples + FRAME - 1) // FRAME + 1
        waveform = F.pad(input_values, (0, int(padded.max()) * FRAME - input_values.shape[1]))
        frames = frames.clamp(min=1)  # a row that is too short for a frame takes part all the same
        mel = compute_log_mel(self.config, waveform)
        features = self.encoder(mel, padded, frames)
        phones = None if self.phones is None else self.phones(features, mel, padded, frames)
        return CTCOutput(self.head(features, frames), phones)

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        return (samples // HOP + 1) // 2
