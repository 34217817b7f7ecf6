"""A transcript of hours against the emissions of hours, where either may lack stretches of the other.

The path is that of CTC segmentation (Kürzinger et al. 2020, https://arxiv.org/abs/2007.09127): a state for each
character, which stays while the model emits it or nothing. What is new here: scores are relative to the best that the
model could emit in that frame, so that what they cost is evidence against the text; speech that the transcript lacks
goes into a state between units, at a price for entering it; and a unit that nobody says is skipped at a price for each
of its characters. Anchors keep the search to a corridor, so that its time grows with the length, not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from prefork.engines.alignment.anchors import Chain, Integers, find_anchors

Scores = np.ndarray[Any, np.dtype[np.floating[Any]]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

QUIET, LOUD = 0, 1  # columns of the scores: neither character nor noise; the best of all characters
FIRST = 2  # the column of the first character

# Chosen on the 20 recordings of tests/benchmarks/recovery.py, which are therefore no independent test of them. Found of
# the 200 utterances that are there, and of 600 that are on another recording, all else as here: SKIP 1.5: 194 and 0;
# 2: 199 and 2; 2.5: 200 and 5; 3: 200 and 14. Of those found, half cost less than 0.4 nats a character, 95 % 1.4.
SKIP = 2.0  # nats for each character of a unit that is left out
ENTER = 12.0  # nats for speech that is in no unit; from 4 to 16 the same are found, and 3 to 1 of the 600
LINGER = 0.01  # nats for each frame within a unit that brings no new character; with 0, ends are off by 0.7 s
FLOOR = -6.0  # the least that a frame counts: one wrong frame of a weak model is no proof
MOST_CELLS = 300_000_000  # frames times characters between two anchors; 4 s of search
MOST_TABLE = 1_000_000_000  # of these, in one search; a bit each
_SEEDS = ((5, 16.0), (4, 13.0))  # characters of an n-gram, and of a chain that is trusted
_GAP = 80  # characters between two seeds of a chain


@dataclass(frozen=True, slots=True)
class UnitSpan:
    """Where a unit is. first, last: its first and last frame, both inclusive. cost: nats by which its frames are worse
    than the best path over the same frames."""

    first: int
    last: int
    cost: float


@dataclass(frozen=True, slots=True)
class _Rectangle:
    """Units [low, high) that are looked for in frames [start, end)."""

    start: int
    end: int
    low: int
    high: int


def find_units(scores: Scores, units: Sequence[Sequence[int]]) -> list[UnitSpan | None]:
    """Where each unit is in the emissions; None if it is not there.

    scores: (frames, columns) log-probabilities less the frame's largest one; the columns are QUIET, LOUD and the
    characters. units: each the columns of its characters, a few words long and with one character at least; LOUD stands
    for a word that cannot be spelled. Memory: beside the scores, which may be in half precision, MOST_TABLE bits.
    """
    found: list[UnitSpan | None] = [None] * len(units)
    lengths = np.array([len(unit) for unit in units])
    for corridor in _plan_corridors(scores, units, lengths):
        low, high = corridor[0].low, max(rectangle.high for rectangle in corridor)
        start = corridor[0].start
        shifted = [_Rectangle(r.start - start, r.end - start, r.low - low, r.high - low) for r in corridor]
        for index, span in enumerate(_search(scores[start : corridor[-1].end], units[low:high], shifted)):
            if span is not None and found[low + index] is None:
                found[low + index] = UnitSpan(span.first + start, span.last + start, span.cost)
    return found


def _plan_corridors(scores: Scores, units: Sequence[Sequence[int]], lengths: Integers) -> Iterator[list[_Rectangle]]:
    """Corridors of rectangles, each of which begins where the one before ends. Between two corridors nothing is looked
    for: too much text for too much speech, and not a few letters of it in common."""
    if not units or not len(scores):
        return
    owners = np.repeat(np.arange(len(units)), lengths)
    text, places = _drop_repeats(np.concatenate([np.asarray(unit) for unit in units]))
    owners = owners[places]
    heard, frames = _decode(scores)
    points = [(0, 0), *_list_points(text, heard, owners, frames, 0), (len(scores), len(units) - 1)]
    corridor: list[_Rectangle] = []
    size = 0
    for (start, low), (end, high) in _divide(points, text, heard, owners, frames, lengths):
        rectangle = _Rectangle(start, end, max(0, low - 1), min(len(units), high + 2))
        if start == end:
            continue
        cells = _count_cells(rectangle, lengths)
        if corridor and (cells > MOST_CELLS or size + cells > MOST_TABLE):
            yield corridor
            corridor, size = [], 0
        if cells <= MOST_CELLS:
            corridor.append(rectangle)
            size += cells
    if corridor:
        yield corridor


def _divide(
    points: Sequence[tuple[int, int]],
    text: Integers,
    heard: Integers,
    owners: Integers,
    frames: Integers,
    lengths: Integers,
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Successive points; where they are too far apart for one search, with what shorter n-grams find between them."""
    for before, after in pairwise(points):
        if _count_cells(_Rectangle(before[0], after[0], before[1], after[1] + 1), lengths) <= MOST_CELLS:
            yield before, after
            continue
        left = slice(*np.searchsorted(owners, (before[1], after[1] + 1)))
        right = slice(*np.searchsorted(frames, (before[0], after[0])))
        more = _list_points(text[left], heard[right], owners[left], frames[right], 1)
        yield from pairwise([before, *more, after])


