"""Utterances without times, looked for with the embedded model in real recordings."""

from __future__ import annotations

import json
import pickle
import wave
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefork.engines.alignment.recovery import FoundPlace, give_times, is_roomy
from prefork.engines.alignment.sparse_alignment import FIRST, FLOOR, QUIET, find_units
from prefork.engines.base import Job, Segment
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.ctc.recovery import CTCRecovery
from prefork.engines.text import formats
from prefork.engines.text.document import Document, RecoveryCounts, Utterance, Word

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SPEECH = SHARED / "data" / "speech"
ALPHABET = Utterance("", (Word("abcdefghijklmnopqrstuvwxyz'"),))  # so that other texts can be looked for as well


@dataclass(frozen=True)
class Heard:
    """A recording, its untimed transcript, where its utterances are (seconds), and what the model made of it."""

    engine: CTCRecovery
    job: Job
    document: Document
    truth: list[tuple[float, float]]
    segments: list[Segment]
    pieces: list[Any]

    def recover(self, *utterances: Utterance) -> Document:
        return self.engine.join(self.job, Document(utterances), self.segments, self.pieces)


@pytest.fixture(scope="module")
def engine() -> CTCRecovery:
    engine = CTCRecovery()
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def model(engine: CTCRecovery) -> Any:
    return engine.load()


@torch.inference_mode()
def listen(engine: CTCRecovery, model: Any, job: Job, document: Document) -> tuple[list[Segment], list[Any]]:
    """As a run does it: what goes from step to step is pickled."""
    segments = pickle.loads(pickle.dumps(engine.split(job, document)))
    outputs = [engine.infer(model, [engine.prepare(job, segment)])[0] for segment in segments]
    pieces = [engine.finish(job, *pair) for pair in zip(segments, outputs, strict=True)]
    return segments, pickle.loads(pickle.dumps(pieces))


@pytest.fixture(scope="module")
def adult(engine: CTCRecovery, model: Any) -> Heard:
    if not SPEECH.is_dir():
        pytest.skip("needs ../shared/data/speech, recordings with the times of their utterances")
    truth = json.loads((SPEECH / "truth.json").read_text(encoding="utf-8"))["adult00"]["utterances"]
    job = Job("adult00", SPEECH / "untimed" / "adult00.cha", SPEECH / "adult00.flac")
    document = formats.read(job.source)
    steps = listen(engine, model, job, Document((*document.utterances, ALPHABET)))
    times = [(u["start_ms"] / 1000, u["end_ms"] / 1000) for u in truth]
    return Heard(engine, job, document, times, *steps)


def make_utterance(text: str, start: float | None = None, end: float | None = None) -> Utterance:
    return Utterance(text, tuple(Word(word) for word in text.split()), None, start, end)


def assert_within(utterance: Utterance, truth: tuple[float, float]) -> None:
    """truth: of a stretch that begins and ends with silence."""
    assert utterance.start is not None and utterance.end is not None and not utterance.missing
    assert truth[0] - 0.1 <= utterance.start < utterance.end <= truth[1] + 0.1
    assert utterance.end - utterance.start > 0.4 * (truth[1] - truth[0])


def test_every_utterance_is_found_where_it_is(adult: Heard) -> None:
    document = adult.recover(*adult.document.utterances)
    for utterance, truth in zip(document.utterances, adult.truth, strict=True):
        assert_within(utterance, truth)
    assert all((a.end or 0) <= (b.start or 0) for a, b in pairwise(document.utterances))
    assert document.seconds == pytest.approx(63.92, abs=0.01)


def test_what_the_model_heard_is_small_and_does_not_depend_on_the_windows(adult: Heard, model: Any) -> None:
    assert all(len(pickle.dumps(piece)) < 8_000 for piece in adult.pieces)
    assert sum(piece.frames for piece in adult.pieces) == pytest.approx(63.92 / 0.02, abs=2)
    ends = [segment.content.first + piece.frames for segment, piece in zip(adult.segments, adult.pieces, strict=True)]
    assert [segment.content.first for segment in adult.segments[1:]] == ends[:-1]


