"""Which stretch of the recording each utterance is looked for in, and which utterances are aligned together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefork.engines.text.document import Utterance

MARGIN = 0.5  # seconds that a window reaches beyond its utterances' times, which people set by hand
_GRID = 10  # edges of windows in a second; each is a frame of every model
OVERLAP = 0.1  # seconds by which neighbours' times may overlap and still be taken as following one another
_COMFORT = 2.0  # times as long as the fewest frames that can hold the words, before a stretch is not cramped


@dataclass(frozen=True, slots=True)
class AlignmentWindow:
    """Utterances, by their index, that are aligned together within [start, end] seconds. timed: all of them had
    times of their own."""

    start: float
    end: float
    utterances: tuple[int, ...]
    timed: bool = True


def plan_windows(
    utterances: Sequence[Utterance], least: Sequence[float], seconds: float, max_segment: float
) -> tuple[list[AlignmentWindow], list[str]]:
    """Windows for all utterances that have words and may be there, and what is wrong with the times in the transcript.

    least: the seconds that each utterance's words need at the very least; a timed utterance without them gets a window
    of its own. seconds: length of the recording. Timed utterances that follow one another share a window of at most
    max_segment seconds. Untimed ones share what lies between their timed neighbours, or, where that is too short for
    their words, a window with these neighbours. What lies outside the recording gets no window.
    """
    blocks, warnings = _list_blocks(utterances, seconds)
    blocks = _join_cramped(blocks, least)
    windows: list[AlignmentWindow] = []
    for block in blocks:
        last = windows[-1] if windows else None
        dense = any(_is_dense(window, least) for window in (last, block) if window)
        if last and not dense and _follows(last, block) and block.end - last.start <= max_segment:
            windows[-1] = replace(last, end=max(last.end, block.end), utterances=last.utterances + block.utterances)
        else:
            windows.append(block)
    return [_place(window, *widen(window.start, window.end, seconds)) for window in windows], warnings


def _list_blocks(utterances: Sequence[Utterance], seconds: float) -> tuple[list[AlignmentWindow], list[str]]:
    """A window for each timed utterance, and one for each run of untimed ones between them."""
    blocks: list[AlignmentWindow] = []
    warnings: list[str] = []
    untimed: list[int] = []
    reached = 0.0  # seconds up to which the timed utterances so far go
    for index, utterance in enumerate(utterances):
        if not utterance.words or utterance.missing:
            continue
        start, end, problem = _check_times(utterance, seconds)
        if problem:
            warnings.append(f"utterance {index + 1} ({utterance.text[:40].strip()}): {problem}")
        if start is not None and end is not None:
            if untimed:
                blocks.append(AlignmentWindow(reached, max(reached, start), tuple(untimed), timed=False))
                untimed = []
            blocks.append(AlignmentWindow(start, end, (index,)))
            reached = max(reached, end)
        elif start is None:
            untimed.append(index)
    if untimed:
        blocks.append(AlignmentWindow(reached, max(reached, seconds), tuple(untimed), timed=False))
    return blocks, warnings


def _check_times(utterance: Utterance, seconds: float) -> tuple[float | None, float | None, str]:
    """The utterance's times if they can be used: both None if it is to be looked for, the end alone None if it lies
    outside the recording; and what is wrong with them."""
    start, end = utterance.start, utterance.end
    if start is None or end is None:
        return None, None, ""
    if end <= start:
        return (
            None,
            None,
            f"its times are reversed ({start:.3f} to {end:.3f} s); it was searched for between its neighbours",
        )
    if start >= seconds:
        return (
            start,
            None,
            f"it begins at {start:.3f} s, but the recording ends at {seconds:.3f} s; its words have no times",
        )
    if end > seconds + MARGIN:
        return start, seconds, f"it ends at {end:.3f} s, but the recording ends at {seconds:.3f} s"
    return start, min(end, seconds), ""


def _join_cramped(blocks: Sequence[AlignmentWindow], least: Sequence[float]) -> list[AlignmentWindow]:
    """Runs of untimed utterances that do not fit between their neighbours are aligned together with these."""
    joined: list[AlignmentWindow] = []
    pending = False  # the last one wants its right neighbour too
    for block in blocks:
        cramped = not block.timed and block.end - block.start < _COMFORT * _sum_least(block, least)
        if joined and (cramped or pending):
            last = joined.pop()
            start, end = min(last.start, block.start), max(last.end, block.end)
            block = AlignmentWindow(start, end, last.utterances + block.utterances, timed=False)  # noqa: PLW2901
        joined.append(block)
        pending = cramped
    return joined


def _sum_least(block: AlignmentWindow, least: Sequence[float]) -> float:
    return sum(least[index] for index in block.utterances)


def _is_dense(block: AlignmentWindow, least: Sequence[float]) -> bool:
    """Whether the words do not fit even with the margins: those of its neighbours would be squeezed too."""
    return block.end - block.start + 2 * MARGIN < _sum_least(block, least)


def _follows(last: AlignmentWindow, block: AlignmentWindow) -> bool:
    return last.timed and block.timed and block.start >= last.end - OVERLAP


def _place(window: AlignmentWindow, start: float, end: float) -> AlignmentWindow:
    return replace(window, start=start, end=end)


def widen(start: float, end: float, seconds: float) -> tuple[float, float]:
    """A window's edges around times: with margins, on the grid. seconds: length of the recording."""
    first, last = math.floor((start - MARGIN) * _GRID + 1e-6), math.ceil((end + MARGIN) * _GRID - 1e-6)
    return max(0.0, first / _GRID), min(seconds, last / _GRID)
