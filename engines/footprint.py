"""The footprint of a model: what it takes of memory for a stretch of audio, as its configuration suggests."""

from __future__ import annotations

from typing import Any

from engines.audio import SAMPLE_RATE

_FLOAT = 4  # bytes; activations are taken to be float32 whatever the weights are


def estimate_encoder(config: Any, seconds: float, frame: float) -> int:
    """Bytes that an encoder of speech takes at its peak, beside its weights, for so many seconds at once.

    config: of transformers, for wav2vec2 and its kind or an encoder as Whisper's. frame: seconds of one of its outputs.
    The larger of what its first convolution and one of its layers hold: input, output and what lies between. A 95 M
    wav2vec2 was measured at 16.6 MB for each second, this says 19.7; the embedded aligner at 2.0, this says 2.6.
    """
    frames = seconds / frame
    hidden: int = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "encoder_ffn_dim", None) or 4 * hidden
    layer = frames * (4 * hidden + 2 * inner) + config.num_attention_heads * frames**2
    if getattr(config, "conv_dim", None):
        first = 3 * seconds * SAMPLE_RATE / config.conv_stride[0] * config.conv_dim[0]
    else:
        first = 3 * 2 * frames * hidden  # mel frames, of which the second convolution leaves half
    return int(_FLOAT * max(layer, first))