def test_text_that_nobody_says_gets_no_times_and_costs_its_neighbours_nothing(adult: Heard) -> None:
    false = make_utterance("quarterly figures disappointed most investors in Tokyo")
    lines = adult.document.utterances
    document = adult.recover(*lines[:4], false, false, *lines[4:])
    assert [u.missing for u in document.utterances] == [False] * 4 + [True] * 2 + [False] * 6
    assert document.utterances[4].start is None and document.utterances[4].end is None
    for utterance, truth in zip([*document.utterances[:4], *document.utterances[6:]], adult.truth, strict=True):
        assert_within(utterance, truth)
    assert sum("not found in the recording" in warning for warning in document.warnings) == 2


def test_speech_that_the_transcript_lacks_is_passed_over(adult: Heard) -> None:
    document = adult.recover(*adult.document.utterances[:2], *adult.document.utterances[7:])
    for utterance, truth in zip(document.utterances, [*adult.truth[:2], *adult.truth[7:]], strict=True):
        assert_within(utterance, truth)


def test_one_utterance_alone_is_found(adult: Heard) -> None:
    assert_within(adult.recover(adult.document.utterances[6]).utterances[0], adult.truth[6])


def test_the_transcript_of_another_recording_gets_no_times(adult: Heard) -> None:
    other = formats.read(SPEECH / "untimed" / "adult07.cha")
    document = adult.recover(*other.utterances)
    assert all(u.missing and u.start is None for u in document.utterances)
    assert f"{len(other.utterances)} of {len(other.utterances)} utterances were not found" in document.warnings[-1]


def test_times_in_the_transcript_are_kept_and_lead_the_search(adult: Heard) -> None:
    lines = list(adult.document.utterances)
    for index in (0, 3, 4):
        lines[index] = replace(lines[index], start=adult.truth[index][0], end=adult.truth[index][1])
    document = adult.recover(*lines)
    assert [document.utterances[i] for i in (0, 3, 4)] == [lines[i] for i in (0, 3, 4)]
    for utterance, truth in zip(document.utterances, adult.truth, strict=True):
        assert_within(utterance, truth)
    # The same line twice, one of them with times: the other is not looked for there.
    twice = adult.recover(lines[0], make_utterance(lines[0].text))
    assert twice.utterances[1].missing


def test_a_transcript_with_all_its_times_is_left_alone(adult: Heard) -> None:
    timed = [replace(u, start=a, end=b) for u, (a, b) in zip(adult.document.utterances, adult.truth, strict=True)]
    document = Document((replace(timed[0], end=9.0), *timed[1:]))  # overlaps the second
    assert adult.engine.split(adult.job, document) == []
    joined = adult.engine.join(adult.job, document, [], [])
    assert (joined.utterances, joined.warnings) == (document.utterances, ())
    assert joined.recovery == RecoveryCounts(timed=len(timed))


def test_only_windows_with_utterances_to_find_are_listened_to(adult: Heard) -> None:
    timed = [replace(u, start=a, end=b) for u, (a, b) in zip(adult.document.utterances, adult.truth, strict=True)]
    document = Document((replace(timed[0], start=None, end=None), *timed[1:]))
    assert len(adult.engine.split(adult.job, document)) == 1 < len(adult.segments)


def test_reversed_times_are_looked_for_again_and_said(adult: Heard) -> None:
    lines = list(adult.document.utterances)
    lines[2] = replace(lines[2], start=30.0, end=20.0)
    document = adult.recover(*lines)
    assert_within(document.utterances[2], adult.truth[2])
    assert any("utterance 3" in warning and "reversed" in warning for warning in document.warnings)


