"""Words that two windows both heard."""

from __future__ import annotations

import itertools

from prefork.engines.alignment.seams import join_words
from prefork.engines.text.document import Word


def say(text: str, start: float, pace: float = 0.5) -> list[Word]:
    return [Word(word, start + i * pace, start + (i + 1) * pace) for i, word in enumerate(text.split())]


def read(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def test_common_words_are_kept_once() -> None:
    left, right = say("one two three four five six", 0), say("four five six seven eight", 1.5)
    assert read(join_words(left, right, 1.5, 3.0)) == "one two three four five six seven eight"


def test_words_cut_off_at_the_edges_are_those_of_the_other_window() -> None:
    left, right = say("one two three four five sick", 0), say("or four five six seven", 1.2)
    assert read(join_words(left, right, 1.4, 3.0)) == "one two three four five six seven"


def test_case_and_punctuation_do_not_matter() -> None:
    left, right = say("so he said. And", 0), say("Said, and then he left", 1.0)
    assert read(join_words(left, right, 1.0, 2.0)) == "so he said. and then he left"


def test_same_word_at_another_time_is_another_word() -> None:
    left, right = say("no no no no", 0, pace=2.0), say("no no", 6.0, pace=2.0)
    assert len(join_words(left, right, 6.0, 8.0)) == 5


def test_without_a_common_word_the_middle_parts_them() -> None:
    left, right = say("a b c d e f", 0), say("v w x y z", 1.6)
    assert read(join_words(left, right, 1.5, 3.0)) == "a b c d w x y z"


def test_times_stay_in_order() -> None:
    left, right = [*say("a b", 0), Word("c", 1.0, 2.6)], say("c d e", 1.1)
    words = join_words(left, right, 1.0, 2.6)
    assert read(words) == "a b c d e"
    assert all(a.end <= b.start for a, b in itertools.pairwise(words) if a.end and b.start)


def test_one_side_may_be_silent() -> None:
    assert read(join_words(say("a b c", 0), [], 1.0, 2.0)) == "a b c"
    assert read(join_words([], say("a b c", 0), 0.0, 1.0)) == "a b c"
