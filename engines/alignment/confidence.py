"""What is doubtful in an aligned transcript: words that are probably not said, and speech that it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefork.engines.text.document import Utterance, Word

# With both, a warning names 4 % of the right utterances of ../shared/data/speech; tests/benchmarks/confidence.py chose
# them, and says what they find.
LOW_WORD = 0.03  # score of a word below which it is named
SURE_SPEECH = 0.955  # score of untranscribed speech from which on it is named
_LISTED = 3  # words, or places, that a warning names


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

    heard: for the index of an utterance, what is said there besides. What lies in other utterances is theirs.
    """
    warnings, rated, low_rated = [], 0, 0
    for index, utterance in enumerate(utterances):
        mean = rate(utterance.words)
        if mean is None:
            continue
        rated += 1
        what = f"utterance {index + 1} ({utterance.text[:40].strip()})"
        scores = [word.score for word in utterance.words if word.phones and word.score is not None]
        doubtful = _list_doubtful(utterance.words)
        if doubtful:
            listed = _list(list(dict.fromkeys(utterance.words[place].text for place in doubtful)))
            warnings.append(f"{what}: low confidence ({min(scores):.2f}) in: {listed}; check text and times")
        elif not scores and mean < low:
            warnings.append(f"{what}: low confidence ({mean:.2f}); check its times")
        low_rated += bool(doubtful) or (not scores and mean < low)
        besides = [
            speech
            for speech in (heard or {}).get(index, ())
            if speech.score >= SURE_SPEECH
            and not {speech.place - 1, speech.place} & set(doubtful)  # that word is another: the speech is known
            and not _is_of_others(speech, index, utterances)
        ]
        if besides:
            listed = _list([_name_place(speech.place, utterance.words) for speech in besides])
            warnings.append(f"{what}: speech {listed} is not in the transcript; check text and times")
    if low_rated * 2 > rated > 1:
        reason = f"{low_rated} of {rated} utterances have a low confidence"
        warnings.append(f"{reason}; check that the transcript is of this recording")
    return warnings


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


def _is_of_others(speech: UntranscribedSpeech, index: int, utterances: Sequence[Utterance]) -> bool:
    """Whether another utterance is where the middle of it is: bullets often reach into those of others."""
    middle = (speech.start + speech.end) / 2
    return any(
        other != index
        and utterance.start is not None
        and utterance.end is not None
        and utterance.start <= middle <= utterance.end
        for other, utterance in enumerate(utterances)
    )
