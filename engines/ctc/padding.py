"""Inputs of unequal length through a CTC model together, so that each gets the logits that it gets alone, but for
float rounding.

What is padded must not be seen by what is not. Attention is told so by a mask; where a convolution or a norm looks at
the padding as well, transformers' models give other logits with padding than without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from prefork.engines.ctc.checkpoint import Config, Model

# Encoders whose convolution for positions sees zeros after a masked row's last frame, as it does after the end.
_WAV2VEC2_KIND = frozenset({"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"})
# Models that take care of a mask in all of their layers.
_MASKED_KIND = frozenset({"whisper-ctc", "wav2vec2-bert"})


class Padding(Enum):
    """How inputs of unequal length go together."""

    MASKED = "masked"  # padded with zeros, with an attention mask
    ENCODED = "encoded"  # each through the convolutional front end alone, then padded and masked
    NEVER = "never"  # only inputs of one length go together


def choose_padding(config: Config) -> Padding:
    """The way that gives each input of a batch what it gets alone.

    wav2vec2 and its kind with feat_extract_norm "group" normalise over the whole of an input, padding included, and
    were trained without masks: there, only the encoder gets padding. An adapter of convolutions after the encoder, the
    batch norm of a HuBERT's positions (it turns zeros into something else) and all other architectures: never.
    """
    kind = config.model_type
    if getattr(config, "add_adapter", False) or getattr(config, "conv_pos_batch_norm", False):
        return Padding.NEVER
    if kind in _WAV2VEC2_KIND:
        return Padding.MASKED if getattr(config, "feat_extract_norm", "layer") == "layer" else Padding.ENCODED
    return Padding.MASKED if kind in _MASKED_KIND else Padding.NEVER


def compute_logits(model: Model, inputs: Sequence[Tensor], padding: Padding) -> list[Tensor]:
    """(frames, vocabulary) of each input: samples, (samples,), or features, (frames, size). Behind the vocabulary, a
    model that tells phones apart has their logits, those of all steps of a frame one after the other."""
    together = _COMPUTE[padding]
    if len({len(values) for values in inputs}) == 1:
        together = _compute_equal
    return together(model, inputs)


def make_mask(lengths: Tensor, longest: int) -> Tensor:
    """(rows, longest) bool: which of each row's places are its own. lengths: (rows,)."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def _compute_equal(model: Model, inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(_read(model(**{model.main_input_name: torch.stack(list(inputs))})))


def _compute_masked(model: Model, inputs: Sequence[Tensor]) -> list[Tensor]:
    lengths = torch.tensor([len(values) for values in inputs])
    padded = pad_sequence(list(inputs), batch_first=True)
    mask = make_mask(lengths, padded.shape[1]).long().to(padded.device)
    with _ignore_mask_types():
        logits = _read(model(**{model.main_input_name: padded}, attention_mask=mask))
    count: Callable[[Tensor], Tensor] | None = getattr(model, "_get_feat_extract_output_lengths", None)
    frames = count(lengths) if model.main_input_name == "input_values" and count else lengths
    return [row[:length] for row, length in zip(logits, frames.tolist(), strict=True)]


def _compute_encoded(model: Model, inputs: Sequence[Tensor]) -> list[Tensor]:
    """As the models' own forward methods do it, with the padding in another place."""
    base: Any = model.base_model
    head: Any = model.lm_head
    features = [base.feature_extractor(values[None])[0].T for values in inputs]
    padded = pad_sequence(features, batch_first=True)
    lengths = torch.tensor([len(values) for values in features])
    projected = base.feature_projection(padded)
    hidden = projected[0] if isinstance(projected, tuple) else projected  # HuBERT's gives nothing else
    mask = make_mask(lengths, padded.shape[1]).to(padded.device)
    with _ignore_mask_types():
        logits = head(base.encoder(hidden, attention_mask=mask).last_hidden_state)
    return [row[:length] for row, length in zip(logits, lengths.tolist(), strict=True)]


def _compute_apart(model: Model, inputs: Sequence[Tensor]) -> list[Tensor]:
    order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
    logits: dict[int, Tensor] = {}
    for _, group in groupby(order, key=lambda index: len(inputs[index])):
        places = list(group)
        logits.update(zip(places, _compute_equal(model, [inputs[place] for place in places]), strict=True))
    return [logits[place] for place in range(len(inputs))]


def _read(output: Any) -> Tensor:
    phones: Tensor | None = getattr(output, "phones", None)
    if phones is None:
        return output.logits  # type: ignore[no-any-return]
    return torch.cat([output.logits, phones.reshape(*output.logits.shape[:2], -1)], dim=-1)


@contextmanager
def _ignore_mask_types() -> Iterator[None]:
    """WavLM gives torch a mask of bool beside a bias of float, which torch says is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        yield


_COMPUTE = {Padding.MASKED: _compute_masked, Padding.ENCODED: _compute_encoded, Padding.NEVER: _compute_apart}
