"""Spelling, the path through emissions, and times from it."""

from __future__ import annotations

import string
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.alignment.viterbi import (
    WILDCARD,
    Clock,
    Vocabulary,
    align_words,
    count_frames_needed,
    separate_words,
    spread_words,
)
from prefork.engines.text.document import Timing, Word

pytestmark = pytest.mark.dependencies

LETTERS = Vocabulary({c: i for i, c in enumerate(string.ascii_uppercase + "'", start=2)}, blank=0, separator=1)
CLOCK = Clock(0.02)


def emit(text: str) -> torch.Tensor:
    """(frames, 29) a model that is nearly sure of the character of each frame; `_` is the blank."""
    columns = [{"_": 0, "|": 1}.get(c, LETTERS.columns.get(c, 0)) for c in text]
    return (8.0 * torch.nn.functional.one_hot(torch.tensor(columns), 29)).log_softmax(-1)


@pytest.mark.parametrize(
    ("word", "spelled"),
    [
        ("Cat", [("C", 4), ("a", 2), ("t", 21)]),
        ("é", [("é", 6)]),
        ("e\u0301", [("é", 6)]),
        ("ß", [("ß", 20)]),
        ("I\u2019m", [("I", 10), ("'", 28), ("m", 14)]),
        ("a-b.", [("a", 2), ("b", 3)]),
        ("3rd", [("3", WILDCARD), ("r", 19), ("d", 5)]),
        ("1984", [("1984", WILDCARD)]),
        ("кот", [("кот", WILDCARD)]),
        ("xxx", [("xxx", WILDCARD)]),
        ("'", [("'", WILDCARD)]),
    ],
)
def test_a_word_is_spelled_as_far_as_the_model_knows_its_characters(word: str, spelled: list[tuple[str, int]]) -> None:
    assert LETTERS.spell(word) == spelled


def test_a_lower_case_vocabulary_spells_upper_case_words() -> None:
    assert Vocabulary({"a": 1, "é": 2}, blank=0).spell("AÉ") == [("A", 1), ("É", 2)]


def test_words_and_characters_get_the_times_of_their_frames() -> None:
    first, second = align_words(emit("__CC_AT_|__A_"), ["cat", "a"], LETTERS, CLOCK, 10.0, 20.0)
    assert (first.start, first.end, second.start, second.end) == (10.04, 10.14, 10.22, 10.24)
    assert [(c.text, c.start, c.end) for c in first.characters] == [
        ("c", 10.04, 10.08),
        ("a", 10.1, 10.12),
        ("t", 10.12, 10.14),
    ]
    assert first.timing is Timing.ALIGNED
    assert first.score is not None and first.score > 0.98


def test_offsets_of_the_model_are_undone() -> None:
    (word,) = align_words(emit("____A____"), ["a"], LETTERS, Clock(0.02, -0.05, 0.04), 0.0, 1.0)
    assert (word.start, word.end) == (0.03, 0.14)


def test_an_unspellable_word_takes_the_speech_between_its_neighbours() -> None:
    words = align_words(emit("CAT|_XYZXYZ_|DOG"), ["cat", "42", "dog"], LETTERS, CLOCK, 0.0, 1.0)
    assert [word.timing for word in words] == [Timing.ALIGNED, Timing.WILDCARD, Timing.ALIGNED]
    assert words[1].score is None and not words[1].characters
    assert words[1].start == pytest.approx(0.1, abs=0.021) and words[1].end == pytest.approx(0.22, abs=0.021)


def test_a_half_spellable_word_has_the_characters_that_are_known() -> None:
    (word,) = align_words(emit("_QQQRD_"), ["3rd"], LETTERS, CLOCK, 0.0, 1.0)
    assert word.timing is Timing.WILDCARD
    assert [c.text for c in word.characters] == ["r", "d"]
    assert word.score is not None and word.start is not None and word.start < 0.08


def test_other_speech_around_the_words_is_left_to_others() -> None:
    emission = emit("CAT|SAT|_CAT_|OX")
    drawn = align_words(emission, ["sat", "cat"], LETTERS, CLOCK, 0.0, 1.0)
    kept = align_words(emission, ["sat", "cat"], LETTERS, CLOCK, 0.0, 1.0, before=True, after=True)
    assert [(word.start, word.end) for word in kept] == [(0.08, 0.14), (0.18, 0.24)]
    assert [word.text for word in drawn] == [word.text for word in kept]


@pytest.mark.parametrize("words", [["a"], ["aa", "a"], ["aardvark", "42", "xxx", "boo", "é3"]])
@pytest.mark.parametrize("separator", [1, None])
def test_the_fewest_frames_are_just_enough(words: list[str], separator: int | None) -> None:
    vocabulary = Vocabulary(LETTERS.columns, 0, separator)
    needed = count_frames_needed(words, vocabulary)
    emission = torch.zeros(needed, 29).log_softmax(-1)
    assert len(align_words(emission, words, vocabulary, CLOCK, 0.0, 9.0, before=True, after=True)) == len(words)
    with pytest.raises(ValueError, match="do not fit"):
        align_words(emission[1:], words, vocabulary, CLOCK, 0.0, 9.0, before=True, after=True)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text("abÉ'3-ж", min_size=1, max_size=6), min_size=1, max_size=8),
    spare=st.integers(0, 40),
    seed=st.integers(0, 99),
    origin=st.floats(0, 100),
    offset=st.floats(-0.2, 0.2),
    cut=st.floats(0, 1),
)
def test_words_stay_in_order_apart_and_within_the_recording(
    words: list[str], spare: int, seed: int, origin: float, offset: float, cut: float
) -> None:
    frames = count_frames_needed(words, LETTERS) + spare
    emission = torch.randn(frames, 29, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    limit = origin + frames * 0.02 * cut
    timed = align_words(emission, words, LETTERS, Clock(0.02, offset, offset / 2), origin, limit)
    assert [word.text for word in timed] == words
    edges = [time for word in timed for time in (word.start, word.end)]
    assert None not in edges
    assert all(a <= b for a, b in pairwise(edges))  # type: ignore[operator]
    # Within a recording shorter than a millisecond nothing has whole milliseconds.
    assert edges[0] >= origin - 1e-9 or limit - origin < 0.001  # type: ignore[operator]
    assert edges[-1] <= limit + 1e-9 or limit - origin < 0.001  # type: ignore[operator]
    for word in timed:
        assert all(word.start <= c.start <= c.end <= word.end for c in word.characters)  # type: ignore[operator]
        assert word.score is None or 0 <= word.score <= 1


def test_words_share_a_stretch_evenly() -> None:
    assert spread_words(["a", "b", "c"], 1.0, 2.0) == [
        Word("a", 1.0, 1.333, timing=Timing.INTERPOLATED),
        Word("b", 1.333, 1.667, timing=Timing.INTERPOLATED),
        Word("c", 1.667, 2.0, timing=Timing.INTERPOLATED),
    ]


def test_a_word_ends_where_the_next_begins_at_the_latest() -> None:
    apart = separate_words([Word("a", 0.5, 1.5), Word("b", 1.0, 3.0), Word("c", 0.9, 1.1)], 0.6, 2.0)
    assert [(word.start, word.end) for word in apart] == [(0.6, 1.0), (1.0, 1.0), (1.0, 1.1)]