def test_words_in_another_script_are_timed_only_between_neighbours(adult: Heard) -> None:
    foreign, lines = make_utterance("\u4f60\u597d \u4e16\u754c"), list(adult.document.utterances)
    for place in (4, 6):
        document = adult.recover(*lines[:place], foreign, *lines[place + 1 :])
        assert_within(document.utterances[place], adult.truth[place])
    two = adult.recover(*lines[:4], foreign, foreign, *lines[6:])  # which of the two it is, nobody knows
    assert [u.missing for u in two.utterances[4:6]] == [True, True]
    nothing = adult.recover(*lines[:5], foreign, *lines[5:])  # no speech between these neighbours
    assert nothing.utterances[5].missing and nothing.utterances[5].start is None
    alone = adult.recover(foreign, foreign)
    assert all(u.missing and u.start is None for u in alone.utterances)


def test_neighbours_times_that_leave_no_room_or_overlap_do_not_hide_an_utterance(adult: Heard) -> None:
    lines = [replace(u, start=a, end=b) for u, (a, b) in zip(adult.document.utterances, adult.truth, strict=True)]
    lines[2] = adult.document.utterances[2]
    late, early = replace(lines[1], end=12.0), replace(lines[3], start=adult.truth[2][0] + 0.2)
    for document in (
        adult.recover(*lines[:3], early, *lines[4:]),
        adult.recover(replace(lines[0], end=12.0), replace(late, start=4.0), *lines[2:]),
    ):
        assert_within(document.utterances[2], adult.truth[2])
    false = make_utterance("quarterly figures disappointed")
    assert adult.recover(*lines[:1], false, *lines[1:]).utterances[1].missing


def test_fifty_short_utterances_that_nobody_says_get_no_times(adult: Heard) -> None:
    lines = adult.document.utterances
    document = adult.recover(*lines[:5], *[make_utterance("yeah")] * 50, *lines[5:])
    assert all(u.missing for u in document.utterances[5:55])
    for utterance, truth in zip([*document.utterances[:5], *document.utterances[55:]], adult.truth, strict=True):
        assert_within(utterance, truth)


def test_a_transcript_ten_times_as_long_as_fits_gets_no_more_than_is_there(adult: Heard) -> None:
    false = [make_utterance(f"quarterly figures of company {name} disappointed investors") for name in "abcdefghij" * 9]
    document = adult.recover(*false[:45], *adult.document.utterances, *false[45:])
    for utterance, truth in zip(document.utterances[45:55], adult.truth, strict=True):
        assert_within(utterance, truth)
    assert sum(u.start is not None for u in document.utterances) == 10


def test_a_line_said_once_and_written_fifty_times_is_not_found_fifty_times(adult: Heard) -> None:
    document = adult.recover(*[adult.document.utterances[5]] * 50)
    found = [u for u in document.utterances if u.start is not None]
    assert len(found) == 1
    assert_within(found[0], adult.truth[5])


@pytest.mark.parametrize("seconds", [0.2, 40.0])
def test_silence_holds_nothing(seconds: float, engine: CTCRecovery, model: Any, tmp_path: Path) -> None:
    media = tmp_path / "talk.wav"
    with wave.open(str(media), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * round(seconds * 16_000)))
    job = Job("talk", tmp_path / "talk.txt", media, seconds=seconds)
    document = Document(tuple(make_utterance(text) for text in ("yeah", "I walked up to my room")))
    document = engine.join(job, document, *listen(engine, model, job, document))
    assert all(u.missing and u.start is None for u in document.utterances)


def test_the_aligner_and_the_recovery_share_one_model(engine: CTCRecovery) -> None:
    aligner, other = CTCAligner(), CTCAligner(dtype="int8")
    aligner.setup()
    other.setup()
    assert engine.identify_model() == aligner.identify_model() != other.identify_model()
    assert engine.fingerprint() != aligner.fingerprint()


