"""Whisper's encoder and decoder, for inference alone, on weights that processes share.

What is computed is what transformers' WhisperForConditionalGeneration computes (Radford et al. 2022,
https://arxiv.org/abs/2212.04356), which copies its cache for each token.

Shapes: windows and rows come first; `size` is the model's, `frames` are those of the encoder, of 20 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefork.engines.checkpoints.quantization import QuantizedLinear
from prefork.engines.checkpoints.whisper_layers import EncoderConfig, FeedForward, SelfAttention, check_heads
from prefork.platform_matrix.systems import SYSTEM

_ROOM = 64  # tokens that a cache is made longer by


@dataclass(frozen=True)
class WhisperConfig(EncoderConfig):
    model_type: str = "whisper"
    vocab_size: int = 51865
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    max_target_positions: int = 448
    tie_word_embeddings: bool = True


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What attention looks at, of one layer. keys, values: (rows, heads, tokens or frames, size of a head)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Sound:
    """What the decoder looks at. layers: of the decoder. mask: (rows, 1, 1, frames) bool, the frames that are a row's
    own; None: all."""

    layers: list[KeysValues]
    mask: Tensor | None = None

    def list_tensors(self) -> list[Tensor]:
        return [*list_tensors(self.layers), *([] if self.mask is None else [self.mask])]

    def cut(self, rows: int) -> Sound:
        """Of the first rows."""
        return Sound(cut(self.layers, rows), None if self.mask is None else self.mask[:rows])


def list_tensors(layers: Sequence[KeysValues]) -> list[Tensor]:
    return [part for own in layers for part in (own.keys, own.values)]


def cut(layers: Sequence[KeysValues], rows: int) -> list[KeysValues]:
    """Of the first rows."""
    return [KeysValues(own.keys[:rows], own.values[:rows]) for own in layers]


class CrossAttention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        check_heads(size, heads)
        self.heads = heads
        self.q_proj = nn.Linear(size, size)
        self.kv_proj = nn.Linear(size, 2 * size)
        self.out_proj = nn.Linear(size, size)

    def remember(self, encoded: Tensor) -> KeysValues:
        """encoded: (windows, frames, size)."""
        keys, values = self.kv_proj(encoded).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return KeysValues(keys.contiguous(), values.contiguous())

    def forward(self, hidden: Tensor, memory: KeysValues, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(rows, n, size), and the queries, (rows, heads, n, size of a head). mask: (rows, 1, 1, frames) bool, those
        that a row may look at; None: all."""
        queries = self.q_proj(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, memory.keys, memory.values, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), queries


class Encoder(nn.Module):
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.layers = config.make_layers(bfloat16=True)
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, features: Tensor) -> Tensor:
        """(windows, mel bins, 2 * frames) to (windows, frames, size)."""
        features = features.to(self.conv1.weight.device, self.conv1.weight.dtype)
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(features)))).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.layer_norm(hidden)  # type: ignore[no-any-return]


@dataclass(slots=True)
class TokenCache:
    """Keys and values of the tokens that each row was given. layers: of the decoder. count: tokens."""

    layers: list[KeysValues] = field(default_factory=list)
    count: int = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """What the layer has been given so far, with these, (rows, heads, n, size of a head), at its end. The last
        layer's call counts the tokens of all; see `Decoder.forward`."""
        end = self.count + keys.shape[2]
        if layer == len(self.layers):
            self.layers.append(KeysValues(_make_room(keys, end), _make_room(values, end)))
        own = self.layers[layer]
        if own.keys.shape[2] < end:
            own = KeysValues(*(_make_room(part, end) for part in (own.keys, own.values)))
            self.layers[layer] = own
        own.keys[:, :, self.count : end] = keys
        own.values[:, :, self.count : end] = values
        return KeysValues(own.keys[:, :, :end], own.values[:, :, :end])

    def cut(self, rows: int) -> None:
        """Keeps the first rows."""
        self.layers = cut(self.layers, rows)


