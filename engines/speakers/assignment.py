"""Who says which word: words that were heard, and turns of speakers, to utterances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from prefork.engines.alignment.word_lengths import give_lengths
from prefork.engines.base import HostEngine, Job, Segment
from prefork.engines.errors import LoadError
from prefork.engines.text.document import Document, Turn, Word
from prefork.engines.text.utterances import LONGEST, MOST_WORDS, PAUSE, compose_utterances

REACH = 2.0  # seconds up to which a word outside all turns belongs to the nearest
_SAME = 1e-6  # seconds; what differs by less is the same to sums of floats


class SpeakerAssigner(HostEngine):
    """Makes the transcript of `heard` and `turns`. It has no model."""

    name = "assign"
    memory_stage = "speaker_alignment"

    def __init__(self, pause: float = PAUSE, reach: float = REACH) -> None:
        """pause: seconds of silence that end an utterance. reach: seconds up to which a word outside all turns belongs
        to the nearest. Raises LoadError."""
        if not pause > 0:
            raise LoadError(f"assign: pause must be a number of seconds above 0, not {pause:g}")
        if not reach >= 0:
            raise LoadError(f"assign: reach must be a number of seconds from 0, not {reach:g}")
        self.pause = pause
        self.reach = reach

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:  # noqa: ARG002
        """The document with utterances instead of those it had; `heard` and `turns` stay."""
        speakers = assign_speakers(document.heard, document.turns, self.reach)
        utterances = compose_utterances(document.heard, speakers, pause=self.pause)
        return replace(document, utterances=tuple(give_lengths(utterances, document.seconds or 0.0)))

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "pause": self.pause,
            "reach": self.reach,
            "longest": [LONGEST, MOST_WORDS],
        }


def assign_speakers(words: Sequence[Word], turns: Sequence[Turn], reach: float = REACH) -> list[str | None]:
    """For each word the speaker whose turns overlap it most, of several the one who began before the others; else the
    one whose turn is nearest, within `reach` seconds; else None. A word without a time goes with the one before it.

    Takes memory and time as words plus turns, times the number of speakers for the time.
    """
    speakers = list(dict.fromkeys(turn.speaker for turn in sorted(turns, key=lambda turn: turn.start)))
    timed = [index for index, word in enumerate(words) if word.start is not None and word.end is not None]
    if not speakers or not timed:
        only = speakers[0] if len(speakers) == 1 else None
        return [only] * len(words)
    edges = torch.tensor([[words[index].start, words[index].end] for index in timed], dtype=torch.float64)
    starts = edges[:, 0].contiguous()
    ends = torch.maximum(starts, edges[:, 1])
    best = _Match.of_nobody(len(timed))
    for number, speaker in enumerate(speakers):
        best = best.improve(number, _Match.measure(_merge(turns, speaker), starts, ends))
    chosen = torch.where((best.overlap > _SAME) | (best.distance <= reach), best.speaker, -1)
    found: list[str | None] = [None] * len(words)
    for index, number in zip(timed, chosen.tolist(), strict=True):
        found[index] = speakers[number] if number >= 0 else None
    return _fill(found, timed)


@dataclass(frozen=True, slots=True)
class _Match:
    """How words lie to one speaker's turns, or to those of the best so far; all (words,).

    overlap: seconds. distance: seconds to the nearest turn, 0 within one. begun: seconds at which the turn at the word
    began. speaker: number.
    """

    overlap: torch.Tensor
    distance: torch.Tensor
    begun: torch.Tensor
    speaker: torch.Tensor

    @classmethod
    def of_nobody(cls, count: int) -> _Match:
        infinite = torch.full((count,), torch.inf, dtype=torch.float64)
        return cls(torch.zeros(count, dtype=torch.float64), infinite, infinite, torch.full((count,), -1))

    @classmethod
    def measure(cls, intervals: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> _Match:
        """intervals: (turns, 2) seconds, in order and apart. starts, ends: (words,) seconds."""
        first, last = intervals[:, 0].contiguous(), intervals[:, 1].contiguous()
        before = torch.cat([torch.zeros(1, dtype=torch.float64), (last - first).cumsum(0)])

        def cover(times: torch.Tensor) -> torch.Tensor:
            """Seconds of speech up to a time."""
            index = torch.searchsorted(first, times, right=True)
            held = (index - 1).clamp(min=0)
            within = torch.minimum(times, last[held]) - first[held]
            return torch.where(index > 0, before[held] + within, 0.0)

        following = torch.searchsorted(first, ends, right=True)
        inf = torch.tensor([torch.inf], dtype=torch.float64)
        to_next = (torch.cat([first, inf])[following] - ends).clamp(min=0)
        to_last = (starts - torch.cat([-inf, last])[following]).clamp(min=0)
        begun = torch.cat([inf, first])[following]
        return cls(cover(ends) - cover(starts), torch.minimum(to_next, to_last), begun, following)

    def improve(self, speaker: int, other: _Match) -> _Match:
        more = other.overlap > self.overlap + _SAME
        same = (other.overlap - self.overlap).abs() <= _SAME
        outside = torch.maximum(self.overlap, other.overlap) <= _SAME
        nearer = outside & (other.distance < self.distance - _SAME)
        as_near = ~outside | ((other.distance - self.distance).abs() <= _SAME)
        better = more | (same & (nearer | (as_near & (other.begun < self.begun))))
        return _Match(
            torch.where(better, other.overlap, self.overlap),
            torch.where(better, other.distance, self.distance),
            torch.where(better, other.begun, self.begun),
            torch.where(better, speaker, self.speaker),
        )


def _merge(turns: Sequence[Turn], speaker: str) -> torch.Tensor:
    """(stretches, 2) seconds: where a speaker talks, in order and apart."""
    merged: list[list[float]] = []
    for start, end in sorted((turn.start, max(turn.start, turn.end)) for turn in turns if turn.speaker == speaker):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return torch.tensor(merged, dtype=torch.float64)


def _fill(found: Sequence[str | None], timed: Sequence[int]) -> list[str | None]:
    """Words without a time go with the one before them, the first ones with the first that has a time."""
    filled = list(found)
    known, last = set(timed), found[timed[0]]
    for index in range(len(filled)):
        if index in known:
            last = filled[index]
        else:
            filled[index] = last
    return filled
