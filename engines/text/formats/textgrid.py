"""Praat's TextGrid, written by rustling: tiers without holes and without overlaps, as Praat wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rustling.chat import CHAT, Utterance

from prefork.engines.text.document import Document

Interval = tuple[float | None, float | None, str]  # start, end: seconds


def render(document: Document) -> str:
    """Per speaker a tier of utterances, one of words and, where they are known, one of characters and one of phones; of
    a recording in which nothing was said, empty ones."""
    speakers = list(dict.fromkeys(u.speaker or "speaker" for u in document.utterances)) or ["speaker"]
    times = [word.end or 0.0 for u in document.utterances for word in u.words]
    length = max([document.seconds or 0.0, *times, *(u.end or 0.0 for u in document.utterances)])
    intervals: list[Utterance] = []
    for speaker in speakers:
        own = [u for u in document.utterances if (u.speaker or "speaker") == speaker]
        words = [word for utterance in own for word in utterance.words]
        tiers: list[tuple[str, list[Interval]]] = [
            (speaker, [(u.start, u.end, u.text) for u in own]),
            (f"{speaker} words", [(w.start, w.end, w.text) for w in words]),
        ]
        parts: list[tuple[str, list[Interval]]] = [
            (f"{speaker} characters", [(c.start, c.end, c.text) for word in words for c in word.characters]),
            (f"{speaker} phones", [(p.start, p.end, p.text) for word in words for p in word.phones]),
        ]
        for name, tier in [*tiers, *(part for part in parts if part[1])]:
            if tier or not own:
                intervals += (
                    Utterance(participant=name, tokens=[], time_marks=(start, end), tiers={name: text})
                    for start, end, text in fill(tier, length)
                )
    return CHAT.from_utterances(intervals).to_textgrid_strs()[0]


def fill(intervals: Iterable[Interval], length: float) -> Iterator[tuple[int, int, str]]:
    """Intervals in milliseconds from 0 to the end: what overlaps is cut, what has no length or no time left out,
    what lies between is empty.

    >>> list(fill([(0.5, 1.0, "a"), (0.9, 1.2, "b")], 2.0))
    [(0, 500, ''), (500, 1000, 'a'), (1000, 1200, 'b'), (1200, 2000, '')]
    """
    reached, end_of_all = 0, round(length * 1000)
    timed = sorted(
        (round(a * 1000), round(b * 1000), text) for a, b, text in intervals if a is not None and b is not None
    )
    for first, end, text in timed:
        start = max(first, reached)
        if end > start:
            if start > reached:
                yield reached, start, ""
            yield start, end, text
            reached = end
    if end_of_all > reached:
        yield reached, end_of_all, ""