def _count_cells(rectangle: _Rectangle, lengths: Integers) -> int:
    return (rectangle.end - rectangle.start) * int(lengths[rectangle.low : rectangle.high].sum())


def _list_points(
    text: Integers, heard: Integers, owners: Integers, frames: Integers, level: int
) -> list[tuple[int, int]]:
    """Frames and the units they are in, both rising."""
    size, least = _SEEDS[level]
    chains: list[Chain] = find_anchors(text, heard, size, _GAP, least)
    return [
        (int(frames[right]), int(owners[left]))
        for chain in chains
        for left, right in zip(chain.left, chain.right, strict=True)
    ]


def _decode(scores: Scores) -> tuple[Integers, Integers]:
    """The characters that the model hears, and the frame of each; runs of one character, broken or not, are one."""
    best = scores[:, FIRST:].argmax(axis=1) + FIRST if scores.shape[1] > FIRST else np.zeros(len(scores), np.int64)
    frames = np.flatnonzero((scores[:, QUIET] < 0) & (scores[np.arange(len(scores)), best] == 0))
    characters, places = _drop_repeats(best[frames])
    return characters, frames[places]


def _drop_repeats(values: Integers) -> tuple[Integers, Integers]:
    """The values without those that repeat the one before, and their places."""
    places = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
    return values[places], places


def _search(scores: Scores, units: Sequence[Sequence[int]], corridor: Sequence[_Rectangle]) -> list[UnitSpan | None]:
    """The best path through a corridor, by dynamic programming over its frames."""
    table = _Table(units)
    traces = []
    for rectangle in corridor:
        traces.append(table.run(rectangle, scores[rectangle.start : rectangle.end].astype(np.float32)))
    return _trace_back(table, corridor, traces, scores)


_FROM_UNIT, _FROM_QUIET, _FROM_SPEECH, _FROM_SKIP = range(4)  # how a boundary is reached
_HOW = 3  # mask of these
_STAYED = 4  # flag: the speech before it goes on


