"""The footprint of a model: what it takes of memory for a stretch of audio, as its configuration suggests."""

from __future__ import annotations

import math
from typing import Any

from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.base import BYTES_PER_SECOND

_FLOAT = 4  # bytes; activations are taken to be float32 whatever the weights are


def estimate_encoder(config: Any, seconds: float, frame: float) -> int:
    """Bytes that an encoder of speech takes at its peak, beside its weights, for so many seconds at once.

    config: of transformers, for wav2vec2 and its kind or an encoder as Whisper's. frame: seconds of one of its outputs.
    The larger of what its first convolution and one of its layers hold: input, output and what lies between. A 95 M
    wav2vec2 was measured at 16.6 MB for each second, this says 19.7; a large one, which normalises after each
    convolution, at 23.2, this says 26.2; the embedded aligner at 2.0, this says 2.6. A wav2vec2-bert, which has a
    vector for each pair of frames, took 438 MB for 20 s, this says 497. What has sizes of other names is taken to be as
    large as any.
    """
    frames = seconds / frame
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not hidden or not heads:
        return math.ceil(BYTES_PER_SECOND * seconds)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "encoder_ffn_dim", None) or 4 * hidden
    pairs = 3 * heads + hidden // heads if getattr(config, "position_embeddings_type", "") == "relative_key" else heads
    layer = frames * (4 * hidden + 2 * inner) + pairs * frames**2
    if getattr(config, "conv_dim", None):
        copies = 3 if getattr(config, "feat_extract_norm", "layer") == "group" else 4
        first = copies * seconds * SAMPLE_RATE / config.conv_stride[0] * config.conv_dim[0]
    else:
        first = 3 * 2 * frames * hidden  # mel frames, of which the second convolution leaves half
    size: float = _FLOAT * max(layer, first)
    return math.ceil(size)
