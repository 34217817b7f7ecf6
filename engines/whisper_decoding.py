"""Whisper's decoding: tokens of one window, greedy first, sampled where that does not hold up.

The rules and thresholds are those of Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 4.5, as
https://github.com/openai/whisper (decoding.py, transcribe.py, v20250625) has them. transformers' `generate` is not
used: it changes the model's generation config, pads windows that share a batch, and draws from the global generator.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from engines.whisper_model import WhisperCheckpoint, compose_prompt

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_TOKENS = 224  # half of what the decoder holds: more were not trained
_MOST_COMPRESSION = 2.4  # of text that does not go round in circles
_LEAST_LOG_PROB = -1.0  # mean of the tokens
_MOST_NO_SPEECH = 0.6
_LATEST_BEGIN = 50  # steps of 0.02 s before which the first timestamp has to lie
_SEED = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a window says. tokens: timestamps included, without prompt and end.

    mean_log_prob: of the tokens and the end. no_speech: probability. compression: of the text.
    """

    tokens: tuple[int, ...]
    mean_log_prob: float
    no_speech: float
    compression: float
    temperature: float

    @property
    def silent(self) -> bool:
        """Nothing is said, as the model says."""
        return self.no_speech > _MOST_NO_SPEECH and self.mean_log_prob < _LEAST_LOG_PROB

    @property
    def sound(self) -> bool:
        """The text neither goes round in circles nor was guessed."""
        return self.compression <= _MOST_COMPRESSION and self.mean_log_prob >= _LEAST_LOG_PROB


class Decoder:
    """The decoder over one encoded window: its keys and values of the audio are computed once.

    encoded: (1, frames, hidden).
    """

    def __init__(self, model: WhisperForConditionalGeneration, encoded: Tensor) -> None:
        self._decoder: Any = model.model.decoder
        self._project: Any = model.proj_out
        self._encoded = encoded
        self._heard = DynamicCache()
        self._said = DynamicCache()

    def start(self) -> None:
        self._said = DynamicCache()

    def feed(self, tokens: Sequence[int]) -> Tensor:
        """(vocabulary,) logits of what follows the tokens, which follow those fed since `start`."""
        cache = EncoderDecoderCache(self._said, self._heard)
        output = self._decoder(
            input_ids=torch.tensor([tokens], device=self._encoded.device),
            encoder_hidden_states=self._encoded,
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = self._project(output.last_hidden_state[:, -1])[0]
        return logits.float()


@dataclass(frozen=True, slots=True)
class Opening:
    """What the decoder makes of a window before it writes. no_speech: probability that nothing is said. languages:
    (languages,) probabilities in the order of checkpoint.languages, none for an English-only checkpoint."""

    no_speech: float
    languages: Tensor


def listen(decoder: Decoder, checkpoint: WhisperCheckpoint) -> Opening:
    decoder.start()
    logits = decoder.feed([checkpoint.sot])
    no_speech = 0.0 if checkpoint.no_speech is None else float(logits.softmax(dim=-1)[checkpoint.no_speech])
    tokens = torch.tensor(list(checkpoint.languages.values()), dtype=torch.long, device=logits.device)
    return Opening(no_speech, logits[tokens].softmax(dim=-1))


def decode(
    decoder: Decoder,
    checkpoint: WhisperCheckpoint,
    no_speech: float,
    language: str | None = None,
    most: int = MOST_TOKENS,
) -> Decoded:
    """Decodes at rising temperatures until the text is sound; the last attempt if none is.

    language: a code of checkpoint.languages. most: tokens at most. Samples are drawn from a generator of their own: the
    same window gives the same text, whatever was decoded before it.
    """
    prompt = compose_prompt(checkpoint, language, timestamps=True)
    rules = TimestampRules(checkpoint)
    decoded: Decoded | None = None
    for temperature in TEMPERATURES:
        decoder.start()
        pairs = list(_generate(decoder, rules, prompt, temperature, most))
        tokens = tuple(token for token, _ in pairs if token != checkpoint.eot)
        mean = sum(log_prob for _, log_prob in pairs) / (len(tokens) + 1)
        text = checkpoint.tokenizer.decode([token for token in tokens if token < checkpoint.timestamp_begin])
        decoded = Decoded(tokens, mean, no_speech, measure_compression(text), temperature)
        if decoded.silent or decoded.sound:
            break
    assert decoded is not None
    return decoded


def _generate(
    decoder: Decoder, rules: TimestampRules, prompt: Sequence[int], temperature: float, most: int
) -> Iterator[tuple[int, float]]:
    """Each token with its log-probability, the end included."""
    generator = torch.Generator().manual_seed(_SEED)
    tokens: list[int] = []
    fed = prompt
    while len(tokens) < most:
        logits = rules.apply(decoder.feed(fed), tokens)
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits / temperature).softmax(dim=-1).cpu(), 1, generator=generator))
        tokens.append(token)
        yield token, float(logits[token] - logits.logsumexp(dim=-1))
        if token == rules.eot:
            return
        fed = [token]


class TimestampRules:
    """Which tokens may follow: timestamps come in pairs, except before the end, begin in the first second and do not go
    back; and one has to come where it is likelier than any word."""

    def __init__(self, checkpoint: WhisperCheckpoint) -> None:
        self.begin, self.eot = checkpoint.timestamp_begin, checkpoint.eot
        special = range(self.eot + 1, self.begin)
        self._never = torch.tensor(sorted({*checkpoint.suppress_tokens, *special} - {self.eot}))
        self._first = torch.tensor(checkpoint.begin_suppress_tokens, dtype=torch.long)

    def apply(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """logits: (vocabulary,), of what follows the tokens; changed in place. tokens: without the prompt."""
        begin, eot = self.begin, self.eot
        logits[self._never.to(logits.device)] = -math.inf
        if not tokens:
            logits[self._first.to(logits.device)] = -math.inf
            logits[:begin] = -math.inf
            logits[begin + _LATEST_BEGIN + 1 :] = -math.inf
            return logits
        stamped = [token >= begin for token in tokens[-2:]]
        if stamped[-1] and all(stamped):  # a pair, or the first one: a word has to follow
            logits[begin:] = -math.inf
        elif stamped[-1]:  # one that ends a sentence: the next begins, or the end
            logits[:eot] = -math.inf
        last = max((token for token in tokens if token >= begin), default=begin - 1)
        logits[begin : last if stamped[-1] and not all(stamped) else last + 1] = -math.inf
        if logits[begin:].logsumexp(dim=-1) > logits[:begin].max():
            logits[:begin] = -math.inf
        return logits


def measure_compression(text: str) -> float:
    """How many times smaller zlib makes it: text that repeats itself is made much smaller."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
