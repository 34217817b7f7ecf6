"""Utterances out of words that were heard: where one ends and the next begins, and what in a token is spoken."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prefork.engines.text.document import Timing, Utterance, Word

PAUSE = 2.0  # seconds of silence between two words that end an utterance
LONGEST = 30.0  # seconds of speech, and
MOST_WORDS = 60  # words, that one utterance may have before it is cut at a clause or a pause

_SHORT_PAUSE = 0.3  # seconds; between sentences, seldom within one
_CLOSING = "\"'\u201d\u2019\u00bb\u203a)]}\u300d\u300f"
_OPENING = "\"'\u201c\u2018\u00ab\u2039\u201e\u201a([{\u300c\u300e\u00bf\u00a1"
_FINAL = ".?!\u2026\u3002\uff0e\uff1f\uff01\uff61\u061f\u06d4\u0964\u0965\u055e\u1362\u1367\u104b\u17d4"
_STOPS = ".\u2026"  # which also stand behind what is no sentence: abbreviations, ordinals, words that trail off
_CLAUSE = ",;:\u2013\u2014\u3001\uff0c\uff1b\uff1a\u060c\u061b"
_MARKS = rf"(?:[{re.escape(_CLAUSE + _FINAL.replace('.', ''))}]|--|\.\.)+"
_BETWEEN = re.compile(rf"(?:(?<!\d){_MARKS}|{_MARKS}(?!\d))(?=[^\W_])")  # two words: yes,no, but not 3,500 or 5:30
_ATTACHED = frozenset(_FINAL + _CLAUSE + _CLOSING)  # marks that belong to the word before, when they come alone
_TITLES = "mr mrs ms dr prof st rev gen col capt lt sgt gov sen rep mme mlle sra srta dra hr fr nr"
_ABBREVIATIONS = frozenset([*_TITLES.split(), "vs", "approx", "z.b", "d.h"])
_SPOKEN_SYMBOLS = frozenset("&%+=@")  # when they stand alone
_CUT = "cause em bout til tis twas n n' round kay course fraid nother scuse s ere im er ave"
_ELISIONS = frozenset(f"'{word}" for word in _CUT.split())
_APOSTROPHES = "'\u2019\u02bc\uff07"
_UNTRANSCRIBED = "xxx"


@dataclass(frozen=True, slots=True)
class _WrittenWord:
    """written: with its punctuation. word: what is spoken of it."""

    written: str
    word: Word
    speaker: str | None


def compose_utterances(
    words: Sequence[Word],
    speakers: Sequence[str | None],
    *,
    pause: float = PAUSE,
    longest: float = LONGEST,
    most_words: int = MOST_WORDS,
) -> tuple[Utterance, ...]:
    """Utterances, cut where the speaker changes, after sentences, and at pauses of more than `pause` seconds.

    words: as heard, punctuation on them or alone between them. speakers: one for each word. What is longer than
    `longest` seconds or `most_words` is cut where it hurts least. The words of the utterances are without the
    punctuation around them; what is nothing but punctuation is none.
    """
    tokens = _list_tokens(words, speakers)
    utterances: list[Utterance] = []
    begin = 0
    for index in range(1, len(tokens) + 1):
        if index == len(tokens) or _is_cut(tokens[index - 1], tokens[index], pause):
            parts = _cut_long(tokens[begin:index], longest, most_words)
            utterances += [_make_utterance(part) for part in parts]
            begin = index
    return tuple(utterances)


def strip_punctuation(text: str) -> str:
    """What is spoken of a token; empty if it is nothing but punctuation.

    >>> [strip_punctuation(text) for text in ("country.", "(don't)", "£3.50,", "well-known", "'cause", "--", "U.S.")]
    ['country', "don't", '£3.50', 'well-known', "'cause", '', 'U.S']
    """
    if (symbol := text.strip(_CLOSING + _OPENING + _CLAUSE + _FINAL)) in _SPOKEN_SYMBOLS:
        return symbol
    kept = [index for index, character in enumerate(text) if _is_spoken(text, index, character)]
    if not any(_is_letter(text[index]) for index in kept):
        return ""
    first, last = kept[0], kept[-1]
    core = text[first : last + 1]
    if first and text[first - 1] in _APOSTROPHES and f"'{core.lower()}" in _ELISIONS:
        core = text[first - 1] + core
    if text[last + 1 : last + 2] in tuple(_APOSTROPHES) and core.lower().endswith("in") and len(core) > 3:
        core += text[last + 1]  # goin'
    return core


def _is_spoken(text: str, index: int, character: str) -> bool:
    if _is_letter(character) or character == "%" or unicodedata.category(character) == "Sc":
        return True
    following = text[index + 1 : index + 2]
    return character in "+-\u2212" and following.isdigit() and not text[:index].strip(_CLOSING + _OPENING)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _list_tokens(words: Sequence[Word], speakers: Sequence[str | None]) -> list[_WrittenWord]:
    tokens: list[_WrittenWord] = []
    for word, speaker in zip(words, speakers, strict=True):
        parts = _BETWEEN.sub(lambda marks: f"{marks[0]} ", word.text).split()
        for part, timed in zip(parts, _share(word, len(parts)), strict=True):
            spoken = strip_punctuation(part)
            if spoken:
                tokens.append(_WrittenWord(part, replace(timed, text=spoken), speaker))
            elif tokens and tokens[-1].speaker == speaker and set(part) <= _ATTACHED:
                tokens[-1] = replace(tokens[-1], written=tokens[-1].written + part)
    return tokens


def _share(word: Word, count: int) -> list[Word]:
    """The word's time for each of the words that stand in it."""
    if count < 2 or word.start is None or word.end is None:
        return [word] * count
    edges = [word.start + (word.end - word.start) * index / count for index in range(count + 1)]
    return [
        replace(word, start=round(start, 3), end=round(end, 3), timing=Timing.INTERPOLATED, characters=(), phones=())
        for start, end in pairwise(edges)
    ]