def test_too_much_text_for_too_much_speech_with_nothing_in_common_is_given_up() -> None:
    """100 minutes: 300,000 frames and 10,000 characters would be 3,000,000,000 states."""
    chance = np.random.default_rng(6)
    scores = np.full((300_000, FIRST + 26), FLOOR, np.float32)
    scores[:, QUIET] = 0
    heard = np.arange(0, 300_000, 20)
    scores[heard, QUIET] = -1
    scores[heard, FIRST + chance.integers(0, 26, len(heard))] = 0
    units = [list(FIRST + chance.integers(0, 26, 40)) for _ in range(250)]
    assert find_units(scores, units) == [None] * 250


def test_an_utterance_is_found_within_times_that_are_much_wider_than_it(adult: Heard) -> None:
    for margin in (6.0, 15.0, 60.0):
        wide = [
            replace(u, start=max(0.0, a - margin), end=b + margin) if n % 3 == 1 else replace(u, start=a, end=b)
            for n, (u, (a, b)) in enumerate(zip(adult.document.utterances, adult.truth, strict=True))
        ]
        document = adult.recover(*wide)
        for number, (utterance, truth) in enumerate(zip(document.utterances, adult.truth, strict=True)):
            assert_within(utterance, truth)
            assert number % 3 == 1 or utterance == wide[number]
        assert document.recovery == RecoveryCounts(timed=len(wide))
        assert document.warnings == ()


def test_utterances_that_share_wide_times_are_found_in_their_order(adult: Heard) -> None:
    shared = [replace(u, start=0.0, end=63.0) for u in adult.document.utterances]
    for utterance, truth in zip(adult.recover(*shared).utterances, adult.truth, strict=True):
        assert_within(utterance, truth)


def test_wide_times_stay_where_their_words_are_not_found(adult: Heard) -> None:
    false = make_utterance("quarterly figures disappointed most investors", 10.0, 40.0)
    document = adult.recover(false)
    assert document.utterances == (false,)
    assert document.recovery == RecoveryCounts(timed=1)
    assert "its times are much wider than its words" in document.warnings[0]


@pytest.mark.parametrize(("seconds", "roomy"), [(2.0, False), (6.7, False), (6.9, True), (60.0, True)])
def test_times_are_wide_by_what_words_usually_take(seconds: float, roomy: bool) -> None:
    assert is_roomy(make_utterance("hello there my friend", 5.0, 5.0 + seconds)) is roomy
    assert not is_roomy(make_utterance("hello there my friend")) and not is_roomy(make_utterance("", 5.0, 90.0))


def test_what_is_found_within_the_margin_of_a_timed_utterance_begins_where_that_ends() -> None:
    timed, lost = make_utterance("one", 1.0, 2.4), make_utterance("two")
    document = Document((timed, lost, lost, make_utterance("three", 2.2, 9.0)))
    found = {1: None, 2: FoundPlace(2.0, 3.0, 0.9)}
    given = give_times(document, found, 9.0).utterances
    assert (given[2].start, given[2].end) == (2.4, 3.0)
    assert given[0] == timed and given[1].missing
    within = give_times(document, {1: None, 2: FoundPlace(1.2, 2.0, 0.9)}, 9.0).utterances[2]
    assert (within.start, within.end) == (1.2, 2.0)  # they do overlap


def test_one_utterance_in_one_gap_is_given_up_only_if_it_is_not_there(adult: Heard) -> None:
    """Between timed neighbours, as in a recording of one sentence, there is one place that it can be in."""
    timed = [replace(u, start=a, end=b) for u, (a, b) in zip(adult.document.utterances, adult.truth, strict=True)]
    for index in range(1, len(timed) - 1):
        for other, text in enumerate(adult.document.utterances):
            if abs(other - index) == 1:
                continue  # it may be found where its neighbour is
            found = adult.recover(timed[index - 1], text, timed[index + 1]).utterances[1]
            assert found.missing == (text is not adult.document.utterances[index])
            if not found.missing:
                assert_within(found, adult.truth[index])


def test_a_text_that_reads_the_same_from_back_to_front_is_no_better_than_chance(adult: Heard) -> None:
    document = adult.recover(make_utterance("noon"))
    assert document.utterances[0].missing
