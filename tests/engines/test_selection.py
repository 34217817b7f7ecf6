"""Which sound of a file is read: channels that do not cancel each other, tracks, sound that begins late in a film."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.audio.channels import choose, mix
from prefork.engines.audio.container import AudioError
from prefork.engines.audio.reader import SAMPLE_RATE, AudioReader, Selection, probe, read_audio
from tests.engines.audio_files import Sound, encode, make_sound, write_audio

RATE = 16_000


def read(path: Path, selection: Selection | None = None) -> Sound:
    with AudioReader(path, selection) as reader:
        return reader.read(0, math.inf)


def write_film(path: Path, codec: str, *tracks: tuple[Sound, float], seconds: float = 6.0) -> Path:
    """tracks: each with the time at which it begins."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = [output.add_stream(codec, rate=RATE, layout="mono") for _ in tracks]
        for number in range(round(10 * seconds)):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), "rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 10)
            output.mux(video.encode(picture.reformat(format="yuv420p")))
        output.mux(video.encode(None))
        for stream, (sound, start) in zip(streams, tracks, strict=True):
            assert isinstance(stream, av.AudioStream)
            encode(output, stream, sound, start=round(start * RATE))
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "flac"), ("a.mov", "pcm_s16le"), ("a.ts", "aac")],
)
@pytest.mark.parametrize("delay", [0.0, 2.5])
def test_times_are_those_of_the_film_however_late_its_sound_begins(
    tmp_path: Path, name: str, codec: str, delay: float
) -> None:
    sound = make_sound(3, RATE)
    path = write_film(tmp_path / name, codec, (sound, delay))
    samples, alone = read(path), read(write_audio(tmp_path / f"alone-{name}", sound, RATE, codec))
    late = round(delay * SAMPLE_RATE)
    assert samples.size == pytest.approx(late + alone.size, abs=2500)
    assert probe(path).seconds == pytest.approx(samples.size / SAMPLE_RATE, abs=0.1)
    assert probe(path).warnings == ()
    inner = alone[8000:24000]
    lags = {lag: float(samples[late + 8000 + lag :][:16000] @ inner) for lag in range(-2200, 2200, 4)}
    assert max(lags, key=lambda lag: lags[lag]) == pytest.approx(0, abs=2100)  # of AAC in a stream, its encoder's delay
    if delay:
        assert not samples[: late - 2100].any()
    middle = late / SAMPLE_RATE + 1.0
    assert np.array_equal(read_audio(path, middle, middle + 0.5), samples[round(middle * SAMPLE_RATE) :][:8000])


def test_film_whose_sound_is_late_is_the_one_that_was_found(shared: Path) -> None:
    path = shared / "cases/recordings/late-sound/film.mp4"
    samples = read(path)
    first = int(np.argmax(np.abs(samples) > 0.05)) / SAMPLE_RATE
    assert first == pytest.approx(3.36, abs=0.1)
    assert probe(path).seconds == pytest.approx(6.52, abs=0.05)


SPEECH = make_sound(8, RATE)
OTHER = make_sound(8, RATE, seed=5)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le"])
def test_a_channel_and_its_inverse_are_not_mixed(tmp_path: Path, codec: str) -> None:
    path = write_audio(tmp_path / "a.wav", np.concatenate([SPEECH, -0.9 * SPEECH]), RATE, codec)
    assert np.abs(read(path) - SPEECH[0]).max() < 2**-14
    assert np.array_equal(read(path), read(path, Selection(channels=(1,))))
    assert np.abs(read(path, Selection(channels=(2,))) + 0.9 * SPEECH[0]).max() < 2**-14
    assert np.abs(read(path, Selection(channels=())) - 0.05 * SPEECH[0]).max() < 2**-14
    assert "channels cancel each other out: channel 1 of 2" in probe(path).warnings[0]
    assert probe(path, Selection(channels=())).warnings == ()


@pytest.mark.parametrize(
    "pair", [(SPEECH, SPEECH), (SPEECH, OTHER), (SPEECH, 0 * SPEECH), (SPEECH, -0.9 * SPEECH + 2 * OTHER)]
)
def test_channels_that_do_not_cancel_each_other_are_averaged(tmp_path: Path, pair: tuple[Sound, Sound]) -> None:
    sound = np.concatenate(pair) / 3
    path = write_audio(tmp_path / "a.wav", sound.astype(np.float32), RATE, "pcm_f32le")
    assert np.abs(read(path) - sound.mean(axis=0)).max() < 1e-6
    assert probe(path).warnings == ()


def test_channels_that_cancel_each_other_for_a_part_are_not_mixed_either(tmp_path: Path) -> None:
    half = SPEECH.shape[1] // 2
    second = SPEECH.copy()
    second[:, half:] *= -1
    path = write_audio(tmp_path / "a.wav", np.concatenate([SPEECH, second]), RATE, "pcm_s16le")
    assert np.abs(read(path) - SPEECH[0]).max() < 2**-14


def test_of_long_recordings_places_are_looked_at_that_are_spread_over_it(tmp_path: Path) -> None:
    sound = np.zeros((2, 300 * RATE), np.float32)
    sound[0, 200 * RATE : 260 * RATE] = np.tile(SPEECH[0], 8)[: 60 * RATE]
    sound[1] = -sound[0]
    for name, codec in (("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame")):
        path = write_audio(tmp_path / name, sound, RATE, codec)
        assert probe(path).cancels, name


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**31))
def test_the_loudest_channel_stays_and_what_stays_keeps_its_power(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sources = random.standard_normal((3, 2000))
    weights = random.choice([-1.0, 0.0, 1.0], (count, 3)) * random.uniform(0.2, 1, (count, 1))
    channels = (weights @ sources).astype(np.float32)
    chosen = choose([np.atleast_2d(np.cov(channels, bias=True))])
    kept = channels[[number - 1 for number in chosen]] if chosen else channels
    loudest = np.argmax(channels.var(axis=1))
    assert not chosen or loudest + 1 in chosen
    mixed = mix(channels, chosen)
    assert mixed.var() * 4.2 * len(kept) ** 2 >= kept.var(axis=1).max() * 0.99


def test_case_that_was_found_is_heard(shared: Path) -> None:
    path = shared / "cases/recordings/antiphase/antiphase.flac"
    assert np.abs(read(path)).max() > 0.5
    assert "cancel each other out" in probe(path).warnings[0]


def test_a_silent_track_is_told_of_and_another_can_be_chosen(tmp_path: Path) -> None:
    sound = make_sound(5, RATE)
    path = write_film(tmp_path / "a.mkv", "flac", (0 * sound, 0.0), (sound, 0.0))
    first, second = probe(path), probe(path, Selection(track=2))
    assert first.warnings == ("a.mkv: its track is silent, and it has 2 audio tracks: choose one with --track",)
    assert second.warnings == ()
    assert not read(path).any()
    assert np.abs(read(path, Selection(track=2)) - sound[0]).max() < 2**-14
    with pytest.raises(AudioError, match=r"a\.mkv has 2 audio tracks, not 3; check --track"):
        probe(path, Selection(track=3))
    mono = write_audio(tmp_path / "b.wav", sound, RATE, "pcm_s16le")
    with pytest.raises(AudioError, match=r"b\.wav has 1 channel, not 2; check --channel"):
        probe(mono, Selection(channels=(2,)))
