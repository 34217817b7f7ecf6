"""Words given to speakers by their turns."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.base import Job, LoadError
from prefork.engines.speakers.assignment import SpeakerAssigner, assign_speakers
from prefork.engines.text.document import Document, Timing, Turn, Word

JOB = Job("talk.wav", Path("talk.wav"), Path("talk.wav"))


def make_word(start: float | None, end: float | None, text: str = "so") -> Word:
    return Word(text, start, end, timing=Timing.NONE if start is None else Timing.SERVICE)


@pytest.mark.parametrize(
    ("start", "end", "speaker"),
    [
        (0.5, 1.0, "A"),
        (1.8, 2.3, "B"),  # 0.2 s of A, 0.3 s of B
        (1.6, 2.1, "A"),
        (2.1, 2.1, "B"),  # no length
        (5.3, 5.5, "B"),  # between turns: the nearer one
        (5.8, 5.9, "A"),
        (9.0, 9.5, "A"),  # past the last turn, within reach
        (12.0, 12.5, None),
        (6.6, 6.9, "A"),  # both talk all the time: who began before
        (6.5, 8.0, "A"),
        (20.3, 20.6, None),
    ],
)
def test_a_word_goes_to_the_speaker_who_talks_most_during_it(start: float, end: float, speaker: str | None) -> None:
    turns = [Turn("A", 0.0, 2.0), Turn("B", 2.0, 5.0), Turn("A", 6.0, 8.0), Turn("B", 6.5, 7.0)]
    assert assign_speakers([make_word(start, end)], turns) == [speaker]


def test_turns_of_one_speaker_that_overlap_do_not_count_twice() -> None:
    turns = [Turn("A", 0.0, 1.0), Turn("A", 0.2, 0.9), Turn("A", 0.2, 1.0), Turn("B", 0.9, 3.0)]
    assert assign_speakers([make_word(0.5, 1.6)], turns) == ["B"]  # 0.5 s of A, 0.7 s of B


def test_many_short_turns_count_together() -> None:
    turns = [Turn("B", i / 10, i / 10 + 0.08) for i in range(10)] + [Turn("A", 0.0, 0.5)]
    assert assign_speakers([make_word(0.0, 1.0)], turns) == ["B"]


def test_words_without_times_go_with_the_word_before_them() -> None:
    words = [make_word(None, None), make_word(3.0, 3.2), make_word(None, None), make_word(0.5, 0.6)]
    assert assign_speakers(words, [Turn("A", 0.0, 1.0), Turn("B", 2.0, 4.0)]) == ["B", "B", "B", "A"]
    assert assign_speakers([make_word(None, None)], [Turn("A", 0.0, 1.0)]) == ["A"]


def test_without_turns_nobody_is_named() -> None:
    assert assign_speakers([make_word(0.0, 1.0), make_word(None, None)], []) == [None, None]
    assert assign_speakers([], [Turn("A", 0.0, 1.0)]) == []


TIMES = st.integers(0, 40).map(lambda n: n / 4)
SPANS = st.tuples(TIMES, TIMES).map(lambda span: (min(span), max(span)))


@settings(deadline=None, max_examples=150)
@given(st.lists(SPANS, min_size=1, max_size=8), st.lists(st.tuples(st.sampled_from("ABC"), SPANS), max_size=10))
def test_no_other_speaker_talks_more_or_is_nearer(
    spans: list[tuple[float, float]], spoken: list[tuple[str, tuple[float, float]]]
) -> None:
    """Against a count of every eighth of a second."""
    turns = [Turn(speaker, *span) for speaker, span in spoken]
    found = assign_speakers([make_word(start, end) for start, end in spans], turns, reach=1.0)
    ticks = [tick / 8 + 1 / 16 for tick in range(80)]
    for (start, end), speaker in zip(spans, found, strict=True):
        shares = {
            name: sum(
                start < tick < end and any(t.start < tick < t.end for t in turns if t.speaker == name) for tick in ticks
            )
            for name in "ABC"
        }
        distances = {
            name: min((max(0.0, t.start - end, start - t.end) for t in turns if t.speaker == name), default=99.0)
            for name in "ABC"
        }
        if max(shares.values()):
            assert speaker is not None and shares[speaker] == max(shares.values())
        elif min(distances.values()) <= 1.0:
            assert speaker is not None and distances[speaker] == min(distances.values())
        else:
            assert speaker is None


def test_a_long_recording_takes_seconds_and_little_memory() -> None:
    """60,000 words and 10,000 turns: all against all would be 5 GB."""
    chance = random.Random(1)
    turns = [Turn(f"S{chance.randrange(6)}", i * 2.0, i * 2.0 + 2.2) for i in range(10_000)]
    words = [make_word(i / 3, i / 3 + 0.25) for i in range(60_000)]
    begun = time.monotonic()
    found = assign_speakers(words, turns)
    assert time.monotonic() - begun < 10
    assert found[3] == turns[0].speaker and found[-3] == turns[-1].speaker


def test_the_transcript_replaces_the_empty_one_and_what_was_found_stays() -> None:
    words = (make_word(0.0, 0.4, "Hello,"), make_word(0.5, 0.9, "you."), make_word(1.2, 1.5, "Hi!"))
    turns = (Turn("A", 0.0, 1.0), Turn("B", 1.1, 1.6))
    engine = SpeakerAssigner()
    document = Document((), media="talk", heard=words, turns=turns, languages=("eng",), seconds=2.0)
    model: object = engine.load()  # type: ignore[func-returns-value]
    assert engine.split(JOB, document) == [] and model is None
    result = engine.join(JOB, document, [], [])
    assert [(u.speaker, u.text, u.start, u.end) for u in result.utterances] == [
        ("A", "Hello, you.", 0.0, 0.9), ("B", "Hi!", 1.2, 1.5)
    ]  # fmt: skip
    assert (result.heard, result.turns, result.languages, result.video) == (words, turns, ("eng",), False)
    assert engine.join(JOB, Document((), media="talk"), [], []).utterances == ()


def test_threads_do_not_change_who_said_what() -> None:
    words = [make_word(i / 3, i / 3 + 0.25) for i in range(5000)]
    turns = [Turn(f"S{i % 5}", i * 0.7, i * 0.7 + 1.1) for i in range(2000)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(assign_speakers(words, turns))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{"pause": 0.0}, {"pause": float("nan")}, {"reach": -1.0}])
def test_options_without_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(LoadError, match=r"assign: (pause|reach) must be a number of seconds"):
        SpeakerAssigner(**options)


def test_settings_are_in_the_fingerprint() -> None:
    assert SpeakerAssigner().fingerprint() != SpeakerAssigner(pause=1.0).fingerprint()
