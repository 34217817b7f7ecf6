"""Forced alignment of words to emissions: spelling, the Viterbi path, and times from it. Pure functions of tensors.

The path is torchaudio's (`torchaudio.functional.forced_align`); the wildcard is the star token of Pratap et al. 2023,
https://arxiv.org/abs/2305.13516, section 3.1.2.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torchaudio.functional import forced_align, merge_tokens

from engines.document import Character, Timing, Word

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´", "'"))
_UNTRANSCRIBED = frozenset({"xxx", "yyy", "www"})  # CHAT: speech that nobody could, or wanted to, write down


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The characters that a CTC model emits. blank, separator: their columns; a model may have no separator."""

    columns: Mapping[str, int]
    blank: int
    separator: int | None = None

    def spell(self, word: str) -> list[tuple[str, int]]:
        """The word's characters that the model knows, each with its column; none if it knows none of them.

        >>> Vocabulary({"E": 1, "A": 2}, blank=0).spell("éa!")
        [('é', 1), ('a', 2)]
        """
        if word.lower() in _UNTRANSCRIBED:
            return []
        text = unicodedata.normalize("NFC", word).translate(_APOSTROPHES)
        spelled = [(character, self._find(character)) for character in text]
        known = [(character, column) for character, column in spelled if column is not None]
        return known if any(character.isalnum() for character, _ in known) else []

    def _find(self, character: str) -> int | None:
        bases = (character, unicodedata.normalize("NFD", character)[0])  # é is an e to a model that has no é
        for candidate in (form for base in bases for form in (base, base.upper(), base.lower())):
            if candidate in self.columns:
                return self.columns[candidate]
        return None


@dataclass(frozen=True, slots=True)
class Clock:
    """Frames to seconds. The offsets undo a model's constant lead or lag."""

    frame: float  # seconds
    start_offset: float = 0.0  # seconds
    end_offset: float = 0.0  # seconds


def count_frames_needed(words: Sequence[str], vocabulary: Vocabulary) -> int:
    """The fewest frames that can hold the words: one for each token, and a blank between two equal ones."""
    tokens = [column for column, _ in _list_tokens(words, vocabulary)]
    return len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:], strict=False))


def align_words(
    log_probs: torch.Tensor, words: Sequence[str], vocabulary: Vocabulary, clock: Clock, origin: float, limit: float
) -> list[Word]:
    """The words with their times.

    log_probs: (frames, vocabulary) log-probabilities. origin: seconds at which the first frame begins. limit: seconds
    that no time may exceed. Words that the model cannot spell get the stretch of speech between their neighbours;
    if there are fewer frames than the words need, all are spread evenly over the frames.
    """
    duration = log_probs.shape[0] * clock.frame
    if log_probs.shape[0] < count_frames_needed(words, vocabulary):
        return spread_words(words, origin, min(origin + duration, limit))
    tokens = _list_tokens(words, vocabulary)
    emission = torch.cat([log_probs, _score_wildcard(log_probs, vocabulary.blank)[:, None]], dim=1)
    columns = [column if column >= 0 else log_probs.shape[1] for column, _ in tokens]
    path, scores = forced_align(emission[None], torch.tensor([columns], dtype=torch.int32), blank=vocabulary.blank)
    spans = merge_tokens(path[0], scores[0].exp(), blank=vocabulary.blank)
    by_word: list[list[tuple[float, float, float]]] = [[] for _ in words]
    for span, (_, owner) in zip(spans, tokens, strict=True):
        if owner is not None:
            start = origin + span.start * clock.frame + clock.start_offset
            end = origin + span.end * clock.frame + clock.end_offset
            by_word[owner].append((start, end, span.score))
    timed = [_make_word(text, vocabulary.spell(text), found) for text, found in zip(words, by_word, strict=True)]
    return separate_words(timed, origin, min(origin + duration, limit))


def _list_tokens(words: Sequence[str], vocabulary: Vocabulary) -> list[tuple[int, int | None]]:
    """(column, word) of every token to be found, in order; column -1 is the wildcard, a separator has no word."""
    tokens: list[tuple[int, int | None]] = []
    for index, word in enumerate(words):
        if index and vocabulary.separator is not None:
            tokens.append((vocabulary.separator, None))
        tokens += [(column, index) for _, column in vocabulary.spell(word)] or [(-1, index)]
    return tokens


def _score_wildcard(log_probs: torch.Tensor, blank: int) -> torch.Tensor:
    """What the wildcard scores in each frame: the best that any character could.

    Measured on 85 words hidden behind digits in tests/benchmarks/accuracy.py's recordings: word starts as good as
    those of spelled words, and no constant that does better for their neighbours too.
    """
    others = log_probs.clone()
    others[:, blank] = -torch.inf
    return others.amax(dim=1)


def _make_word(text: str, spelled: Sequence[tuple[str, int]], found: Sequence[tuple[float, float, float]]) -> Word:
    start, end = found[0][0], found[-1][1]
    score = sum(score for _, _, score in found) / len(found)
    if not spelled:
        return Word(text, start, end, None, Timing.WILDCARD)
    characters = tuple(Character(character, *times) for (character, _), times in zip(spelled, found, strict=True))
    return Word(text, start, end, score, Timing.ALIGNED, characters)


def spread_words(words: Sequence[str], start: float, end: float) -> list[Word]:
    """Words that share a stretch of time evenly: nothing better is known."""
    step = max(0.0, end - start) / len(words)
    return [
        _round(Word(text, start + i * step, start + (i + 1) * step, None, Timing.INTERPOLATED))
        for i, text in enumerate(words)
    ]


def separate_words(words: Sequence[Word], low: float, high: float) -> list[Word]:
    """Keeps words within [low, high], in order, and apart: none ends after the next has begun."""
    starts: list[float] = []
    for word in words:
        assert word.start is not None
        starts.append(min(max(word.start, low, starts[-1] if starts else low), high))
    ends = [*starts[1:], high]
    return [
        _fit(word, start, min(max(word.end or start, start), end))
        for word, start, end in zip(words, starts, ends, strict=True)
    ]


def _fit(word: Word, start: float, end: float) -> Word:
    """The word between these times, its characters too."""

    def clip(time: float) -> float:
        return round(min(max(time, start), end), 3)

    characters = tuple(Character(c.text, clip(c.start), clip(c.end), round(c.score, 4)) for c in word.characters)
    return _round(Word(word.text, start, end, word.score, word.timing, characters))


def _round(word: Word) -> Word:
    score = None if word.score is None else round(word.score, 4)
    start, end = round(word.start or 0.0, 3), round(word.end or 0.0, 3)
    return Word(word.text, start, end, score, word.timing, word.characters)
