"""Speech that a transcript lacks: what is heard between an utterance's words, beside these, as letters and as phones.

Pure functions of words and tensors. The paths are torchaudio's (`torchaudio.functional.forced_align`), with a wildcard
between any two words; the third measure is the edit distance of Wagner and Fischer 1974,
https://doi.org/10.1145/321796.321811.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torchaudio.functional import forced_align

from prefork.engines.alignment.confidence import UntranscribedSpeech
from prefork.engines.alignment.viterbi import WILDCARD, Clock, Vocabulary, score_wildcard
from prefork.engines.ctc.phone_head import STEPS
from prefork.engines.ctc.phone_times import PhoneClock, hear_between
from prefork.engines.ctc.pronunciations import Pronunciations
from prefork.engines.text.document import Word

_MOST = 24  # words that are looked at together
_LETTER = 3.0  # nats by which a letter between two words must be likelier than none
_MOST_NATS = 8.0  # that one letter counts
_MISSING = (
    0.8  # what a written letter costs that is not heard; one that is heard and not written costs its probability,
)
_OTHER = 0.3  # and this besides if it takes the place of another
# A logistic regression on the measures of a place, each up to a limit: on the places of right utterances, and on those
# where a word was left out, of ../shared/data/speech and of three synthesised voices, weighted to be as many
# (tests/benchmarks/confidence.py). EVEN: the evidence at which either is as likely.
WEIGHTS = (1.230, 2.396, 0.592)
LIMITS = (7.0, 4.0, 9.0)
EVEN = 4.824
_LEAST = 0.5  # score from which on it is worth mentioning

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Emissions:
    """What is heard of a segment. log_probs: (frames, vocabulary). phones: (steps, columns) log-probabilities of
    SILENCE and PHONES. origin: seconds of the recording before them."""

    log_probs: torch.Tensor
    phones: torch.Tensor
    vocabulary: Vocabulary
    clock: Clock
    pronunciations: Pronunciations
    origin: float


@dataclass(frozen=True, slots=True)
class HeardPlace:
    """What is heard beside the words before one of them, or after the last. start, end: seconds. measures: the square
    root of the nats by which letters there are likelier than none; letters that are heard and not written; the square
    root of the nats by which phones there are likelier than silence."""

    place: int
    start: float
    end: float
    measures: tuple[float, float, float]


def find_untranscribed(words: Sequence[Word], heard: Emissions, start: float, end: float) -> list[UntranscribedSpeech]:
    """Where between `start` and `end`, seconds, something is said that is none of the words, and how likely that is.

    words: of an utterance, with their times and phones. Beside words that nobody knows how to pronounce nothing is
    found.
    """
    unknown = {place for index, word in enumerate(words) if not word.phones for place in (index, index + 1)}
    rated = [(one, rate_place(one.measures)) for one in hear_places(words, heard, start, end)]
    return [
        UntranscribedSpeech(one.place, round(one.start, 3), round(one.end, 3), round(score, 4))
        for one, score in rated
        if score >= _LEAST and one.place not in unknown
    ]


def rate_place(measures: Sequence[float]) -> float:
    """How likely it is that a word is said there, if one were at every second place."""
    limited = [min(measure, limit) for measure, limit in zip(measures, LIMITS, strict=True)]
    evidence = sum(weight * measure for weight, measure in zip(WEIGHTS, limited, strict=True))
    return 1 / (1 + math.exp(EVEN - evidence))


def hear_places(words: Sequence[Word], heard: Emissions, start: float, end: float) -> list[HeardPlace]:
    """Each place before a word, and that after the last; none if there is too little of the recording for the words."""
    places: list[HeardPlace] = []
    for first in range(0, len(words), _MOST):
        low, high = max(0, first - 1), min(len(words), first + _MOST + 1)
        some = words[low:high]
        begin, last = _span(some)
        found = _hear_some(
            some, heard, begin if low else min(start, begin), last if high < len(words) else max(end, last)
        )
        stop = first + _MOST if first + _MOST < len(words) else len(words) + 1
        places += [HeardPlace(low + i, *one) for i, one in enumerate(found) if first <= low + i < stop]
    return places


def _hear_some(
    words: Sequence[Word], heard: Emissions, start: float, end: float
) -> list[tuple[float, float, tuple[float, float, float]]]:
    phone_clock = PhoneClock(heard.origin, heard.clock.frame / STEPS)
    phones = hear_between(words, heard.phones, phone_clock, heard.pronunciations, start, end)
    low, high = (round((time - heard.origin - heard.clock.start_offset) / heard.clock.frame) for time in (start, end))
    rows = heard.log_probs[max(0, low) : max(0, high)]
    spellings = [[column for _, column in heard.vocabulary.spell(word.text)] for word in words]
    beside = _hear_beside(rows, spellings, heard.vocabulary)
    if not phones or not beside:
        return []
    more = _count_more(_list_letters(rows, heard.vocabulary), spellings)
    return [
        (speech.start, speech.end, (math.sqrt(letters), unwritten, math.sqrt(speech.nats)))
        for speech, letters, unwritten in zip(phones, beside, more, strict=True)
    ]


def _hear_beside(rows: torch.Tensor, spellings: Sequence[Sequence[int]], vocabulary: Vocabulary) -> list[float]:
    """Nats by which letters at each place are likelier than none, where a path through the words' letters leaves room
    for them. rows: (frames, vocabulary) log-probabilities."""
    beside, wildcard = rows.shape[1], rows.shape[1] + 1
    tokens, places = [beside], [0]
    for spelling in spellings:
        tokens += [*(wildcard if column == WILDCARD else column for column in spelling), beside]
        places.append(len(tokens) - 1)
    if len(rows) < len(tokens) + sum(a == b for a, b in pairwise(tokens)):
        return []
    none = rows[:, [vocabulary.blank, *([] if vocabulary.separator is None else [vocabulary.separator])]].amax(dim=1)
    best = score_wildcard(rows, vocabulary)
    emission = torch.cat([rows, torch.maximum(none, best - _LETTER)[:, None], best[:, None]], dim=1)
    path, _ = forced_align(emission[None], torch.tensor([tokens]).int(), blank=vocabulary.blank)
    columns = path[0].numpy()
    begins = (columns != vocabulary.blank) & (columns != np.concatenate([[vocabulary.blank], columns[:-1]]))
    token = np.where(columns == vocabulary.blank, -1, np.cumsum(begins) - 1)
    nats = np.clip((best - none).numpy() - _LETTER, 0, _MOST_NATS)
    said = rows.argmax(dim=1).numpy()
    return [_add_letters(nats * (token == place), said) for place in places]


def _add_letters(nats: Floats, said: np.ndarray[Any, Any]) -> float:
    """The most nats of each letter: frames that follow one another and in which the same is likeliest are one."""
    (frames,) = np.nonzero(nats > 0)
    if not len(frames):
        return 0.0
    new = (np.diff(frames) > 1) | (np.diff(said[frames]) != 0)
    return float(np.maximum.reduceat(nats[frames], np.concatenate([[0], np.flatnonzero(new) + 1])).sum())


def _list_letters(rows: torch.Tensor, vocabulary: Vocabulary) -> list[tuple[int, float]]:
    """The letters that are likeliest, each with the most of its probability."""
    probabilities, columns = (values.tolist() for values in rows.max(dim=1))
    letters: list[tuple[int, float]] = []
    last = vocabulary.blank
    for log_probability, column in zip(probabilities, columns, strict=True):
        if column not in (vocabulary.blank, vocabulary.separator):
            probability = math.exp(log_probability)
            if column == last:
                probability = max(probability, letters.pop()[1])
            letters.append((column, probability))
        last = column
    return letters


def _count_more(letters: Sequence[tuple[int, float]], spellings: Sequence[Sequence[int]]) -> list[float]:
    """At each place, the letters, by their probabilities, that are none of the words', where the edits that make the
    words' letters of all of them cost least."""
    written = np.array([column for spelling in spellings for column in spelling])
    words = np.repeat(np.arange(len(spellings)), [len(spelling) for spelling in spellings])
    without = _MISSING * np.arange(len(written) + 1)
    costs = without
    moves = np.zeros((len(letters) + 1, len(written) + 1), np.int8)  # 0: both, 1: a letter more, 2: one less
    moves[0] = 2
    for row, (column, probability) in enumerate(letters, 1):
        more = costs + probability
        both = costs[:-1] + np.where(written == column, 0.0, _OTHER + probability)
        best = more.copy()
        best[1:] = np.minimum(both, more[1:])
        moves[row, 0] = 1
        moves[row, 1:] = both > more[1:]
        costs = np.minimum.accumulate(best - without) + without
        moves[row, costs < best - 1e-9] = 2
    counts = [0.0] * (len(spellings) + 1)
    row, place = len(letters), len(written)
    while row or place:
        move = moves[row, place]
        if move == 1:
            inside = 0 < place < len(written) and words[place - 1] == words[place]
            if not inside:
                counts[words[place] if place < len(written) else len(spellings)] += letters[row - 1][1]
        row -= move != 2
        place -= move != 1
    return counts


def _span(words: Sequence[Word]) -> tuple[float, float]:
    start, end = words[0].start, words[-1].end
    assert start is not None and end is not None
    return start, end
