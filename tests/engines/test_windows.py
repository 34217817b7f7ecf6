"""Where utterances are looked for, and which together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.engines.alignment.windows import MARGIN, AlignmentWindow, plan_windows
from prefork.engines.text.document import Utterance, Word

Times = tuple[float | None, float | None]
UNTIMED: Times = (None, None)


def say(*times: Times, words: int = 3) -> list[Utterance]:
    return [Utterance(f"line {i}", (Word("word"),) * words, None, *pair) for i, pair in enumerate(times)]


def plan(
    utterances: list[Utterance], seconds: float = 60.0, most: float = 12.0, least: float = 0.3
) -> list[AlignmentWindow]:
    return plan_windows(utterances, [least] * len(utterances), seconds, most)[0]


def warn(utterances: list[Utterance], seconds: float = 60.0) -> list[str]:
    return plan_windows(utterances, [0.3] * len(utterances), seconds, 12.0)[1]


def test_a_transcript_without_times_is_one_window_over_the_whole_recording() -> None:
    assert plan(say(UNTIMED, UNTIMED, UNTIMED)) == [AlignmentWindow(0.0, 60.0, (0, 1, 2), timed=False)]


def test_timed_utterances_share_windows_up_to_the_limit() -> None:
    assert plan(say((1, 5), (6, 10), (11, 14), (15, 18))) == [
        AlignmentWindow(0.5, 10.5, (0, 1)),
        AlignmentWindow(10.5, 18.5, (2, 3)),
    ]


def test_an_utterance_longer_than_the_limit_has_a_window_of_its_own() -> None:
    assert plan(say((1, 31), (32, 34))) == [AlignmentWindow(0.5, 31.5, (0,)), AlignmentWindow(31.5, 34.5, (1,))]


def test_overlapping_utterances_are_aligned_apart() -> None:
    assert [window.utterances for window in plan(say((1, 5), (4, 8), (8, 9)))] == [(0,), (1, 2)]


def test_untimed_utterances_are_looked_for_between_their_timed_neighbours() -> None:
    windows = plan(say((1, 5), UNTIMED, UNTIMED, (15, 20), UNTIMED))
    assert [(w.start, w.end, w.utterances) for w in windows] == [
        (0.5, 5.5, (0,)),
        (4.5, 15.5, (1, 2)),
        (14.5, 20.5, (3,)),
        (19.5, 60.0, (4,)),
    ]


def test_an_untimed_utterance_without_room_is_aligned_with_its_neighbours() -> None:
    assert plan(say((1, 5), UNTIMED, (5, 9))) == [AlignmentWindow(0.5, 9.5, (0, 1, 2), timed=False)]


def test_an_utterance_too_short_for_its_words_spoils_no_other() -> None:
    utterances = say((1, 5), (5, 5.2), (5.2, 9))
    windows, _ = plan_windows(utterances, [0.3, 4.0, 0.3], 60.0, 12.0)
    assert [window.utterances for window in windows] == [(0,), (1,), (2,)]


def test_reversed_times_are_as_good_as_none_and_said_so() -> None:
    utterances = say((1, 5), (9, 6), (15, 20))
    assert [window.utterances for window in plan(utterances)] == [(0,), (1,), (2,)]
    (warning,) = warn(utterances)
    assert "utterance 2 (line 1): its times are reversed (9.000 to 6.000 s)" in warning


def test_times_beyond_the_recording_are_cut_or_dropped_and_said_so() -> None:
    utterances = say((1, 5), (55, 70), (80, 90))
    assert plan(utterances)[-1] == AlignmentWindow(54.5, 60.0, (1,))
    first, second = warn(utterances)
    assert "ends at 70.000 s, but the recording ends at 60.000 s" in first
    assert "begins at 80.000 s" in second and "no times" in second


def test_an_utterance_without_words_has_no_window() -> None:
    assert plan(say((1, 5), words=0)) == []


pairs = st.one_of(st.just(UNTIMED), st.tuples(st.floats(0, 59), st.floats(0, 59)))


@given(st.lists(pairs, max_size=12), st.floats(0.5, 30))
def test_every_utterance_has_one_window_and_no_window_leaves_the_recording(times: list[Times], most: float) -> None:
    windows = plan(say(*times), most=most)
    assert sorted(index for window in windows for index in window.utterances) == list(range(len(times)))
    for window in windows:
        assert 0 <= window.start < window.end <= 60
        if window.timed and len(window.utterances) > 1:
            assert window.end - window.start <= most + 2 * MARGIN + 1e-9
        for index in window.utterances:
            start, end = times[index]
            if start is not None and end is not None and start < end:
                assert window.start <= start and end <= window.end