class _Table:
    """The scores of all states after the frames so far. Token k is the kth character of all units; boundary u lies
    before unit u, the last one behind the last unit."""

    def __init__(self, units: Sequence[Sequence[int]]) -> None:
        self.columns = np.concatenate([np.asarray(unit, np.int64) for unit in units])
        self.firsts = np.concatenate([[0], np.cumsum([len(unit) for unit in units])])
        known = [sum(column >= FIRST for column in unit) for unit in units]
        self.prices = SKIP * np.concatenate([[0], np.cumsum(known)]).astype(np.float32)  # of skipping all before it
        self.tokens = np.full(len(self.columns), -np.inf, np.float32)
        self.speech = np.full(len(self.firsts), -np.inf, np.float32)
        self.boundaries = (-self.prices).astype(np.float32)

    def run(self, rectangle: _Rectangle, scores: Scores) -> tuple[Bytes, Bytes]:
        """Goes through the rectangle's frames. Returns, for each of them, a bit for each token (it came from the one
        before it) and a byte for each boundary."""
        low, high = rectangle.low, rectangle.high
        first, last = int(self.firsts[low]), int(self.firsts[high])
        columns, heads = self.columns[first:last], self.firsts[low:high] - first
        ends = self.firsts[low + 1 : high + 1] - first - 1
        prices = self.prices[low : high + 1] - self.prices[low]
        tokens, speech = self.tokens[first:last].copy(), self.speech[low : high + 1].copy()
        boundaries = self.boundaries[low : high + 1].copy()
        moved_bits = np.empty((len(scores), (last - first + 7) // 8), np.uint8)
        reached = np.empty((len(scores), high - low + 1), np.uint8)
        entered = np.empty_like(tokens)
        choices = np.empty((4, high - low + 1), np.float32)
        for frame, row in enumerate(scores):
            emitted = row[columns]
            entered[1:] = tokens[:-1]
            entered[heads] = boundaries[:-1]
            entered += emitted
            tokens += np.maximum(emitted, row[QUIET]) - LINGER
            moved = entered > tokens
            np.maximum(entered, tokens, out=tokens)
            opened = boundaries - ENTER
            stayed = speech >= opened
            np.maximum(speech, opened, out=speech)
            choices[_FROM_UNIT, 0] = -np.inf
            choices[_FROM_UNIT, 1:] = tokens[ends]
            choices[_FROM_QUIET] = boundaries + row[QUIET]
            choices[_FROM_SPEECH] = speech
            how = choices[:3].argmax(axis=0).astype(np.uint8)
            straight = choices[:3].max(axis=0) + prices
            through = np.maximum.accumulate(straight)
            how[through > straight] = _FROM_SKIP
            boundaries = through - prices
            moved_bits[frame] = np.packbits(moved)
            reached[frame] = how | (stayed * np.uint8(_STAYED))
        self.tokens[:] = self.speech[:] = self.boundaries[:] = -np.inf
        top = boundaries.max()
        self.tokens[first:last], self.speech[low : high + 1] = tokens - top, speech - top
        self.boundaries[low : high + 1] = boundaries - top
        return moved_bits, reached


def _trace_back(
    table: _Table, corridor: Sequence[_Rectangle], traces: Sequence[tuple[Bytes, Bytes]], scores: Scores
) -> list[UnitSpan | None]:
    found: list[UnitSpan | None] = [None] * (len(table.firsts) - 1)
    # Where the path is: in token `token` of `unit`; or, if that is negative, at boundary `unit` or in speech before it.
    unit, token, speech, last, cost = corridor[-1].high, -1, False, 0, 0.0
    for rectangle, (moved, reached) in zip(reversed(corridor), reversed(traces), strict=True):
        low, origin = rectangle.low, int(table.firsts[rectangle.low])
        for frame in range(rectangle.end - rectangle.start - 1, -1, -1):
            now = rectangle.start + frame
            if token < 0 and not speech:
                while (how := reached[frame, unit - low] & _HOW) == _FROM_SKIP:
                    unit -= 1
                if how == _FROM_QUIET:
                    continue
                speech = bool(how == _FROM_SPEECH)
                if not speech:
                    unit -= 1
                    token, last, cost = int(table.firsts[unit + 1]) - 1, now, 0.0
            if speech:
                speech = bool(reached[frame, unit - low] & _STAYED)
                continue
            emitted, place = float(scores[now, table.columns[token]]), token - origin
            if not moved[frame, place >> 3] & (128 >> (place & 7)):
                cost -= max(emitted, float(scores[now, QUIET]))
                continue
            cost -= emitted
            token -= 1
            if token < table.firsts[unit]:
                found[unit], token = UnitSpan(now, last, cost), -1
    return found
