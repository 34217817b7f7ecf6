"""whisper-ctc: Whisper's encoder with a small character head, known to transformers by its model type.

How it computes is told in models/ctc-aligner-en/README.md; `check.safetensors` there holds what must come out.
Whisper: Radford et al. 2022, https://arxiv.org/abs/2212.04356.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, pad
from transformers import AutoConfig, AutoModelForCTC, PretrainedConfig, PreTrainedModel, WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

N_FFT = 400  # samples, a window of 25 ms
HOP_LENGTH = 160  # samples, 10 ms from one mel frame to the next
FRAME_LENGTH = 320  # samples, 20 ms from one output to the next: the encoder's second convolution has stride 2
_FLOOR = 1e-10  # of the power before its logarithm
_RANGE = 8.0  # decades below the loudest point of a waveform that are kept


class WhisperCTCConfig(PretrainedConfig):  # type: ignore[misc]
    """tap_layer: the layer whose output joins the last one's. The offsets are the model's constant lead or lag."""

    model_type = "whisper-ctc"

    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    tap_layer: int = 2
    head_dim: int = 256
    head_kernel_size: int = 5
    vocab_size: int = 32
    pad_token_id: int = 0
    sampling_rate: int = 16_000
    frame_seconds: float = 0.02
    start_offset_seconds: float = 0.0
    end_offset_seconds: float = 0.0


class _Encoder(nn.Module):
    """Whisper's encoder for any number of frames up to `max_source_positions`."""

    def __init__(self, config: WhisperCTCConfig, whisper: WhisperConfig) -> None:
        super().__init__()
        width = config.d_model
        self.tap_layer = config.tap_layer
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.layers = nn.ModuleList([WhisperEncoderLayer(whisper) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel: torch.Tensor, own: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """mel: (batch, mel bins, 2 x frames). own: (batch, 2 x frames), the mel frames that a row has alone.
        valid: (batch, frames), the frames that attention may see. Returns (batch, frames, 2 x width).
        """
        keep = own[:, None, :]
        hidden = gelu(self.conv2(gelu(self.conv1(mel * keep)) * keep)).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        mask = None
        if not bool(valid.all()):
            mask = torch.zeros(valid.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(~valid, torch.finfo(hidden.dtype).min)[:, None, None, :]
        tapped = hidden
        for number, layer in enumerate(self.layers, start=1):
            hidden = layer(hidden, mask)
            tapped = hidden if number == self.tap_layer else tapped
        return torch.cat([self.layer_norm(hidden), tapped], dim=-1)


class _Head(nn.Module):
    """Two residual convolutions over the encoder's frames, and a classifier."""

    def __init__(self, config: WhisperCTCConfig) -> None:
        super().__init__()
        size, kernel = config.head_dim, config.head_kernel_size
        self.norm = nn.LayerNorm(2 * config.d_model)
        self.project = nn.Linear(2 * config.d_model, size)
        self.conv1 = nn.Conv1d(size, size, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv1d(size, size, kernel, padding=kernel // 2)
        self.classifier = nn.Linear(size, config.vocab_size)

    def forward(self, features: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        keep = valid[:, None, :]  # outside of its frames a row sees zeros, as it would alone
        hidden = gelu(self.project(self.norm(features))).transpose(1, 2)
        hidden = hidden + gelu(self.conv1(hidden * keep))
        hidden = hidden + gelu(self.conv2(hidden * keep))
        logits: torch.Tensor = self.classifier(hidden.transpose(1, 2))
        return logits


class WhisperCTCForCTC(PreTrainedModel):  # type: ignore[misc]
    """Characters for every 20 ms of a waveform."""

    config_class = WhisperCTCConfig
    base_model_prefix = "whisper_ctc"
    main_input_name = "input_values"
    _supports_sdpa = True

    def __init__(self, config: WhisperCTCConfig) -> None:
        super().__init__(config)
        whisper = WhisperConfig(
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_ffn_dim=config.encoder_ffn_dim,
            dropout=0.0,
            attn_implementation="sdpa",
        )
        self.encoder = _Encoder(config, whisper)
        self.head = _Head(config)
        self._filters: torch.Tensor | None = None  # no parameter: made where the model is used
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)

    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """input_values: (batch, samples) mono at 16 kHz in [-1, 1], at most 30 s. attention_mask: the same shape,
        1 for a row's own samples. logits: (batch, frames, vocabulary); a row of n samples has
        (n // 160 + 1) // 2 valid frames, the same as it has alone.
        """
        if attention_mask is None:
            lengths = torch.full((len(input_values),), input_values.shape[1], device=input_values.device)
        else:
            lengths = attention_mask.sum(dim=1)
        frames = (lengths // HOP_LENGTH + 1) // 2
        most = int(frames.max())
        if most >= self.config.max_source_positions:  # the padding is one more frame
            raise ValueError(f"{input_values.shape[1]} samples are more than the 30 s that whisper-ctc can take")
        mel, own = self.log_mel(input_values, lengths)
        valid = torch.arange(mel.shape[2] // 2, device=mel.device)[None] < frames[:, None]
        features = self.encoder(mel.to(self.encoder.conv1.weight.dtype), own, valid)
        return CausalLMOutput(logits=self.head(features[:, :most], valid[:, :most]))

    def log_mel(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whisper's log-mel spectrogram of each row as if it were alone: (batch, mel bins, mel frames), and which
        frames are the row's own: (batch, mel frames).

        A row of n samples is padded to the next multiple of 320 and 320 more; what lies beyond does not count for
        the row's maximum.
        """
        padded = (lengths + FRAME_LENGTH - 1) // FRAME_LENGTH * FRAME_LENGTH + FRAME_LENGTH
        samples = torch.arange(waveforms.shape[1], device=waveforms.device)
        waveforms = waveforms.float() * (samples[None] < lengths[:, None])
        waveforms = pad(waveforms, (0, int(padded.max()) - waveforms.shape[1]))
        window = torch.hann_window(N_FFT, device=waveforms.device)
        stft = torch.stft(waveforms, N_FFT, HOP_LENGTH, window=window, return_complex=True, center=True)
        power = stft[..., :-1].abs() ** 2
        if self._filters is None or self._filters.device != power.device:
            self._filters = self._make_filters().to(power.device)
        log = (self._filters @ power).clamp(min=_FLOOR).log10()
        own = torch.arange(log.shape[2], device=log.device)[None] < (padded // HOP_LENGTH)[:, None]
        loudest = log.masked_fill(~own[:, None], -torch.inf).amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log, loudest - _RANGE) + 4.0) / 4.0, own

    def _make_filters(self) -> torch.Tensor:
        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=self.config.num_mel_bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=self.config.sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        return torch.from_numpy(filters.T).float().contiguous()


AutoConfig.register(WhisperCTCConfig.model_type, WhisperCTCConfig)
AutoModelForCTC.register(WhisperCTCConfig, WhisperCTCForCTC)
