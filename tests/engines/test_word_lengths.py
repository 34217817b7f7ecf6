"""Every word lasts a frame at least, whatever an aligner says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.alignment.word_lengths import SHORTEST, give_lengths, lengthen
from prefork.engines.text.document import Character, Utterance, Word

FRAME = SHORTEST / 1000


def make_words(*times: tuple[float | None, float | None]) -> list[Word]:
    return [Word(str(number), start, end) for number, (start, end) in enumerate(times)]


def list_times(words: object) -> list[tuple[float | None, float | None]]:
    return [(word.start, word.end) for word in words]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(1.0, 1.5), (1.6, 2.0)], [(1.0, 1.5), (1.6, 2.0)]),
        ([(1.0, 1.5), (1.5, 1.5), (1.9, 2.0)], [(1.0, 1.5), (1.5, 1.52), (1.9, 2.0)]),
        ([(1.0, 1.5), (1.5, 1.5), (1.5, 1.5), (1.5, 1.6)], [(1.0, 1.5), (1.5, 1.52), (1.52, 1.54), (1.54, 1.6)]),
        ([(1.0, 2.0), (2.0, 2.0)], [(1.0, 1.98), (1.98, 2.0)]),
        ([(1.0, 1.99), (1.99, 1.99), (2.0, 2.0)], [(1.0, 1.96), (1.96, 1.98), (1.98, 2.0)]),
        ([(1.0, 1.0), (None, None), (1.0, 1.5)], [(1.0, 1.02), (None, None), (1.02, 1.5)]),
        ([(0.0, 1.2), (1.0, 1.1)], [(0.0, 1.2), (1.0, 1.1)]),  # two at once, as in a service's answer
    ],
)
def test_what_a_short_word_lacks_it_takes_from_its_neighbours(
    times: list[tuple[float | None, float | None]], expected: list[tuple[float | None, float | None]]
) -> None:
    assert list_times(lengthen(make_words(*times), 0.0, 2.0)) == expected


EDGES = st.lists(st.integers(0, 3000), min_size=2, max_size=24)


@settings(deadline=None)
@given(EDGES, st.integers(0, 300))
def test_no_word_is_shorter_than_a_frame_and_all_stay_in_order_and_apart(edges: list[int], more: int) -> None:
    times = sorted(edges)[: len(edges) // 2 * 2]
    words = make_words(*[(a / 1000, b / 1000) for a, b in zip(times[::2], times[1::2], strict=True)])
    high = (times[-1] + more) / 1000
    low = max(0.0, min(times[0] / 1000, high - len(words) * FRAME))
    longer = lengthen(words, low, high)
    least = min(FRAME, (high - low) / len(words) - 0.001)
    found = [(word.start or 0.0, word.end or 0.0) for word in longer]
    assert all(end - start >= least - 1e-9 for start, end in found)
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(found))
    assert found[0][0] >= low - 0.001 and found[-1][1] <= high + 1e-9
    if all((word.end or 0.0) - (word.start or 0.0) >= FRAME for word in words):
        assert list(longer) == words


def test_utterance_grows_into_the_pause_behind_it_and_its_words_characters_with_it() -> None:
    point = Word("ab", 2.0, 2.0, characters=(Character("a", 2.0, 2.0, 0.5), Character("b", 2.0, 2.0, 0.5)))
    first = Utterance("x ab", (Word("x", 1.0, 2.0), point), start=1.0, end=2.0)
    second = Utterance("y", (Word("y", 2.01, 3.0),), start=2.01, end=3.0)
    alone, *_ = give_lengths([first], 10.0)
    assert list_times(alone.words) == [(1.0, 2.0), (2.0, 2.02)] and alone.end == 2.02
    assert list_times(alone.words[1].characters) == [(2.0, 2.01), (2.01, 2.02)]
    near, untouched = give_lengths([first, second], 10.0)
    assert list_times(near.words) == [(1.0, 1.99), (1.99, 2.01)] and near.end == 2.01
    assert untouched == second
    ending, *_ = give_lengths([first], 2.0)
    assert list_times(ending.words) == [(1.0, 1.98), (1.98, 2.0)]
