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
_LEAST_LOG_PROB = -1.0  # mean of the tokens; below, another temperature is tried
_HOPELESS = -1.5  # mean of the tokens; below, it is no text of this recording
_ROUNDS = 4  # times that a loop goes round, at least
_LOOP = 16  # tokens of a loop in all, at least: people repeat themselves too
_MOST_NO_SPEECH = 0.6
_LATEST_BEGIN = 50  # steps of 0.02 s before which the first timestamp has to lie
_SEED = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a window says. tokens: timestamps included, without prompt and end. ended: of itself.

    mean_log_prob: of the tokens and the end. text_log_prob: of the text alone, which a few certain timestamps do not
    lift. no_speech: probability. compression: of the text. circular: it goes round in circles.
    """

    tokens: tuple[int, ...] = ()
    ended: bool = True
    mean_log_prob: float = 0.0
    text_log_prob: float = 0.0
    no_speech: float = 0.0
    compression: float = 0.0
    circular: bool = False
    temperature: float = 0.0

    @property
    def silent(self) -> bool:
        """Nothing is said, as the model says."""
        return self.no_speech > _MOST_NO_SPEECH and min(self.mean_log_prob, self.text_log_prob) < _LEAST_LOG_PROB

    @property
    def sound(self) -> bool:
        """The text was not guessed, and does not loop: text that is much shorter when compressed is looked at, and may
        also be something that was said two or three times."""
        loops = self.circular or (self.compression > _MOST_COMPRESSION and not self.ended)
        return not loops and self.mean_log_prob >= _LEAST_LOG_PROB

    @property
    def tolerable(self) -> bool:
        """The text may be wrong, but is better than none."""
        return not self.circular and self.ended and self.mean_log_prob >= _HOPELESS


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
    """Decodes at rising temperatures until the text is sound; the likeliest attempt if none is.

    language: a code of checkpoint.languages. most: tokens at most. Samples are drawn from a generator of their own: the
    same window gives the same text, whatever was decoded before it.
    """
    prompt = compose_prompt(checkpoint, language, timestamps=True)
    rules = TimestampRules(checkpoint)
    attempts: list[Decoded] = []
    for temperature in TEMPERATURES:
        decoder.start()
        pairs = list(_generate(decoder, rules, prompt, temperature, most))
        attempts.append(_judge(checkpoint, pairs, no_speech, temperature))
        last = attempts[-1]
        if last.silent or last.sound:
            return last
        if temperature and last.mean_log_prob < _HOPELESS:  # those to come are less likely still
            break
    return max(attempts, key=lambda attempt: (attempt.tolerable, attempt.mean_log_prob))


def _judge(
    checkpoint: WhisperCheckpoint, pairs: Sequence[tuple[int, float]], no_speech: float, temperature: float
) -> Decoded:
    """pairs: tokens with their log-probabilities, the end included."""
    text = [(token, log_prob) for token, log_prob in pairs if token < checkpoint.eot]
    written = [token for token, _ in text]
    return Decoded(
        tokens=tuple(token for token, _ in pairs if token != checkpoint.eot),
        ended=pairs[-1][0] == checkpoint.eot,
        mean_log_prob=sum(log_prob for _, log_prob in pairs) / len(pairs),
        text_log_prob=sum(log_prob for _, log_prob in text) / max(1, len(text)),
        no_speech=no_speech,
        compression=measure_compression(checkpoint.tokenizer.decode(written)),
        circular=any(goes_round(written[:end]) for end in range(_LOOP, len(written) + 1)),
        temperature=temperature,
    )


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
        if token == rules.eot or goes_round([token for token in tokens if token < rules.eot]):
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


def goes_round(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are the same few again and again."""
    for period in range(1, len(tokens) // _ROUNDS + 1):
        size = max(_LOOP, period * _ROUNDS)
        tail = tokens[len(tokens) - size :]
        if len(tokens) >= size and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False
