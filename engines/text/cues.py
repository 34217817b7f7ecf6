"""Cues: what of a transcript is on the screen at once. Pure functions of utterances.

What is said is cut where it hurts a reader least: at ends of sentences and clauses and at pauses, found by dynamic
programming over the words. The limits are those of the usual guides (Netflix's Timed Text Style Guide: 42 characters in
a line, two lines, 7 seconds, 17 characters a second for adults); the names are those of WhisperX's options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prefork.engines.text.document import Utterance

LONGEST = 7.0  # seconds of a cue
SPEED = 17.0  # characters a second that are read
UNTRANSCRIBED = frozenset({"xxx", "yyy", "www"})  # CHAT: what is said there is not known, or not told
_SENTENCE = frozenset(".?!\u2026\u3002\uff1f\uff01\u061f\u06d4\u0964")
_PHRASE = frozenset(",;:\u2013\u2014\u3001\uff0c\uff1b\uff1a\u060c\u061b")
_PAUSE = 0.3  # seconds; between clauses, seldom within one
# What a cut costs, beside a cue itself, which costs 1: behind a sentence nothing.
_CLAUSE, _BREATH, _ANYWHERE = 0.2, 0.4, 1.5
_LATE = 3.0  # for each second that a cue cannot stay as long as it takes to read
_EMPTY = 1.0  # for each second above one in which nobody speaks
_MIXED = 1.5  # for each sentence that ends within a full cue; short ones may stand together
_UNEVEN = 0.5  # for a full cue; less for a part of it, by its square: two halves are better than a full one and a rest


@dataclass(frozen=True, slots=True)
class CueLayout:
    """How subtitles look. max_line_width: characters, max_line_count: lines of a cue. highlight_words: a cue for each
    word, with that word underlined."""

    max_line_width: int = 42
    max_line_count: int = 2
    highlight_words: bool = False


@dataclass(frozen=True, slots=True)
class CueWord:
    """A word as it is shown, with its punctuation. start, end: seconds. timed: they are its own."""

    text: str
    start: float
    end: float
    timed: bool = True


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start` to `end`, seconds: lines of words. speaker: who says it, if that is known."""

    start: float
    end: float
    lines: tuple[tuple[CueWord, ...], ...]
    speaker: str | None = None


def make_cues(
    utterances: Sequence[Utterance], layout: CueLayout, *, named: bool = False, seconds: float | None = None
) -> list[Cue]:
    """The cues of all utterances that have times, in the order of their beginnings.

    named: the speaker's name takes up room in the first line. seconds: length of the recording, if that is known.
    """
    timed = [u for u in utterances if u.start is not None and u.end is not None and round((u.end - u.start) * 1000) > 0]
    timed.sort(key=lambda utterance: utterance.start or 0.0)
    cues: list[Cue] = []
    for place, utterance in enumerate(timed):
        words = [part for word in _list_words(utterance) for part in _cut_word(word, layout.max_line_width)]
        following = [u.start or 0.0 for u in timed[place + 1 :][:1]]
        if words:
            after = min([*following, math.inf if seconds is None else seconds])
            cues += _cut(words, layout, utterance.speaker, named, after)
    cues.sort(key=lambda cue: cue.start)
    return _stay(cues, math.inf if seconds is None else seconds)


def _list_words(utterance: Utterance) -> list[CueWord]:
    """Those that are to be read; with their punctuation where the text is nothing but words, as what was heard is.
    Words without times share what lies between their neighbours."""
    written, words = utterance.text.split(), utterance.words
    alike = len(written) == len(words) and all(w.text in token for w, token in zip(words, written, strict=True))
    shown = written if alike else [word.text for word in words]
    known = [i for i, word in enumerate(words) if word.start is not None and word.end is not None]
    found = []
    for place, (word, text) in enumerate(zip(words, shown, strict=True)):
        if word.text in UNTRANSCRIBED:
            continue
        if word.start is not None and word.end is not None:
            found.append(CueWord(text, word.start, max(word.start, word.end)))
            continue
        before = max((i for i in known if i < place), default=-1)
        after = min((i for i in known if i > place), default=len(words))
        low = (words[before].end if before >= 0 else utterance.start) or 0.0
        high = (words[after].start if after < len(words) else utterance.end) or 0.0
        step = max(0.0, high - low) / (after - before - 1)
        start = low + step * (place - before - 1)
        found.append(CueWord(text, start, start + step, timed=False))
    return found


