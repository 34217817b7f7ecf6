"""Times for utterances that have none, from the words that a recogniser heard."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from prefork.engines.alignment.anchors import Integers, find_anchors
from prefork.engines.alignment.forced_aligner import measure
from prefork.engines.alignment.recovery import FoundPlace, SearchRegion, give_times, plan_regions
from prefork.engines.base import HostEngine, Job, Segment
from prefork.engines.text.document import Document, Word
from prefork.engines.text.spoken_numbers import spell_numbers

_LEAST = 0.05  # seconds that a word takes at the very least
_SEEDS = ((3, 4.0), (2, 3.0))  # words of an n-gram, and of a chain that is trusted
_GAP = 30  # words between two seeds of a chain
_MOST_CELLS = 16_000_000  # words times words between two anchors
_SPACE = -0.3  # what a word alone costs; two words that are alike give 1, two that have nothing in common -1
_ALIKE = 0.6  # similarity of two words that are taken for one
_SHARE = 0.5  # of an utterance's letters that must be heard
_SURE = 10  # letters that are enough to find an utterance on its own
_NEAR = 10.0  # seconds between an utterance of fewer letters and one that was found
_PAUSE = 5.0  # seconds; words further apart are not of one utterance

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class _SpelledWord:
    """One spoken word, spelled out. owner: the utterance it is in, or the place of the heard word."""

    text: str
    owner: int


class WordMatcher(HostEngine):
    """Aligns `Document.heard`, which is then used up, with the words of the utterances without times.

    An utterance of which too little was heard gets no times: it is `missing`, and the document's warnings say so.
    """

    name = "match"

    def fingerprint(self) -> Mapping[str, Any]:
        return {"engine": self.name}

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:  # noqa: ARG002
        seconds = measure(job)
        least = [_LEAST * len(utterance.words) for utterance in document.utterances]
        found: dict[int, FoundPlace | None] = {}
        heard = [word for word in document.heard if word.start is not None and word.end is not None]
        for region in plan_regions(document.utterances, least, seconds):
            found |= _find(document, region, heard, seconds)
        return replace(give_times(document, found, seconds), heard=())


def _find(
    document: Document, region: SearchRegion, heard: Sequence[Word], seconds: float
) -> dict[int, FoundPlace | None]:
    language = document.languages[0] if document.languages else _LANGUAGE
    inside = [word for word in heard if (word.start or 0) < region.end and (word.end or 0) > region.start]
    theirs = [_SpelledWord(text, place) for place, word in enumerate(inside) for text in spell_out(word.text, language)]
    ours = [
        _SpelledWord(text, index)
        for index in region.utterances
        for word in document.utterances[index].words
        for text in spell_out(word.text, language)
    ]
    matches: dict[int, list[tuple[Word, int]]] = {index: [] for index in region.utterances}
    letters = dict.fromkeys(region.utterances, 0)
    for token in ours:
        letters[token.owner] += len(token.text)
    for left, right in align_texts([token.text for token in ours], [token.text for token in theirs]):
        matches[ours[left].owner].append((inside[theirs[right].owner], len(ours[left].text)))
    places = {index: _place(matches[index], letters[index]) for index in region.utterances}
    sure = [p for p in (places[i] for i in region.utterances) if p and p[1] >= _SURE]
    edges = sorted(edge for place, _ in sure for edge in (place.start, place.end))
    found: dict[int, FoundPlace | None] = {}
    last: int | None = None
    for index in region.wanted:
        entry = places[index]
        found[index] = None
        if entry is None or not (entry[1] >= _SURE or _is_near(entry[0], edges)):
            continue
        place = entry[0]
        found[index] = FoundPlace(place.start, min(place.end, seconds), place.confidence)
        before = found[last] if last is not None else None
        if last is not None and before is not None and place.start < before.end:
            found[last] = FoundPlace(before.start, max(before.start, place.start), before.confidence)
        last = index
    return found


def _place(matches: Sequence[tuple[Word, int]], letters: int) -> tuple[FoundPlace, int] | None:
    """Where an utterance's heard words are, and how many letters they have; None if it is too few of them."""
    groups: list[list[tuple[Word, int]]] = []
    for word, count in matches:
        if groups and (word.start or 0) - (groups[-1][-1][0].end or 0) <= _PAUSE:
            groups[-1].append((word, count))
        else:
            groups.append([(word, count)])
    best = max(groups, key=lambda group: sum(count for _, count in group), default=[])
    there = sum(count for _, count in best)
    if not best or there < _SHARE * letters:
        return None
    start, end = best[0][0].start or 0.0, best[-1][0].end or 0.0
    return (FoundPlace(start, end, there / letters), there) if start < end else None


def _is_near(place: FoundPlace, edges: Sequence[float]) -> bool:
    at = bisect_left(edges, place.start)
    return any(
        abs(place.start - edge) <= _NEAR or abs(place.end - edge) <= _NEAR for edge in edges[max(0, at - 1) : at + 2]
    )


