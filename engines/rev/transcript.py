"""What Rev.ai sends back: its transcripts, as words and turns (https://docs.rev.ai/api/asynchronous/transcript)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefork.engines.text.document import Timing, Turn, Word

_TURN_GAP = 1.0  # seconds of silence that divide a speaker's turns
_NOT_UNDERSTOOD = frozenset({"unk", "unknown", "inaudible", "unintelligible", "crosstalk", "overlap", "foreign"})
_JOINERS = frozenset("-'\u2019\u2010\u2011")


def read_transcript(content: Any) -> tuple[tuple[Word, ...], tuple[Turn, ...]]:
    """Words with their punctuation, and turns of speakers called PAR0, PAR1, out of a transcript of the service.

    What it did not understand is `xxx`; laughter and its like are no words. Raises ValueError, TypeError, KeyError or
    AttributeError if it is not as documented.
    """
    words: list[Word] = []
    turns: list[Turn] = []
    for monologue in content["monologues"]:
        said = _read_words(monologue["elements"])
        words += said
        turns += _list_turns(f"PAR{int(monologue.get('speaker') or 0)}", said)
    return tuple(words), tuple(sorted(turns, key=lambda turn: (turn.start, turn.end)))


def _read_words(elements: Sequence[Mapping[str, Any]]) -> list[Word]:
    words: list[Word] = []
    touching = False  # nothing stands between the word before and what comes
    for element in elements:
        value = str(element["value"])
        if element["type"] == "punct":
            mark = value.strip()
            if words and mark:
                words[-1] = replace(words[-1], text=words[-1].text + mark)
            touching = touching and value[-1:] in _JOINERS and mark == value
            continue
        word = _read_word(value, element)
        if word is None:
            touching = False
        elif touching and words[-1].text[-1] in _JOINERS:
            last = words[-1]
            words[-1] = replace(last, text=last.text + word.text, end=word.end if word.end is not None else last.end)
        else:
            words.append(word)
            touching = True
    return words


def _read_word(value: str, element: Mapping[str, Any]) -> Word | None:
    text = value.strip()
    tag = re.fullmatch(r"[<\[(](\w[^>\])]*)[>\])]", text)
    if tag or element["type"] == "unknown":
        if tag and tag[1].lower() not in _NOT_UNDERSTOOD:
            return None
        text = "xxx"
    if not text:
        return None
    start, end = read_number(element.get("ts")), read_number(element.get("end_ts"))
    score = read_number(element.get("confidence"))
    score = None if score is None else min(score, 1.0)
    if start is None or end is None:
        return Word(text, score=score)
    return Word(text, start, max(start, end), score, Timing.SERVICE)


def read_number(value: Any) -> float | None:
    """Not negative; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _list_turns(speaker: str, words: Sequence[Word]) -> list[Turn]:
    """A monologue is cut where its speaker is silent: others may speak there."""
    turns: list[Turn] = []
    for word in words:
        if word.start is None or word.end is None:
            continue
        if turns and word.start - turns[-1].end <= _TURN_GAP:
            turns[-1] = replace(turns[-1], end=max(turns[-1].end, word.end))
        else:
            turns.append(Turn(speaker, word.start, word.end))
    return turns
