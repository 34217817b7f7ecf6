"""Where utterances are in a model's emissions, if they are there at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torchaudio.functional import forced_align, merge_tokens

from prefork.engines.alignment.sparse_alignment import FIRST, FLOOR, LOUD, QUIET, UnitSpan, find_units
from prefork.engines.alignment.viterbi import WILDCARD, Vocabulary

Eighths = np.ndarray[Any, np.dtype[np.uint8]]
Scores = np.ndarray[Any, np.dtype[np.floating[Any]]]

_STEPS = 8  # of a nat, in which scores go from worker to worker
LOWEST = round(-FLOOR * _STEPS)
_UNIT = 40  # characters after which a longer utterance is cut at a word, so that a part of it can be found
_PAUSE = 10.0  # seconds; parts of an utterance further apart are not all of it
_CHANCE = 1.3  # times what a text costs that the same costs from back to front, at least
_DEAREST = 3.0  # nats for a character,
_DEAREST_FRAME = 0.25  # or for a frame, where somebody speaks slowly
_SHARE = 0.5  # of an utterance's characters that must be found


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of an utterance. owner: the utterance. known: characters that the model can spell."""

    owner: int
    columns: tuple[int, ...]
    known: int


def list_columns(texts: Iterable[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    """The columns of the characters of these words, in order."""
    spelled = {column for text in texts for _, column in vocabulary.spell(text)}
    return tuple(sorted(spelled - {WILDCARD}))


def score(emission: torch.Tensor, vocabulary: Vocabulary, columns: Sequence[int]) -> Eighths:
    """(2 + columns, frames): QUIET, LOUD and the columns, in eighths of a nat below the frame's largest.

    emission: (frames, vocabulary) log-probabilities.
    """
    quiet = [vocabulary.blank, *([] if vocabulary.separator is None else [vocabulary.separator])]
    characters = sorted(set(vocabulary.columns.values()))
    rows = [emission[:, quiet].amax(1), emission[:, characters].amax(1), *emission[:, list(columns)].T]
    scores = np.stack([row.numpy() for row in rows])
    below = scores[:2].max(axis=0) - scores
    eighths: Eighths = np.minimum(np.ceil(below * _STEPS - 1e-6), LOWEST).clip(0).astype(np.uint8)
    return eighths


def to_log_probs(eighths: Eighths) -> Scores:
    """In half precision, in which eighths down to -6 are exact."""
    scores = eighths.astype(np.float16)
    scores /= -_STEPS
    return scores


def find_places(
    scores: Scores, texts: Mapping[int, Sequence[str]], vocabulary: Vocabulary, columns: Sequence[int], frame: float
) -> dict[int, tuple[int, int, float]]:
    """First frame, last frame and confidence of each utterance of which enough was found in one place.

    scores: (frames, 2 + columns). texts: the words of the utterances, in the order in which they are said. frame: its
    seconds.
    """
    units = [unit for owner, words in texts.items() for unit in _cut(owner, words, vocabulary, columns)]
    spans = find_units(scores, [unit.columns for unit in units])
    return _gather(units, spans, round(_PAUSE / frame))


def fit_place(
    scores: Scores, words: Sequence[str], vocabulary: Vocabulary, columns: Sequence[int]
) -> tuple[int, int, float] | None:
    """First frame, last frame and confidence of where an utterance fits best, with other speech around it; None if
    that is no better than chance: if its characters fit nearly as well from back to front, or no better than those of
    a text that nobody says usually do.

    scores, columns: as for `find_places`. Of 200 utterances of ../shared/data/speech within their own times, one is
    refused, and of 227 synthesised sentences 4; of 1,988 within those of others, 8 are accepted.
    """
    characters = [column for unit in _cut(0, words, vocabulary, columns) for column in unit.columns]
    spans = _fit(scores, characters), _fit(scores, characters[::-1])
    if spans[0] is None or spans[1] is None or spans[1].cost < _CHANCE * spans[0].cost:
        return None
    first, last, cost = spans[0].first, spans[0].last, spans[0].cost / len(characters)
    slow = spans[0].cost <= _DEAREST_FRAME * (last - first + 1)
    return (first, last, math.exp(-cost)) if cost <= _DEAREST or slow else None


def _fit(scores: Scores, characters: Sequence[int]) -> UnitSpan | None:
    """The best path of characters, and nothing that is left out; None if there are too few frames for it."""
    path = [LOUD, *characters, LOUD]
    if not characters or len(path) + sum(a == b for a, b in pairwise(path)) > len(scores):
        return None
    emission = torch.from_numpy(np.ascontiguousarray(scores, np.float32))
    tokens, paid = forced_align(emission[None], torch.tensor([path], dtype=torch.int32), blank=QUIET)
    spans = merge_tokens(tokens[0], paid[0], blank=QUIET)
    first, end = spans[1].start, spans[-2].end
    return UnitSpan(first, end - 1, -float(paid[0, first:end].sum()))


def _cut(owner: int, words: Sequence[str], vocabulary: Vocabulary, columns: Sequence[int]) -> Iterator[Unit]:
    """The utterance's units. Words that cannot be spelled count only between others: at an end, there is no telling
    how far they reach."""
    places = {column: FIRST + place for place, column in enumerate(columns)}
    spelled = [[places.get(column, LOUD) for _, column in vocabulary.spell(word)] for word in words]
    while spelled and max(spelled[-1]) < FIRST:
        spelled.pop()
    while spelled and max(spelled[0]) < FIRST:
        spelled.pop(0)
    unit: list[int] = []
    for place, word in enumerate(spelled):
        unit += word
        rest = sum(len(other) for other in spelled[place + 1 :])
        known = sum(column >= FIRST for column in unit)
        if not rest or (known >= _UNIT and rest >= _UNIT // 2):
            yield Unit(owner, tuple(unit), known)
            unit = []


def _gather(units: Sequence[Unit], spans: Sequence[UnitSpan | None], pause: int) -> dict[int, tuple[int, int, float]]:
    """First frame, last frame and confidence of each utterance of which enough was found in one place."""
    places = {}
    for owner, pairs in groupby(zip(units, spans, strict=True), key=lambda pair: pair[0].owner):
        known = 0
        groups: list[list[tuple[Unit, UnitSpan]]] = []
        for unit, span in pairs:
            known += unit.known
            if span and groups and span.first - groups[-1][-1][1].last <= pause:
                groups[-1].append((unit, span))
            elif span:
                groups.append([(unit, span)])
        best = max(groups, key=lambda group: sum(unit.known for unit, _ in group), default=[])
        there = sum(unit.known for unit, _ in best)
        if best and there >= _SHARE * known:
            confidence = math.exp(-sum(span.cost for _, span in best) / there) * there / known
            places[owner] = (best[0][1].first, best[-1][1].last, confidence)
    return places