def align_texts(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """The words of the two that are taken for one another, as pairs of positions, both rising.

    Anchors first, then Needleman and Wunsch's alignment between them; near linear in time.
    """
    names = {text: number for number, text in enumerate(dict.fromkeys([*left, *right]))}
    ours, theirs = (np.array([names[text] for text in texts], np.int64) for texts in (left, right))
    pairs: list[tuple[int, int]] = []
    for (low, first), (high, last) in _list_gaps(ours, theirs, 0):
        for i, j in _align(left[low:high], right[first:last]):
            pairs.append((low + i, first + j))
    return pairs


def _list_gaps(left: Integers, right: Integers, level: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Stretches of both that are aligned with one another; each begins at an anchor. Too large ones are divided by
    shorter n-grams, and left out if that does not help: they have nothing in common."""
    points = [(0, 0)]
    size, least = _SEEDS[level]
    for chain in find_anchors(left, right, size, _GAP, least):
        points += [
            p for p in zip(chain.left, chain.right, strict=True) if p[0] > points[-1][0] and p[1] > points[-1][1]
        ]
    points.append((len(left), len(right)))
    for before, after in pairwise(points):
        if (after[0] - before[0]) * (after[1] - before[1]) <= _MOST_CELLS:
            yield before, after
        elif level + 1 < len(_SEEDS):
            parts = _list_gaps(left[before[0] : after[0]], right[before[1] : after[1]], level + 1)
            for low, high in parts:
                yield (before[0] + low[0], before[1] + low[1]), (before[0] + high[0], before[1] + high[1])


def _align(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    if not left or not right:
        return []
    similar = _compare(left, right)
    scores = 2 * similar - 1
    steps = np.empty((len(left), len(right)), np.uint8)  # 0: both, 1: left alone, 2: right alone
    spaces = _SPACE * np.arange(len(right) + 1, dtype=np.float32)
    row = spaces.copy()
    for i in range(len(left)):
        both = row[:-1] + scores[i]
        alone = row[1:] + _SPACE
        best = np.concatenate([[row[0] + _SPACE], np.maximum(both, alone)]).astype(np.float32)
        through = np.maximum.accumulate(best - spaces) + spaces
        steps[i] = np.where(through[1:] > best[1:] + 1e-4, 2, np.where(both >= alone, 0, 1))
        row = through
    pairs = []
    i, j = len(left) - 1, len(right) - 1
    while i >= 0 and j >= 0:
        step = steps[i, j]
        if step == 0 and similar[i, j] >= _ALIKE:
            pairs.append((i, j))
        i, j = i - (step != 2), j - (step != 1)
    return pairs[::-1]


def _compare(left: Sequence[str], right: Sequence[str]) -> Floats:
    """(left, right) similarity of each two words: Dice's coefficient of their pairs of letters, 0 to 1."""
    pairs: dict[str, int] = {}
    tables = []
    for texts in (left, right):
        kinds = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows = [[pairs.setdefault(pair, len(pairs)) for pair in _list_pairs(text)] for text in kinds]
        tables.append((rows, np.array([kinds[text] for text in texts])))
    matrices = []
    for rows, _ in tables:
        matrix = np.zeros((len(rows), len(pairs)), np.float32)
        for row, columns in enumerate(rows):
            matrix[row, columns] = 1
        matrices.append(matrix)
    sizes = [matrix.sum(axis=1) for matrix in matrices]
    alike = 2 * matrices[0] @ matrices[1].T / (sizes[0][:, None] + sizes[1][None, :])
    result: Floats = alike[np.ix_(tables[0][1], tables[1][1])]
    return result


def _list_pairs(text: str) -> set[str]:
    framed = f"<{text}>"
    return {framed[i : i + 2] for i in range(len(framed) - 1)}


_LANGUAGE = "eng"  # of a document that does not say its own
_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")


def spell_out(word: str, language: str = _LANGUAGE) -> list[str]:
    """The word as it sounds, without case, accents and punctuation: none, one, or several.

    language: ISO 639-1 or 639-3, of the numbers in it; digits stay digits where it is not known how they are said.

    >>> spell_out("Twenty-one,"), spell_out("$21"), spell_out("(...)"), spell_out("don’t")
    (['twenty', 'one'], ['twenty', 'one'], [], ['dont'])
    >>> spell_out("21", "deu")
    ['einundzwanzig']
    """
    plain = _NUMBER.sub(lambda match: f" {' '.join(spell_numbers(match[0], language) or (match[0],))} ", word)
    folded = "".join(c for c in unicodedata.normalize("NFKD", plain.casefold()) if not unicodedata.combining(c))
    parts = re.split(r"[\s\-_+\u2013\u2014]+", folded)
    return [text for part in parts if (text := "".join(c for c in part if c.isalnum()))]
