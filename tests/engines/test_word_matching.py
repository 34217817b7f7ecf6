"""Words that were heard, matched with those of a transcript."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefork.engines.alignment.word_matching import WordMatcher, align_texts, spell_out
from prefork.engines.base import Job
from prefork.engines.text.document import Document, RecoveryCounts, Timing, Utterance, Word

LINES = ["the boy looked from the hand to her", "I walked up to my room", "she is 21 and has a new house"]


def make_utterance(text: str, start: float | None = None, end: float | None = None) -> Utterance:
    return Utterance(text, tuple(Word(word) for word in text.split()), None, start, end)


def hear(text: str, origin: float = 0.0) -> tuple[Word, ...]:
    """Half a second for each word."""
    return tuple(
        Word(word, origin + i / 2, origin + i / 2 + 0.4, timing=Timing.SERVICE) for i, word in enumerate(text.split())
    )


def match(document: Document, seconds: float = 600.0) -> Document:
    return WordMatcher().join(Job("talk", Path("talk.cha"), Path("talk.flac"), seconds=seconds), document, (), ())


def test_utterances_get_the_times_of_their_words() -> None:
    heard = hear("The boy looked, from the hand to her. I walk up to my room. She is twenty one and has a new house")
    document = match(Document(tuple(make_utterance(line) for line in LINES), heard=heard))
    assert [(u.start, u.end) for u in document.utterances] == [(0.0, 3.9), (4.0, 6.9), (7.0, 11.4)]
    assert not document.warnings


def test_what_nobody_says_stays_without_times_and_is_said() -> None:
    lines = [LINES[0], "quarterly figures disappointed investors", LINES[1]]
    document = match(Document(tuple(map(make_utterance, lines)), heard=hear(f"{LINES[0]} hello there {LINES[1]}")))
    missing = document.utterances[1]
    assert missing.missing and missing.start is None and missing.end is None
    assert [u.start for u in document.utterances] == [0.0, None, 5.0]
    (warning,) = document.warnings
    assert warning.startswith("utterance 2 (quarterly figures") and "not found" in warning


@pytest.mark.parametrize("heard", [(), hear("nothing of this kind was ever spoken by anybody")])
def test_the_transcript_of_another_recording_gets_no_times(heard: tuple[Word, ...]) -> None:
    document = match(Document(tuple(map(make_utterance, LINES)), heard=heard))
    assert all(u.missing and u.start is None for u in document.utterances)
    assert "3 of 3 utterances were not found" in document.warnings[-1]
    assert document.recovery == RecoveryCounts(missing=3)


def test_times_in_the_transcript_are_kept() -> None:
    timed = make_utterance(LINES[0], 0.1, 3.5)
    document = match(Document((timed, make_utterance(LINES[1])), heard=hear(f"{LINES[0]} {LINES[1]}")))
    assert document.utterances[0] == timed
    assert document.utterances[1].start == 4.0
    whole = Document((timed, make_utterance(LINES[1], 4.0, 6.0)), heard=hear(LINES[0]))
    assert match(whole).utterances == whole.utterances
    assert match(whole).recovery == RecoveryCounts(timed=2)
    assert document.recovery == RecoveryCounts(timed=1, found=1)
    assert document.heard == ()


def test_a_short_utterance_counts_only_near_one_that_is_sure() -> None:
    heard = (*hear("yeah", 300.0), *hear(f"{LINES[0]} yeah"))
    near = match(Document((make_utterance(LINES[0]), make_utterance("yeah")), heard=heard[1:]))
    assert near.utterances[1].start == 4.0
    alone = match(Document((make_utterance("yeah"),), heard=heard[:1]))
    assert alone.utterances[0].missing


def test_long_texts_with_errors_are_aligned() -> None:
    chance = np.random.default_rng(5)
    words = [f"w{number:03}x{number * 7 % 91}" for number in chance.integers(0, 900, 6000)]
    heard = [word if keep else "um" for word, keep in zip(words, chance.random(6000) < 0.8, strict=True)]
    pairs = align_texts(words, ["noise"] * 500 + heard)
    right = sum(j == i + 500 for i, j in pairs)
    assert right > 0.78 * len(words) and right > 0.97 * len(pairs)


def test_words_are_compared_as_they_sound() -> None:
    assert spell_out("Twenty-one,") == spell_out("$21") == ["twenty", "one"]
    assert spell_out("1,200") == ["one", "thousand", "two", "hundred"]
    assert spell_out("don\u2019t") == ["dont"] and spell_out("(...)") == []
    assert (
        spell_out("caf\u00e9") == ["cafe"]
        and spell_out("\u0661\u0662")
        and spell_out("\u4f60\u597d") == ["\u4f60\u597d"]
    )


@pytest.mark.parametrize(
    ("word", "language", "spoken"),
    [
        ("21", "deu", ["einundzwanzig"]),
        ("21,", "eng", ["twenty", "one"]),
        ("1961", "eng", ["nineteen", "sixty", "one"]),
        ("21", "fra", ["vingt", "et", "un"]),
        ("21", "xxx", ["21"]),
        ("3.5", "deu", ["drei", "komma", "funf"]),
    ],
)
def test_numbers_sound_as_in_their_language(word: str, language: str, spoken: list[str]) -> None:
    assert spell_out(word, language) == spoken


def test_reversed_times_are_looked_for_again_and_said() -> None:
    document = match(Document((make_utterance(LINES[0], 9.0, 2.0),), heard=hear(LINES[0])))
    assert (document.utterances[0].start, document.utterances[0].end) == (0.0, 3.9)
    assert "reversed" in document.warnings[0]
    missing = replace(document.utterances[0], start=None, end=None, missing=True)
    again = Document((missing,), heard=hear(LINES[0]))
    assert match(again).utterances == (missing,)
