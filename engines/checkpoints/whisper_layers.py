"""Whisper's layers, for inference alone, on weights that processes share: what its encoder and decoder and the embedded
aligner are made of.

transformers' layers compute the same (modeling_whisper.py), with a product for each of queries, keys and values; and
what they need takes two seconds and 150 MB to import.

Shapes: rows come first; `size` is the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefork.engines.checkpoints.quantization import QuantizedLinear, multiplies_bfloat16

_BLOCK = 512  # rows
_ATTENTION_BLOCK = 256  # queries of one head; 512 are as fast and twice as large, 128 take 10 % longer
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "gelu_pytorch_tanh": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


@dataclass(frozen=True)
class EncoderConfig:
    """What config.json says of Whisper's encoder and of what is built on it, with transformers' names and defaults, as
    far as anything here depends on it. ALIASES: other names of a field. start_offset_seconds: what a word's start is
    off by."""

    ALIASES: ClassVar = {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}

    model_type: str = ""
    vocab_size: int = 0
    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    max_source_positions: int = 1500
    activation_function: str = "gelu"
    start_offset_seconds: float = 0.0

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def num_attention_heads(self) -> int:
        return self.encoder_attention_heads

    def make_layers(self, *, bfloat16: bool = False) -> nn.ModuleList:
        """Those of the encoder. bfloat16: see SelfAttention."""
        sizes = (self.d_model, self.encoder_attention_heads, self.encoder_ffn_dim, self.activation_function)
        return nn.ModuleList(EncoderLayer(*sizes, bfloat16=bfloat16) for _ in range(self.encoder_layers))


class SelfAttention(nn.Module):
    """bfloat16: beside weights in int8, which are off by more, long rows are computed in it where the processor has it.
    Not for the embedded aligner, whose times would depend on the processor. Raises ValueError if the size cannot be
    shared out among the heads."""

    def __init__(self, size: int, heads: int, *, bfloat16: bool = False) -> None:
        super().__init__()
        check_heads(size, heads)
        self.heads = heads
        self._bfloat16 = bfloat16
        self.qkv_proj = nn.Linear(size, 3 * size)
        self.out_proj = nn.Linear(size, size)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (rows, heads, n, size of a head). hidden: (rows, n, size)."""
        queries, keys, values = self.qkv_proj(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return queries, keys, values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False) -> Tensor:
        """(rows, n, size)."""
        if self._bfloat16 and queries.shape[2] >= _ATTENTION_BLOCK and not causal and self._is_quantised(queries):
            attended = attend_in_bfloat16(queries, keys, values)
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def attend_within_rows(self, queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """(rows, n, size), of each row among its own first places. lengths: (rows,) how many they are, on the CPU.

        With a mask, sums are rounded otherwise, because zeros are added to them in other places: in bfloat16, 3 % of
        words came out elsewhere than if the row is alone (60 segments of ../shared/data/speech).
        """
        attended = queries.new_zeros(queries.shape)
        for row, count in enumerate(lengths.tolist()):
            own = (slice(row, row + 1), slice(None), slice(count))
            attended[own] = F.scaled_dot_product_attention(queries[own], keys[own], values[own])
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _is_quantised(self, queries: Tensor) -> bool:
        """On a processor that multiplies bfloat16."""
        return isinstance(self.out_proj, QuantizedLinear) and queries.is_cpu and multiplies_bfloat16()


def attend_in_bfloat16(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot product attention, (rows, heads, n, size of a head) float32, as all three are: products in bfloat16,
    softmax in float32, some queries of one head at a time, so that what they look at stays in the processor's cache.

    On one thread of an AMD EPYC with AVX-512 BF16, torch 2.14, 6
    heads of 64, ms:

    | n | so | torch's, float32 | torch's, bfloat16 |
    | --- | --- | --- | --- |
    | 500 | 2.3 | 4.6 | |
    | 750 | 4.4 | 10.0 | 11.0 |
    | 1500 | 17.0 | 37.2 | 40.0 |
    """
    rows, heads, count, size = queries.shape
    attended = queries.new_empty(rows, count, heads, size)
    for row in range(rows):
        for head in range(heads):
            asked = (queries[row, head] * size**-0.5).bfloat16()
            looked, found = keys[row, head].bfloat16().t(), values[row, head].bfloat16()
            for start in range(0, count, _ATTENTION_BLOCK):
                block = slice(start, start + _ATTENTION_BLOCK)
                weights = torch.softmax(asked[block] @ looked, dim=-1, dtype=torch.float32)
                attended[row, block, head] = (weights.bfloat16() @ found).float()
    return attended.transpose(1, 2)


def check_heads(size: int, heads: int) -> None:
    if size % heads:
        raise ValueError(f"{size} cannot be shared out among {heads} heads")


class FeedForward(nn.Module):
    def __init__(self, size: int, inner: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)
        self._activate = ACTIVATIONS[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., size)."""
        rows = hidden.flatten(0, -2)
        if len(rows) <= _BLOCK or hidden.device.type != "cpu":
            return self.fc2(self._activate(self.fc1(hidden)))  # type: ignore[no-any-return]
        # All at once, half a minute takes 20 MB more than it has to.
        output = torch.empty_like(rows)
        for block, result in zip(torch.split(rows, _BLOCK), torch.split(output, _BLOCK), strict=True):
            result.copy_(self.fc2(self._activate(self.fc1(block))))
        return output.reshape(hidden.shape)


class EncoderLayer(nn.Module):
    def __init__(self, size: int, heads: int, inner: int, activation: str, *, bfloat16: bool = False) -> None:
        """bfloat16: see SelfAttention."""
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(size)
        self.self_attn = SelfAttention(size, heads, bfloat16=bfloat16)
        self.final_layer_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(size, inner, activation)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """hidden: (rows, frames, size). lengths: frames of each row that are its own, on the CPU; None: all."""
        projected = self.self_attn.project(self.self_attn_layer_norm(hidden))
        if lengths is None:
            hidden = hidden + self.self_attn.attend(*projected)
        else:
            hidden = hidden + self.self_attn.attend_within_rows(*projected, lengths)
        del projected  # three times what is computed with
        hidden = hidden + self.feed_forward(self.final_layer_norm(hidden))
        if hidden.dtype == torch.float16:  # large models reach what it cannot hold
            most = torch.finfo(hidden.dtype).max - 1000
            hidden = hidden.clamp(-most, most)
        return hidden


def list_sources(name: str) -> list[str | None]:
    """What a checkpoint of transformers calls the parts that a parameter is joined of, one below the other; None for
    zeros: queries, keys and values are one product here, and Whisper's keys have no bias.

    >>> list_sources("decoder.layers.0.encoder_attn.kv_proj.bias")
    [None, 'decoder.layers.0.encoder_attn.v_proj.bias']
    """
    name = name.replace(".feed_forward.", ".")
    if name == "decoder.proj_out.weight":
        return ["proj_out.weight"]
    for joined in ("qkv", "kv"):
        before, found, kind = name.partition(f".{joined}_proj.")
        if found:
            return [None if (part, kind) == ("k", "bias") else f"{before}.{part}_proj.{kind}" for part in joined]
    return [name]
