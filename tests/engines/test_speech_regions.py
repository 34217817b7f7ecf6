"""Where recordings are cut: energy tracks made here, and real speech."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.audio.speech_regions import (
    FRAME,
    LONGEST,
    OVERLAP,
    Levels,
    SpeechSpan,
    find_loudest,
    find_quiet,
    measure_levels,
    plan_spans,
    read_levels,
)

LOUD, QUIET = -25.0, -55.0  # dB


def make_levels(*parts: tuple[float, float], seed: int = 0) -> Levels:
    """parts: (seconds, dB); what is loud goes up and down as speech does, what is quiet is steady."""
    random = np.random.default_rng(seed)
    tracks = []
    for seconds, level in parts:
        count = round(seconds / FRAME)
        syllables = np.sin(np.arange(count) * FRAME * 2 * np.pi * 4) * 10 if level > QUIET else 0.0
        tracks.append(level + syllables + random.normal(0, 0.5, count))
    return np.concatenate(tracks).astype(np.float32)


def plan(levels: Levels) -> list[SpeechSpan]:
    return plan_spans(levels, len(levels) * FRAME)


def test_short_recording_is_one_span_without_the_silence_around_it() -> None:
    [span] = plan(make_levels((2.0, QUIET), (6.0, LOUD), (3.0, QUIET)))
    assert span.start == pytest.approx(1.7, abs=0.1)
    assert span.end == pytest.approx(8.3, abs=0.1)


def test_spans_are_cut_at_the_longest_pause_within_reach() -> None:
    levels = make_levels((18, LOUD), (0.8, QUIET), (7, LOUD), (0.4, QUIET), (12, LOUD))
    first, second = plan(levels)
    assert first.start == 0.0
    assert first.end == pytest.approx(18.3, abs=0.15)
    assert second.start == pytest.approx(18.5, abs=0.15)
    assert second.end == pytest.approx(38.2, abs=0.03)
    assert not second.overlaps


def test_without_a_pause_spans_overlap() -> None:
    spans = plan(make_levels((100, LOUD)))
    assert [span.overlaps for span in spans] == [False] + [True] * (len(spans) - 1)
    for last, span in itertools.pairwise(spans):
        assert last.end - span.start == pytest.approx(OVERLAP, abs=0.01)
    assert spans[-1].end == pytest.approx(100)


def test_long_pause_is_left_out_and_a_short_one_is_kept() -> None:
    long = plan(make_levels((5, LOUD), (20, QUIET), (5, LOUD)))
    short = plan(make_levels((5, LOUD), (3, QUIET), (5, LOUD)))
    assert [(round(s.start), round(s.end)) for s in long] == [(0, 5), (25, 30)]
    assert len(short) == 1


@pytest.mark.parametrize("seed", range(20))
def test_everything_loud_is_in_a_span_and_no_span_is_too_long(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [(random.uniform(0.5, 20), LOUD) if i % 2 else (random.exponential(1.5), QUIET) for i in range(60)]
    levels = make_levels(*parts, seed=seed)
    spans = plan(levels)
    covered = np.zeros(len(levels), bool)
    for span in spans:
        assert 0 <= span.start < span.end <= len(levels) * FRAME
        assert span.end - span.start <= LONGEST + FRAME
        covered[round(span.start / FRAME) : round(span.end / FRAME)] = True
    assert covered[levels > LOUD].all()
    for last, span in itertools.pairwise(spans):
        assert span.overlaps or span.start >= last.end


def test_nothing_recorded_has_no_spans() -> None:
    assert plan(np.full(3000, -120, np.float32)) == []
    assert plan_spans(np.zeros(0, np.float32), 0.0) == []


def test_steady_noise_is_not_heard_unless_it_is_too_short_to_tell() -> None:
    assert plan(make_levels((60, QUIET))) == []
    assert plan(make_levels((3, QUIET))) == [SpeechSpan(0.0, 3.0)]


def test_quiet_voice_after_a_loud_one_is_heard() -> None:
    levels = make_levels((20, -20), (30, -75), (5, -50), (30, -75))
    assert any(span.start <= 50.5 and span.end >= 54.5 for span in plan(levels))


def test_muted_stretches_do_not_make_noise_of_the_rest_speech() -> None:
    quiet = find_quiet(make_levels((8, -110), (10, QUIET), (8, -110)))
    assert quiet.all()


@pytest.mark.parametrize("level", [-70.0, -80.0, -90.0])
@pytest.mark.parametrize("seconds", [2.0, 8.0])
def test_quiet_recording_of_floats_is_speech(level: float, seconds: float) -> None:
    levels = make_levels((4.0, level - 30), (seconds, level), (4.0, level - 30))
    levels[100:-100] += np.where(np.arange(len(levels) - 200) % 25 < 15, 8, -8)
    [span] = plan(levels)
    assert span.start <= 4.0 and span.end >= 4.0 + seconds


@pytest.mark.parametrize("seconds", [3.0, 60.0])
@pytest.mark.parametrize("level", [-98.0, -110.0, -120.0])
def test_rounding_is_no_speech(seconds: float, level: float) -> None:
    assert plan(make_levels((seconds, level))) == []


def test_spans_of_late_sound_are_those_of_the_sound_alone() -> None:
    levels = make_levels((0.4, QUIET), (6.0, LOUD), (30.0, QUIET), (5.0, LOUD))
    levels[:10] = -120
    late = np.concatenate([np.full(500, -120, np.float32), levels])
    moved = [(round(span.start + 10, 3), round(span.end + 10, 3)) for span in plan(levels)]
    assert [(span.start, span.end) for span in plan(late)] == moved


def test_levels_are_those_of_the_whole_recording(shared: Path) -> None:
    path = shared / "data" / "speech" / "adult00.flac"  # 64 s: three blocks
    levels, seconds = read_levels(path)
    whole = read_audio(path, 0.0, float("inf"))
    assert seconds == len(whole) / SAMPLE_RATE
    assert np.array_equal(levels, measure_levels([whole]))


def test_an_offset_is_no_sound() -> None:
    assert (measure_levels([np.full(16_000, 0.5, np.float32)]) < -100).all()


def test_loudest_spans_are_those_with_most_speech() -> None:
    levels = make_levels((3, LOUD), (10, QUIET), (9, LOUD), (10, QUIET), (6, LOUD))
    spans = plan(levels)
    assert find_loudest(levels, spans, 2) == spans[1:]