def _is_cut(last: _WrittenWord, following: _WrittenWord, pause: float) -> bool:
    silence = _measure_silence(last, following)
    return last.speaker != following.speaker or silence > pause or _ends_sentence(last, following, silence)


def _measure_silence(last: _WrittenWord, following: _WrittenWord) -> float:
    if last.word.end is None or following.word.start is None:
        return 0.0
    return following.word.start - last.word.end


def _ends_sentence(last: _WrittenWord, following: _WrittenWord, silence: float) -> bool:
    body = last.written.rstrip(_CLOSING)
    if body[-1:] not in _FINAL or not body:
        return False
    if body[-1] not in _STOPS:
        return True
    core = body.rstrip(_STOPS).lstrip(_OPENING)
    rested = silence >= _SHORT_PAUSE
    first = following.word.text.lstrip("'\u2019")[:1]
    if body.endswith(("..", "\u2026")) or (first.islower() and following.word.text != _UNTRANSCRIBED):
        return rested or (body.endswith(("..", "\u2026")) and first.isupper())
    if core.lower() in _ABBREVIATIONS:
        return False
    if re.fullmatch(r"\d{1,2}", core) or "." in core.strip("."):  # 3. Oktober; U.S. Army, 5 p.m. But 3.5.
        return rested or bool(re.search(r"\d[.,]\d", core))
    if len(core) == 1 and core.isupper() and core != "I":
        return rested
    return True


def _cut_long(tokens: Sequence[_WrittenWord], longest: float, most_words: int) -> list[Sequence[_WrittenWord]]:
    """Halves, and halves of these, until none is too long: each time at the longest pause of the middle, at the end of
    a clause if there is one."""
    start, end = tokens[0].word.start, tokens[-1].word.end
    seconds = end - start if start is not None and end is not None else 0.0
    if len(tokens) <= most_words and (seconds <= longest or len(tokens) < 2):
        return [tokens]
    margin = len(tokens) // 4
    middle = range(max(1, margin), max(2, len(tokens) - margin))

    def rate(index: int) -> tuple[bool, float, int]:
        silence = max(0.0, _measure_silence(tokens[index - 1], tokens[index]))
        clause = tokens[index - 1].written.rstrip(_CLOSING)[-1:] in tuple(_CLAUSE + _FINAL)
        return clause or silence >= _SHORT_PAUSE, round(silence, 3), -abs(2 * index - len(tokens))

    cut = max(middle, key=rate)
    return [part for half in (tokens[:cut], tokens[cut:]) for part in _cut_long(half, longest, most_words)]


def _make_utterance(tokens: Sequence[_WrittenWord]) -> Utterance:
    words = tuple(token.word for token in tokens)
    starts = [word.start for word in words if word.start is not None]
    ends = [word.end for word in words if word.end is not None]
    text = " ".join(token.written for token in tokens)
    return Utterance(text, words, tokens[0].speaker, min(starts, default=None), max(ends, default=None))
