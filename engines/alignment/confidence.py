"""What is doubtful in an aligned transcript: words that are probably not said, and speech that it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefork.engines.text.document import Utterance, Word

# With both, a warning names 4 % of the right utterances of ../shared/data/speech; tests/benchmarks/confidence.py chose
# them, and says what they find.
LOW_WORD = 0.03  # score of a word below which it is named
SURE_SPEECH = 0.955  # score of untranscribed speech from which on it is named
_LISTED = 3  # words, or places, that a warning names
_NAMED = 10  # utterances that are named where most are doubtful


@dataclass(frozen=True, slots=True)
class UntranscribedSpeech:
    """Speech in an utterance that is none of its words. place: how many of these are before it. start, end: seconds.
    score: how likely it is, if there were some at every second place."""

    place: int
    start: float
    end: float
    score: float


def rate(words: Sequence[Word]) -> float | None:
    """Their mean score; None if no word has one."""
    scores = [word.score for word in words if word.score is not None]
    return sum(scores) / len(scores) if scores else None


def doubt(
    utterances: Sequence[Utterance], low: float, heard: Mapping[int, Sequence[UntranscribedSpeech]] | None = None
) -> list[str]:
    """What there is to say about utterances of which a word is probably not said; where nothing says so of single
    words, about those whose words' mean score is low; and about those in which something else is said.

    heard: for the index of an utterance, what is said there besides. What lies in other utterances is theirs, and what
    the transcript has as an event is no fault. Where most utterances are doubtful, the transcript is probably of
    another recording: the first of them are named, and nothing that is said besides.
    """
    doubtful = {index: text for index, u in enumerate(utterances) if (text := _doubt_words(u, low)) is not None}
    rated = sum(rate(utterance.words) is not None for utterance in utterances)
    if len(doubtful) * 2 > rated > 1:
        named = [_name(index, utterances[index]) + text for index, text in list(doubtful.items())[:_NAMED]]
        reason = f"{len(doubtful)} of {rated} utterances have a low confidence"
        return [*named, f"{reason}; check that the transcript is of this recording"]
    besides = _list_besides(utterances, heard or {})
    warnings = []
    for index, utterance in enumerate(utterances):
        if index in doubtful:
            warnings.append(_name(index, utterance) + doubtful[index])
        if index in besides:
            listed = _list([_name_place(place, utterance.words) for place in besides[index]])
            warnings.append(
                f"{_name(index, utterance)}: speech {listed} is not in the transcript; check text and times"
            )
    return warnings


def _name(index: int, utterance: Utterance) -> str:
    return f"utterance {index + 1} ({utterance.text[:40].strip()})"


def _doubt_words(utterance: Utterance, low: float) -> str | None:
    """What there is to say about an utterance's words, if anything."""
    mean = rate(utterance.words)
    if mean is None:
        return None
    scores = [word.score for word in utterance.words if word.phones and word.score is not None]
    if doubtful := _list_doubtful(utterance.words):
        listed = _list(list(dict.fromkeys(utterance.words[place].text for place in doubtful)))
        return f": low confidence ({min(scores):.2f}) in: {listed}; check text and times"
    return f": low confidence ({mean:.2f}); check its times" if not scores and mean < low else None


def _list_besides(
    utterances: Sequence[Utterance], heard: Mapping[int, Sequence[UntranscribedSpeech]]
) -> dict[int, list[int]]:
    """For the index of an utterance, the places in it where something else is said. Not beside a word that is probably
    another: that speech is known; nor where another utterance is: bullets often reach into those of others."""
    spans = np.array(
        [(math.inf, -math.inf) if u.start is None or u.end is None else (u.start, u.end) for u in utterances]
    )
    besides: dict[int, list[int]] = {}
    for index, speeches in heard.items():
        utterance = utterances[index]
        if rate(utterance.words) is None:
            continue
        known = {place for word in _list_doubtful(utterance.words) for place in (word, word + 1)}
        known |= {place for place, _ in utterance.events}
        for speech in speeches:
            if speech.score < SURE_SPEECH or speech.place in known:
                continue
            middle = (speech.start + speech.end) / 2
            others = (spans[:, 0] <= middle) & (middle <= spans[:, 1])
            others[index] = False
            if not others.any():
                besides.setdefault(index, []).append(speech.place)
    return besides


def _list_doubtful(words: Sequence[Word]) -> list[int]:
    return [
        place for place, word in enumerate(words) if word.phones and word.score is not None and word.score < LOW_WORD
    ]


def _list(named: Sequence[str]) -> str:
    return ", ".join(named[:_LISTED]) + (" ..." if len(named) > _LISTED else "")


def _name_place(place: int, words: Sequence[Word]) -> str:
    if place == 0:
        return f'before "{words[0].text}"'
    if place == len(words):
        return f'after "{words[-1].text}"'
    return f'between "{words[place - 1].text}" and "{words[place].text}"'
