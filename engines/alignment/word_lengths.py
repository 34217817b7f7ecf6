"""Every word lasts: one whose time came out as a point, or as less than a frame, gets one from its neighbours.

Pure functions of words in order. Aligners lose words where more of them are said than there are frames, Whisper's
attention where it looks at one frame for two words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from prefork.engines.text.document import Character, Timing, Utterance, Word

SHORTEST = 20  # milliseconds: a frame of the models here


def give_lengths(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """The same utterances, their words lasting a frame at least, as far as there is room: within an utterance and the
    pauses around it. Those whose words share its time evenly stay: no neighbour has anything to give. seconds: length
    of the recording."""
    result = list(utterances)
    for index, utterance in enumerate(utterances):
        shared = all(word.timing is Timing.INTERPOLATED for word in utterance.words)
        if utterance.start is None or utterance.end is None or shared or not any(map(_is_short, utterance.words)):
            continue
        ends = [u.end for u in result[:index][-1:] if u.end is not None and u.end <= utterance.start]
        begins = [u.start for u in utterances[index + 1 :][:1] if u.start is not None and u.start >= utterance.end]
        low, high = max([0.0, *ends]), min([max(seconds, utterance.end), *begins])
        words = tuple(lengthen(utterance.words, low, high))
        starts = [word.start for word in words if word.start is not None]
        lasts = [word.end for word in words if word.end is not None]
        start, end = min([utterance.start, *starts]), max([utterance.end, *lasts])
        result[index] = replace(utterance, words=words, start=start, end=end)
    return result


def lengthen(words: Sequence[Word], low: float, high: float) -> list[Word]:
    """The words, none shorter than a frame; of those without times nothing is changed. What a short word lacks it takes
    from what follows it, as far as `high` from what precedes it; where there is no room for a frame each, all get as
    much. low, high: seconds between which they must stay.

    >>> [(w.start, w.end) for w in lengthen([Word("a", 1.0, 1.5), Word("b", 1.5, 1.5), Word("c", 1.5, 2.0)], 0, 2)]
    [(1.0, 1.5), (1.5, 1.52), (1.52, 2.0)]
    """
    timed = [index for index, word in enumerate(words) if word.start is not None and word.end is not None]
    first, last = math.ceil(round(low * 1000, 3)), math.floor(round(high * 1000, 3))
    least = min(SHORTEST, max(0, last - first) // max(1, len(timed)))
    spans = [(round((words[i].start or 0.0) * 1000), round((words[i].end or 0.0) * 1000)) for i in timed]
    spans = _push_back(_push_on(spans, least), least, last)
    result = list(words)
    for index, (start, end) in zip(timed, spans, strict=True):
        result[index] = _move(words[index], start / 1000, end / 1000)
    return result


def _is_short(word: Word) -> bool:
    return word.start is not None and word.end is not None and round((word.end - word.start) * 1000) < SHORTEST


def _push_on(spans: Sequence[tuple[int, int]], least: int) -> list[tuple[int, int]]:
    """Short ones end later, and push what follows them."""
    moved: list[tuple[int, int]] = []
    pushed = 0  # where the last one ends, if that was changed
    for start, end in spans:
        begins = max(start, pushed)
        ends = max(end, begins + least)
        pushed = ends if (begins, ends) != (start, end) else 0
        moved.append((begins, ends))
    return moved


def _push_back(spans: Sequence[tuple[int, int]], least: int, last: int) -> list[tuple[int, int]]:
    """What ends too late ends earlier, and pushes what precedes it."""
    moved = list(spans)
    limit = last
    for place in reversed(range(len(moved))):
        start, end = moved[place]
        if end <= limit:
            break
        moved[place] = (min(start, limit - least), limit)
        limit = moved[place][0]
    return moved


def _move(word: Word, start: float, end: float) -> Word:
    """The word at another time, its characters and phones within it; evenly where they had no time either."""
    if (word.start, word.end) == (start, end):
        return word
    moved = replace(word, start=start, end=end)
    if word.start != word.end:
        return moved.keep_parts_within(start, end)
    return replace(moved, characters=_spread(word.characters, start, end), phones=_spread(word.phones, start, end))


def _spread(parts: Sequence[Character], start: float, end: float) -> tuple[Character, ...]:
    edges = [start + (end - start) * place / max(1, len(parts)) for place in range(len(parts) + 1)]
    return tuple(replace(part, start=edges[place], end=edges[place + 1]) for place, part in enumerate(parts))
