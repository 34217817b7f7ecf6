"""Utterances without times: which they are, where in the recording they may be, and what is said of those found and
of those not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from prefork.engines.text.document import Document, RecoveryCounts, Utterance

_MARGIN = 0.5  # seconds that timed neighbours, whose times people set by hand, may be off
# Times as long as its words usually take, and seconds beyond that, from which an utterance is roomy. Of 52 words of
# ../shared/data/speech in bullets 4 s too wide at both ends (8 s; 30 s), 51 (51; 51) are within 0.1 s of where they are
# in the right ones; with (4, 4) 48 (51; 51), without the search 45 (28; 9).
_ROOMY = (3.0, 2.0)
_USUAL = (0.4, 0.06)  # seconds that a word, and a character, usually takes
LOW = 0.2  # a confidence below which a place is doubtful: 4 of 199 that were rightly found have less


@dataclass(frozen=True, slots=True)
class FoundPlace:
    """Where an utterance was found. start, end: seconds. confidence: 0 to 1."""

    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class SearchRegion:
    """A run of utterances to be found in [start, end] seconds. utterances: their indices, in order. wanted: those of
    them that have no times; the others are timed neighbours, which are there to be told from them."""

    start: float
    end: float
    utterances: tuple[int, ...]
    wanted: tuple[int, ...]


def is_timed(utterance: Utterance) -> bool:
    """Whether it has times that can be used; reversed ones cannot."""
    return utterance.start is not None and utterance.end is not None and utterance.start < utterance.end


def is_roomy(utterance: Utterance) -> bool:
    """Whether its times are much further apart than its words usually take, so that they say little of where it is."""
    if not (utterance.words and is_timed(utterance)):
        return False
    assert utterance.start is not None and utterance.end is not None
    return is_wide([word.text for word in utterance.words], utterance.start, utterance.end)


def is_wide(words: Sequence[str], start: float, end: float) -> bool:
    """Whether these times are much further apart than the words usually take."""
    usual = max(_USUAL[0] * len(words), _USUAL[1] * sum(map(len, words)))
    return end - start > _ROOMY[0] * usual + _ROOMY[1]


def plan_roomy_regions(utterances: Sequence[Utterance], seconds: float) -> list[SearchRegion]:
    """A region for each roomy utterance; one for several of which each begins within the one before it. seconds:
    length of the recording."""
    regions: list[SearchRegion] = []
    for index, utterance in enumerate(utterances):
        if not is_roomy(utterance):
            continue
        assert utterance.start is not None and utterance.end is not None
        start, end = max(0.0, utterance.start - _MARGIN), min(seconds, utterance.end + _MARGIN)
        last = regions[-1] if regions else None
        if last and last.utterances[-1] == index - 1 and last.start <= start < last.end - 2 * _MARGIN:
            run = (*last.utterances, index)
            regions[-1] = SearchRegion(last.start, max(last.end, end), run, run)
        elif start < end:
            regions.append(SearchRegion(start, end, (index,), (index,)))
    return regions


def plan_regions(utterances: Sequence[Utterance], least: Sequence[float], seconds: float) -> list[SearchRegion]:
    """A region for each run of utterances without times, none if all have them.

    least: seconds that each utterance's words need. seconds: length of the recording. Where there is hardly room
    between the timed neighbours, these belong to the region.
    """
    regions: list[SearchRegion] = []
    run: list[int] = []
    last: int | None = None  # the timed utterance before the run
    reached = 0.0
    for index, utterance in enumerate(utterances):
        if not utterance.words or utterance.missing:
            continue
        if not is_timed(utterance):
            run.append(index)
            continue
        if run:
            regions.append(_make_region(utterances, least, seconds, run, last, index, reached))
            run = []
        assert utterance.end is not None
        last, reached = index, max(reached, utterance.end)
    if run:
        regions.append(_make_region(utterances, least, seconds, run, last, None, reached))
    return regions


def _make_region(
    utterances: Sequence[Utterance],
    least: Sequence[float],
    seconds: float,
    run: Sequence[int],
    last: int | None,
    following: int | None,
    reached: float,
) -> SearchRegion:
    limit = seconds if following is None else utterances[following].start
    assert limit is not None
    start, end = reached, min(limit, seconds)
    indices = tuple(run)
    if end - start < 2 * sum(least[index] for index in run) and (last, following) != (None, None):
        neighbours = [utterances[index] for index in (last, following) if index is not None]
        start = min([start, *(u.start for u in neighbours if u.start is not None)])
        end = max([end, *(u.end for u in neighbours if u.end is not None)])
        indices = (*([] if last is None else [last]), *run, *([] if following is None else [following]))
    start = max(0.0, min(start, seconds) - _MARGIN)
    return SearchRegion(start, max(start, min(seconds, end + _MARGIN)), indices, tuple(run))


def give_times(document: Document, found: Mapping[int, FoundPlace | None], seconds: float) -> Document:
    """The document with the places of the utterances that were looked for. Those without one are missing, unless they
    are roomy, which keep their times if they are not found for certain.

    found: for the index of each of them, its place or None; empty if all have times. seconds: length of the recording.
    """
    utterances = list(document.utterances)
    untimed = {index: place for index, place in found.items() if not is_roomy(utterances[index])}
    timed = sum(bool(u.words) and is_timed(u) and index not in untimed for index, u in enumerate(utterances))
    ends = [u.end if u.end is not None and is_timed(u) and not is_roomy(u) else 0.0 for u in utterances]
    reached = list(accumulate(ends, max, initial=0.0))  # by the timed utterances before each
    warnings = []
    for index, place in found.items():
        utterance = utterances[index]
        what = f"utterance {index + 1} ({utterance.text[:40].strip()})"
        if index not in untimed:
            if place is None or place.confidence < LOW:
                warnings.append(f"{what}: its times are much wider than its words, which were not found within them")
            else:
                utterances[index] = replace(utterance, start=round(place.start, 3), end=round(place.end, 3))
            continue
        if utterance.start is not None and utterance.end is not None:
            warnings.append(f"{what}: its times are reversed ({utterance.start:.3f} to {utterance.end:.3f} s)")
        if place is None:
            utterances[index] = replace(utterance, start=None, end=None, missing=True)
            warnings.append(f"{what}: not found in the recording; it has no times")
            continue
        # Within the margin: the next stage is not to take it for an overlap that the transcript states.
        begin = reached[index] if place.start < reached[index] < place.end else place.start
        utterances[index] = replace(utterance, start=round(begin, 3), end=round(place.end, 3), missing=False)
        if place.confidence < LOW:
            warnings.append(f"{what}: found with low confidence ({place.confidence:.2f}); check its times")
    missing = sum(place is None for place in untimed.values())
    if missing * 2 > len(untimed) and len(untimed) > 1:
        warnings.append(
            f"{missing} of {len(untimed)} utterances were not found in the recording; "
            "check that the transcript is of this recording"
        )
    return replace(
        document,
        utterances=tuple(utterances),
        seconds=seconds,
        warnings=(*document.warnings, *warnings),
        recovery=RecoveryCounts(timed, len(untimed) - missing, missing),
    )
