"""Cross-attention of a Whisper model's alignment heads: where in the sound the decoder looks for each token.

Only the checkpoint's alignment heads are ever looked at: attention of all heads and layers of a large model would be
a gigabyte for 30 s.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from prefork.engines.whisper.checkpoint import WhisperCheckpoint
from prefork.engines.whisper.timing import weigh_head

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

_ROWS = 64  # of logits at a time: those of 448 tokens at once would be 93 MB


class AttentionTap:
    """What some heads of the decoder's cross-attention look at while the model runs, whichever way it attends.

    with AttentionTap(model, checkpoint.alignment_heads) as tap:
        model(...)
    tap.collect(frames)

    The queries and keys of these heads are kept as they leave their projections; the attention is computed of them
    afterwards. With a cache the keys come once and the queries token by token. One run of the model for each tap:
    without a cache, a second run would append its queries to those of the first.
    """

    def __init__(self, model: WhisperForConditionalGeneration, heads: Sequence[tuple[int, int]]) -> None:
        """heads: (layer, head) of the decoder."""
        self._heads = tuple(heads)
        self._attentions: dict[int, Any] = {
            layer: model.model.decoder.layers[layer].encoder_attn for layer in sorted({layer for layer, _ in heads})
        }
        self._queries: dict[tuple[int, int], list[Tensor]] = {pair: [] for pair in self._heads}
        self._keys: dict[tuple[int, int], Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> AttentionTap:
        for layer, attention in self._attentions.items():
            self._hooks.append(attention.q_proj.register_forward_hook(functools.partial(self._keep_queries, layer)))
            self._hooks.append(attention.k_proj.register_forward_hook(functools.partial(self._keep_keys, layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def collect(self, frames: int | None = None) -> Tensor:
        """(batch, heads, tokens, frames) float32: how each token's attention is shared out over the first `frames`,
        over all of them without it. Heads are in the order they were given."""
        return torch.stack([self._attend(pair, frames) for pair in self._heads], dim=1)

    def weigh(self, window: int = 0, tokens: int | None = None, frames: int | None = None) -> Tensor:
        """(tokens, frames) float32: how much more each token of a window looks at a frame than the others do, on the
        average of the heads. tokens, frames: the first ones, which alone are looked at; all without them. One head is
        in memory at a time: a checkpoint without alignment heads has hundreds of them."""
        rows = slice(window, window + 1)
        total = weigh_head(self._attend(self._heads[0], frames, rows, tokens))
        for pair in self._heads[1:]:
            total += weigh_head(self._attend(pair, frames, rows, tokens))
        return (total / len(self._heads))[0]

    def _attend(
        self, pair: tuple[int, int], frames: int | None, rows: slice = slice(None), tokens: int | None = None
    ) -> Tensor:
        if pair not in self._keys or not self._queries[pair]:
            raise ValueError("the model did not run from its first token while its attention was recorded")
        queries = torch.cat([part[rows] for part in self._queries[pair]], dim=1)[:, :tokens].float()
        keys = self._keys[pair][rows, :frames].float()
        products: Tensor = queries @ keys.transpose(1, 2) * self._attentions[pair[0]].scaling
        return products.softmax(dim=-1)

    def _keep_queries(self, layer: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        for pair in self._list_heads(layer):
            self._queries[pair].append(self._cut(pair, output))

    def _keep_keys(self, layer: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        for pair in self._list_heads(layer):
            self._keys[pair] = self._cut(pair, output)

    def _list_heads(self, layer: int) -> list[tuple[int, int]]:
        return [pair for pair in self._heads if pair[0] == layer]

    def _cut(self, pair: tuple[int, int], projected: Tensor) -> Tensor:
        """(batch, n, d_model) to (batch, n, head_dim), of one head, in memory of its own."""
        size = self._attentions[pair[0]].head_dim
        return projected[..., pair[1] * size : (pair[1] + 1) * size].clone()


def attend(
    model: WhisperForConditionalGeneration,
    checkpoint: WhisperCheckpoint,
    encoder_states: Tensor,
    tokens: Sequence[Sequence[int]],
    frames: Sequence[int],
) -> list[tuple[Tensor, Tensor]]:
    """Where the alignment heads look when the decoder is given each window's tokens one after the other, and how likely
    each token is.

    encoder_states: (windows, 1500, d_model). tokens: of each window, prompt and text, no more than
    checkpoint.most_tokens. frames: of each window, those that are not padding. Returns of each window the attention as
    `AttentionTap.weigh` has it, (tokens, frames) float32, of which row i is from where token i + 1 is written, and the
    log-probabilities, (tokens - 1,) float32, of token 1 and so on: of a token of text among those of text, as
    openai/whisper's timing.py counts it, of any other among all.

    Shorter texts are filled up on the right, where nothing that the decoder is given tells on what was before it.
    """
    model_: Any = model
    longest = max(map(len, tokens))
    filled = [[*of_window, *[checkpoint.eot] * (longest - len(of_window))] for of_window in tokens]
    inputs = torch.tensor(filled, device=encoder_states.device)
    with AttentionTap(model, checkpoint.alignment_heads) as tap:
        hidden = model_.model.decoder(
            input_ids=inputs, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state
    return [
        (
            tap.weigh(window, length, frames[window]),
            _score_text(model_.proj_out, checkpoint, hidden[window, :length], inputs[window, :length]),
        )
        for window, length in enumerate(map(len, tokens))
    ]


def _score_text(project: nn.Module, checkpoint: WhisperCheckpoint, hidden: Tensor, tokens: Tensor) -> Tensor:
    """(tokens - 1,) log-probabilities. hidden: (tokens, d_model), what the decoder makes of the tokens, (tokens,)."""
    scores = [
        _score(project(hidden[start : start + _ROWS]).float(), tokens[start + 1 : start + 1 + _ROWS], checkpoint)
        for start in range(0, len(tokens) - 1, _ROWS)
    ]
    return torch.cat(scores) if scores else hidden.new_zeros(0).float()


def _score(logits: Tensor, following: Tensor, checkpoint: WhisperCheckpoint) -> Tensor:
    """(rows,) log-probabilities of the tokens that follow. logits: (rows or more, vocabulary)."""
    logits = logits[: len(following)]
    chosen = logits.gather(1, following[:, None])[:, 0]
    text = logits[:, : checkpoint.eot].logsumexp(dim=-1)
    return chosen - torch.where(following < checkpoint.eot, text, logits.logsumexp(dim=-1))