def _cut_word(word: CueWord, width: int) -> list[CueWord]:
    """What is longer than a line, in parts."""
    texts = [word.text[at : at + width] for at in range(0, len(word.text), width)]
    step = (word.end - word.start) / len(texts)
    if len(texts) == 1:
        return [word]
    starts = [word.start + step * place for place in range(len(texts))]
    return [replace(word, text=text, start=at, end=at + step) for text, at in zip(texts, starts, strict=True)]


def _cut(words: Sequence[CueWord], layout: CueLayout, speaker: str | None, named: bool, after: float) -> Iterator[Cue]:
    """The cheapest way to cut an utterance into cues. after: when something else is to be shown."""
    lead = f"{speaker}:" if named and speaker else ""
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the words up to each: the cost, and where the last cue begins
    for end in range(1, len(words) + 1):
        found = (math.inf, end - 1)
        for begin in range(end - 1, -1, -1):
            lines = _wrap(words[begin:end], layout, lead)
            lasts = words[end - 1].end - words[begin].start
            if begin < end - 1 and (lines is None or lasts > LONGEST):
                break  # with still more words it fits even less
            cost = best[begin][0] + _rate(words, begin, end, layout, after)
            found = min(found, (cost, begin))
        best.append(found)
    cuts, end = [], len(words)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    for begin, end in reversed(cuts):
        part = words[begin:end]
        lines = _wrap(part, layout, lead) or [part]
        last = min(max(word.end for word in part), part[0].start + LONGEST)
        yield Cue(part[0].start, last, tuple(map(tuple, lines)), speaker)


def _rate(words: Sequence[CueWord], begin: int, end: int, layout: CueLayout, after: float) -> float:
    """What a cue of some of the words costs."""
    part = words[begin:end]
    size = sum(len(word.text) + 1 for word in part) - 1
    following = words[end].start if end < len(words) else max(after, part[-1].end)
    room = min(following - part[0].start, LONGEST)
    silence = sum(max(0.0, b.start - a.end - 1.0) for a, b in pairwise(part))
    full = size / (layout.max_line_width * layout.max_line_count)
    sentences = sum(word.text[-1:] in _SENTENCE for word in part[:-1])
    cost = 1.0 + _LATE * max(0.0, size / SPEED - room) + _EMPTY * silence + full * (_UNEVEN * full + _MIXED * sentences)
    return cost if end == len(words) else cost + _rate_break(words[end - 1], words[end])


def _rate_break(word: CueWord, following: CueWord) -> float:
    """What it costs to cut between two words."""
    mark = word.text.rstrip("\"'\u201d\u2019\u00bb)]")[-1:]
    if mark in _SENTENCE:
        return 0.0
    if mark in _PHRASE:
        return _CLAUSE
    return _BREATH if following.start - word.end >= _PAUSE else _ANYWHERE


def _wrap(words: Sequence[CueWord], layout: CueLayout, lead: str = "") -> list[Sequence[CueWord]] | None:
    """Lines that are as even as can be, cut at clauses where there are some; None if there are too many of them.

    lead: what stands before the first word.
    """
    width, count = layout.max_line_width, layout.max_line_count
    sizes = [len(word.text) for word in words]
    sizes[0] += len(lead) + 1 if lead else 0
    if len(words) > 1 and sum(sizes) + len(sizes) - 1 > (width + 1) * count - 1:
        return None
    best: list[tuple[int, float, int]] = [(0, 0.0, 0)]  # of the words up to each: lines, cost, where the last begins
    for end in range(1, len(words) + 1):
        found = (len(words) + 1, math.inf, end - 1)
        size = -1
        for begin in range(end - 1, -1, -1):
            size += sizes[begin] + 1
            if size > width and begin < end - 1:
                break
            above, cost, _ = best[begin]
            cut = _rate_break(words[end - 1], words[end]) if end < len(words) else 0.0
            found = min(found, (above + 1, cost + (1 - size / width) ** 2 + cut / 4, begin))
        best.append(found)
    if best[-1][0] > count:
        return None
    lines: list[Sequence[CueWord]] = []
    end = len(words)
    while end:
        lines.append(words[best[end][2] : end])
        end = best[end][2]
    return lines[::-1]


def _stay(cues: Sequence[Cue], seconds: float) -> list[Cue]:
    """Cues stay until they are read, if nothing else is shown then."""
    stayed = []
    for place, cue in enumerate(cues):
        size = sum(len(word.text) + 1 for line in cue.lines for word in line) - 1
        following = min((other.start for other in cues[place + 1 :][:1]), default=math.inf)
        wanted = min(cue.start + min(size / SPEED, LONGEST), following, seconds)
        stayed.append(replace(cue, end=max(cue.end, wanted)))
    return stayed
