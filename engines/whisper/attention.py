"""Cross-attention of a Whisper model's alignment heads: where in the sound the decoder looks for each token.

Only the checkpoint's alignment heads are ever looked at: attention of all heads and layers of a large model would be
a gigabyte for 30 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefork.engines.whisper.checkpoint import WhisperCheckpoint
from prefork.engines.whisper.network import Decoder, KeysValues, TokenCache
from prefork.engines.whisper.timing import weigh_head

if TYPE_CHECKING:
    from prefork.engines.whisper.decoding import WindowDecoder

_ROWS = 8  # of logits at a time: those of 448 tokens at once would be 93 MB


def attend(
    source: WindowDecoder, checkpoint: WhisperCheckpoint, tokens: Sequence[Sequence[int]], frames: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Where the alignment heads look when the decoder is given each window's tokens one after the other, and how likely
    each token is.

    tokens: of each window, prompt and text, no more than checkpoint.most_tokens. frames: of each window, those that are
    not padding. Returns of each window the attention as `weigh` has it, (tokens, frames) float32, of which row i is
    from where token i + 1 is written, and the log-probabilities, (tokens - 1,) float32, of token 1 and so on: of a
    token of text among those of text, as openai/whisper's timing.py counts it, of any other among all.

    Shorter texts are filled up on the right, where nothing that the decoder is given tells on what was before it.
    """
    source.start()
    longest = max(map(len, tokens))
    filled = [[*of_window, *[checkpoint.eot] * (longest - len(of_window))] for of_window in tokens]
    inputs = torch.tensor([filled[window] for window in source.windows], device=source.device)
    taps = {layer for layer, _ in checkpoint.alignment_heads}
    sound = source.sound
    hidden, queries = source.decoder(inputs, sound, TokenCache(), taps)
    found = {}
    for row, window in enumerate(source.windows):
        length = len(tokens[window])
        weights = weigh(queries, sound.layers, checkpoint.alignment_heads, row, length, frames[window])
        found[window] = weights, _score_text(source.decoder, checkpoint, hidden[row, :length], inputs[row, :length])
    return [found[window] for window in range(len(tokens))]


def weigh(
    queries: Mapping[int, Tensor],
    sound: Sequence[KeysValues],
    heads: Sequence[tuple[int, int]],
    row: int,
    tokens: int,
    frames: int,
) -> Tensor:
    """(tokens, frames) float32: how much more each token of a row looks at a frame than the others do, on the average
    of the heads. queries, sound: of each layer, as `Decoder` has them. heads: (layer, head). tokens, frames: the first
    ones, which alone are looked at. One head is in memory at a time: a checkpoint without alignment heads has hundreds
    of them."""
    total: Tensor | float = 0.0
    for layer, head in heads:
        asked = queries[layer][row, head, :tokens].float()
        keys = sound[layer].keys[row, head, :frames].float()
        total = total + weigh_head((asked @ keys.T * keys.shape[1] ** -0.5).softmax(dim=-1))
    assert isinstance(total, Tensor)
    return total / len(heads)


def _score_text(decoder: Decoder, checkpoint: WhisperCheckpoint, hidden: Tensor, tokens: Tensor) -> Tensor:
    """(tokens - 1,) log-probabilities. hidden: (tokens, d_model), what the decoder makes of the tokens, (tokens,)."""
    scores = [
        _score(
            decoder.project(hidden[start : start + _ROWS]).float(), tokens[start + 1 : start + 1 + _ROWS], checkpoint
        )
        for start in range(0, len(tokens) - 1, _ROWS)
    ]
    return torch.cat(scores) if scores else hidden.new_zeros(0).float()


def _score(logits: Tensor, following: Tensor, checkpoint: WhisperCheckpoint) -> Tensor:
    """(rows,) log-probabilities of the tokens that follow. logits: (rows or more, vocabulary)."""
    logits = logits[: len(following)]
    chosen = logits.gather(1, following[:, None])[:, 0]
    text = logits[:, : checkpoint.eot].logsumexp(dim=-1)
    return chosen - torch.where(following < checkpoint.eot, text, logits.logsumexp(dim=-1))
