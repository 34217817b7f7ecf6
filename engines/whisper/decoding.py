"""Whisper's decoding: tokens of windows, greedy first, sampled where that does not hold up.

Windows are decoded together and begin together: a step of the decoder writes one token of each. One whose text is
written leaves the others; those that have to be written again, at a higher temperature, do so together.

The rules and thresholds are those of Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 4.5, as
https://github.com/openai/whisper (decoding.py, transcribe.py, v20250625) has them. transformers' `generate` is not
used: it changes the model's generation config, pads windows that share a batch, and draws from the global generator.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefork.engines.whisper.checkpoint import WhisperCheckpoint, compose_prompt
from prefork.engines.whisper.network import Sound, TokenCache, WhisperNetwork, list_tensors
from prefork.engines.whisper.rules import TimestampRules, place
from prefork.platform_matrix.device_kinds import find_kind

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MOST_TOKENS = 224  # half of what the decoder holds: more were not trained
_MOST_COMPRESSION = 2.4  # of text that does not go round in circles
_LEAST_LOG_PROB = -1.0  # mean of the tokens; below, another temperature is tried
_HOPELESS = -1.5  # mean of the tokens; below, it is no text of this recording
_ROUNDS = 4  # times that a loop goes round, at least
_LOOP = 16  # tokens of a loop in all, at least: people repeat themselves too
_MOST_NO_SPEECH = 0.6
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

    @property
    def repeatable(self) -> bool:
        """A higher temperature may do better; after samples that are hopeless, those to come are less likely still."""
        return not (self.silent or self.sound) and not (self.temperature and self.mean_log_prob < _HOPELESS)


class WindowDecoder:
    """The decoder over encoded windows: its keys and values of the audio are computed once.

    Its rows are those of the windows that are being written. A window that leaves changes places with the last one, and
    the rows before it stay as they are: none is copied but these two, and all of them can be started anew.

    encoded: of each window, (frames, size).
    """

    def __init__(self, network: WhisperNetwork, encoded: Sequence[Tensor]) -> None:
        self.decoder = network.decoder
        self.device = encoded[0].device
        self._encoded = encoded
        self._sound = self.decoder.remember(encoded)  # of all windows; no layers: forgotten
        self._cache = TokenCache()
        self._order = list(range(len(encoded)))
        self._rows = len(encoded)

    @property
    def windows(self) -> list[int]:
        """The window of each row."""
        return self._order[: self._rows]

    @property
    def sound(self) -> Sound:
        """Of the rows."""
        return self._sound.cut(self._rows)

    def start(self, windows: Collection[int] | None = None) -> None:
        """Begins to write the windows anew; all of them by default."""
        if not self._sound.layers:
            self._sound = self.decoder.remember(self._encoded)
            self._order.sort()
        self._cache = TokenCache()
        self._rows = len(self._order)
        self._keep(self._order if windows is None else windows)

    def forget(self) -> None:
        """Frees its keys and values, 18 MB for half a minute of tiny; `start` computes them again."""
        self._sound, self._cache = Sound([]), TokenCache()

    def drop(self, windows: Collection[int]) -> None:
        """Leaves out windows that are written."""
        self._keep(set(self.windows).difference(windows))

    def feed(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """(rows, vocabulary) float32 logits of what follows the tokens, which follow those fed since `start`. tokens:
        of each row, as many of all."""
        hidden, _ = self.decoder(place(tokens, self.device), self.sound, self._cache)
        return self.decoder.project(hidden[:, -1]).float()

    def _keep(self, windows: Collection[int]) -> None:
        tensors = [*self._sound.list_tensors(), *list_tensors(self._cache.layers)]
        for row in reversed(range(self._rows)):
            if self._order[row] not in windows:
                self._rows -= 1
                self._exchange(tensors, row, self._rows)
        self._cache.cut(self._rows)

    def _exchange(self, tensors: Sequence[Tensor], row: int, other: int) -> None:
        if row == other:
            return
        self._order[row], self._order[other] = self._order[other], self._order[row]
        for tensor in tensors:
            kept = tensor[row].clone()
            tensor[row] = tensor[other]
            tensor[other] = kept


@dataclass(frozen=True, slots=True)
class Opening:
    """What the decoder makes of a window before it writes. no_speech: probability that nothing is said. languages:
    (languages,) probabilities in the order of checkpoint.languages, none for an English-only checkpoint."""

    no_speech: float
    languages: Tensor


def listen(decoder: WindowDecoder, checkpoint: WhisperCheckpoint) -> list[Opening]:
    """What each window begins with."""
    decoder.start()
    logits = decoder.feed([[checkpoint.sot]] * len(decoder.windows))
    silences = [0.0] * len(logits)
    if checkpoint.no_speech is not None:
        silences = logits.softmax(dim=-1)[:, checkpoint.no_speech].tolist()
    tokens = place(list(checkpoint.languages.values()), logits.device)
    languages = logits[:, tokens].softmax(dim=-1)
    found = {window: Opening(silences[row], languages[row]) for row, window in enumerate(decoder.windows)}
    return [found[window] for window in range(len(found))]


def decode(
    decoder: WindowDecoder,
    checkpoint: WhisperCheckpoint,
    no_speech: Sequence[float],
    languages: Sequence[str | None] | None = None,
    most: Sequence[int] | None = None,
) -> list[Decoded]:
    """Decodes each window at rising temperatures until its text is sound; the likeliest attempt if none is.

    languages: codes of checkpoint.languages. most: tokens at most, 1 or more. Samples of each window are drawn from a
    generator of its own: the same window gives the same text, whatever was decoded before it or with it.
    """
    count = len(no_speech)
    languages, most = languages or [None] * count, most or [MOST_TOKENS] * count
    prompts = [compose_prompt(checkpoint, language, timestamps=True) for language in languages]
    rules = TimestampRules(checkpoint, decoder.device)
    attempts: list[list[Decoded]] = [[] for _ in range(count)]
    pending = list(range(count))
    for temperature in TEMPERATURES:
        written = _write(decoder, rules, {window: prompts[window] for window in pending}, temperature, most)
        for window in pending:
            attempts[window].append(_judge(checkpoint, written[window], no_speech[window], temperature))
        pending = [window for window in pending if attempts[window][-1].repeatable]
        if not pending:
            break
    return [_choose(of_window) for of_window in attempts]


def _choose(attempts: Sequence[Decoded]) -> Decoded:
    last = attempts[-1]
    if last.silent or last.sound:
        return last
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


@dataclass(slots=True)
class _Draft:
    """What is being written of a window. generator: what its samples are drawn with."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(_SEED))

    def add(self, token: int, log_prob: float, eot: int) -> bool:
        """Whether there is more to write."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        if token < eot:
            self.text.append(token)
        return token != eot and not goes_round(self.text)


def _write(
    decoder: WindowDecoder,
    rules: TimestampRules,
    prompts: Mapping[int, Sequence[int]],
    temperature: float,
    most: Sequence[int],
) -> dict[int, list[tuple[int, float]]]:
    """The tokens of each window with their log-probabilities, the end included.

    prompts: of the windows to be written, all equally long. most: tokens at most, of all windows.
    """
    drafts = {window: _Draft() for window in prompts}
    decoder.start(drafts)
    fed = [prompts[window] for window in decoder.windows]
    while rows := [drafts[window] for window in decoder.windows]:
        logits = rules.apply(decoder.feed(fed), [draft.tokens for draft in rows])
        found = zip(decoder.windows, rows, *_pick(logits, rows, temperature), strict=True)
        done = [
            window
            for window, draft, token, log_prob in found
            if not draft.add(token, log_prob, rules.eot) or len(draft.tokens) >= most[window]
        ]
        decoder.drop(done)
        fed = [[drafts[window].tokens[-1]] for window in decoder.windows]
    return {window: list(zip(draft.tokens, draft.log_probs, strict=True)) for window, draft in drafts.items()}


def _pick(logits: Tensor, drafts: Sequence[_Draft], temperature: float) -> tuple[list[int], list[float]]:
    """The next token of each row with its log-probability. logits: (rows, vocabulary)."""
    if temperature == 0:
        tokens = logits.argmax(dim=-1, keepdim=True)
    else:
        # One number for each row, and where it falls among the sums: torch.multinomial draws one for each token.
        weights = (logits / temperature).softmax(dim=-1)
        if "float64" in find_kind(weights.device.type).lacks:
            weights = weights.cpu()
        sums = weights.double().cumsum(dim=-1)
        drawn = [torch.rand(1, generator=draft.generator, dtype=torch.float64) for draft in drafts]
        reached = torch.stack(drawn).to(sums.device, non_blocking=True) * sums[:, -1:]
        found = torch.searchsorted(sums, reached, right=True)
        tokens = found.clamp_(max=logits.shape[1] - 1).to(logits.device)  # above: what is no number
    log_probs = logits.gather(1, tokens)[:, 0] - logits.logsumexp(dim=-1)
    # Both at once, in the one copy of a step that the device is waited for; a float32 holds any token's number.
    numbers = torch.stack([tokens[:, 0].to(log_probs.dtype), log_probs]).tolist()
    return [int(number) for number in numbers[0]], numbers[1]


def measure_compression(text: str) -> float:
    """How many times smaller zlib makes it: text that repeats itself is made much smaller."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def goes_round(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are the same few again and again."""
    for period in range(1, len(tokens) // _ROUNDS + 1):
        if tokens[-1] != tokens[-1 - period]:
            continue
        size = max(_LOOP, period * _ROUNDS)
        tail = tokens[len(tokens) - size :]
        if len(tokens) >= size and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
            return True
    return False