def _make_room(tensor: Tensor, count: int) -> Tensor:
    """The same with room for at least so many tokens, (rows, heads, tokens, size of a head)."""
    rows, heads, has, size = tensor.shape
    longer = tensor.new_empty(rows, heads, math.ceil(count / _ROOM) * _ROOM, size)
    longer[:, :, :has] = tensor
    return longer


def _join(tensors: Sequence[Tensor], longest: int) -> Tensor:
    """(rows, heads, longest, size of a head), zeros after the shorter ones. tensors: (1, heads, frames, the same)."""
    if all(tensor.shape[2] == longest for tensor in tensors):
        return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
    joined = tensors[0].new_zeros(len(tensors), tensors[0].shape[1], longest, tensors[0].shape[3])
    for row, tensor in zip(joined, tensors, strict=True):
        row[:, : tensor.shape[2]] = tensor[0]
    return joined


class DecoderLayer(nn.Module):
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = SelfAttention(config.d_model, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = CrossAttention(config.d_model, config.decoder_attention_heads)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config.d_model, config.decoder_ffn_dim, config.activation_function)


def release_host_memory(computed: Tensor) -> None:
    """Gives back what malloc holds of what was freed, if this is where the model computes: on a GPU's host nothing
    is."""
    if computed.device.type == "cpu":
        SYSTEM.release_free_memory()


class Decoder(nn.Module):
    """The decoder, and the embedding that is its output too unless the checkpoint has another one."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.embed_positions = nn.Embedding(config.max_target_positions, config.d_model)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        tied = config.tie_word_embeddings
        self.proj_out = None if tied else nn.Linear(config.d_model, config.vocab_size, bias=False)

    def remember(self, encoded: Sequence[Tensor]) -> Sound:
        """What the layers make of windows. encoded: of each, (frames, size)."""
        longest = max(map(len, encoded))
        layers = []
        for layer in self._list_layers():
            parts = [layer.encoder_attn.remember(states[None]) for states in encoded]
            keys, values = ([getattr(part, name) for part in parts] for name in ("keys", "values"))
            layers.append(KeysValues(_join(keys, longest), _join(values, longest)))
        release_host_memory(encoded[0])  # what lies between the layers, 5 MB of tiny's, would stay for the whole window
        if all(len(states) == longest for states in encoded):
            return Sound(layers)
        lengths = torch.tensor([len(states) for states in encoded])
        return Sound(layers, (torch.arange(longest) < lengths[:, None])[:, None, None].to(encoded[0].device))

    def forward(
        self, tokens: Tensor, sound: Sound, cache: TokenCache, taps: Iterable[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """(rows, n, size), what follows each token, for `project`; and of the layers in taps the queries to the sound,
        (rows, heads, n, size of a head).

        tokens: (rows, n), which follow those in the cache: several at the beginning, then one at a time. sound: of
        the rows.
        """
        begin, count = cache.count, tokens.shape[1]
        if begin and count > 1:
            raise ValueError(f"{count} tokens at once, after the {begin} that were there before")
        hidden = self._embed(tokens) + self.embed_positions.weight[begin : begin + count]
        queries = {}
        for index, (layer, heard) in enumerate(zip(self._list_layers(), sound.layers, strict=True)):
            asked, keys, values = layer.self_attn.project(layer.self_attn_layer_norm(hidden))
            own = cache.append(index, keys, values)
            hidden = hidden + layer.self_attn.attend(asked, own.keys, own.values, causal=count > 1)
            found, looking = layer.encoder_attn(layer.encoder_attn_layer_norm(hidden), heard, sound.mask)
            hidden = hidden + found
            hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
            if index in taps:
                queries[index] = looking
        cache.count += count
        return self.layer_norm(hidden), queries

    def _list_layers(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", list(self.layers))

    def project(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary) logits. hidden: (..., size)."""
        return (self.proj_out or self.embed_tokens)(hidden)  # type: ignore[no-any-return]

    def _embed(self, tokens: Tensor) -> Tensor:
        if isinstance(self.embed_tokens, QuantizedLinear):
            return self.embed_tokens.select(tokens)
        return F.embedding(tokens, self.embed_tokens.weight)


class WhisperNetwork(nn.Module):
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
