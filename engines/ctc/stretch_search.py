"""The words of a stretch in a segment's emission: where they fit best, and once more around what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from prefork.engines.alignment.confidence import rate
from prefork.engines.alignment.forced_aligner import Stretch
from prefork.engines.alignment.recovery import LOW, is_wide
from prefork.engines.alignment.viterbi import Clock, Vocabulary, align_words, count_frames_needed
from prefork.engines.alignment.windows import widen
from prefork.engines.ctc.places import find_places, list_columns, score, to_log_probs
from prefork.engines.text.document import Word

REACH = 0.5  # seconds beyond a stretch in which its words may turn out to be
_ROUNDS = 4  # of searches around what was found


@dataclass(frozen=True, slots=True)
class StretchSearch:
    """log_probs: (frames, vocabulary) of the segment. origin: frames of the recording before it. low: mean score of
    words below which these are doubtful. measure: makes exact times of those of the letters, if the model can."""

    stretch: Stretch
    log_probs: torch.Tensor
    origin: int
    vocabulary: Vocabulary
    clock: Clock
    low: float
    measure: Callable[[Sequence[Word]], list[Word]] | None = None

    def align(self) -> list[Word] | None:
        """The stretch's words with their times; None if they do not fit into it.

        Each line's are looked for once more around the times that came out, until these stay: then they come out of
        themselves too.
        """
        stretch = self.stretch
        found = self._fit(stretch.words, stretch.start, stretch.end)
        if found is None:
            return None
        if not stretch.timed or len(stretch.lines) > 1:
            return self._align_apart(found)
        line = stretch.lines[0]
        if is_wide(line.words, line.start, line.end) or (rate(found) or 0.0) < self.low:
            found = self._look_within(found)
        return self._settle(found)

    def _align_apart(self, found: Sequence[Word]) -> list[Word]:
        """Each line around where all of them together were found."""
        apart: list[Word] = []
        for line in self.stretch.lines:
            words = list(found[len(apart) : len(apart) + len(line.words)])
            begin, last = _span(words)
            start, end = widen(begin, last, self.stretch.limit)
            placed = replace(line, start=begin, end=last)
            stretch = replace(self.stretch, start=start, end=end, lines=(placed,), timed=True)
            apart += replace(self, stretch=stretch).align() or words
        return apart

    def _settle(self, found: list[Word]) -> list[Word]:
        stretch = self.stretch
        searched = stretch.start, stretch.end
        measured = self._measure(found)
        for _ in range(_ROUNDS):
            start, end = widen(*_span(measured), stretch.limit)
            around = max(start, stretch.start - REACH), min(end, stretch.end + REACH)
            if around == searched:
                break
            searched = around
            found = self._fit(stretch.words, *around) or found
            measured = self._measure(found)
        return measured

    def _measure(self, found: list[Word]) -> list[Word]:
        return found if self.measure is None else self.measure(found)

    def _look_within(self, found: list[Word]) -> list[Word]:
        """The words at the one place within the stretch where they are said, if that is surer than where they were
        found: where there is much other speech, a forced path smears them over it."""
        words = self.stretch.words
        columns = list_columns(words, self.vocabulary)
        if not columns:
            return found
        first, rows = self._select(self.stretch.start, self.stretch.end)
        scores = to_log_probs(score(rows.cpu(), self.vocabulary, columns).T)
        place = find_places(scores, {0: words}, self.vocabulary, columns, self.clock.frame).get(0)
        if place is None or place[2] < LOW:
            return found
        start, end = (first + place[0]) * self.clock.frame, (first + place[1] + 1) * self.clock.frame
        inside = self._fit(words, *widen(start, end, self.stretch.limit))
        return inside if inside and (rate(inside) or 0.0) > (rate(found) or 0.0) else found

    def _fit(self, words: Sequence[str], start: float, end: float) -> list[Word] | None:
        """The words between two seconds of the recording; None if there are too few frames for them."""
        first, rows = self._select(start, end)
        if len(rows) < count_frames_needed(words, self.vocabulary):
            return None
        limit = self.stretch.limit
        # The margins hold words of the neighbours. Without wildcards for these, first and last words are drawn to them
        # by up to 1.2 s (40 sentences of the benchmark in one file, times off by 0.1 to 0.5 s); with, 0.4 s.
        edges = {"before": start > 0, "after": end < limit}
        return align_words(rows, words, self.vocabulary, self.clock, first * self.clock.frame, min(end, limit), **edges)

    def _select(self, start: float, end: float) -> tuple[int, torch.Tensor]:
        """The emission between two seconds of the recording, and its first frame there."""
        first = max(self.origin, math.floor(start / self.clock.frame + 1e-6))
        last = math.ceil(end / self.clock.frame - 1e-6)
        return first, self.log_probs[first - self.origin : last - self.origin]


def _span(words: Sequence[Word]) -> tuple[float, float]:
    start, end = words[0].start, words[-1].end
    assert start is not None and end is not None
    return start, end
