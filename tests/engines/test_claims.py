"""Media that claim: lengths that are not there, files that are no recordings, samples that are no numbers."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefork.engines.audio.container import AudioError
from prefork.engines.audio.reader import AudioReader
from prefork.engines.audio.recording import probe
from prefork.engines.audio.sample_stream import SampleStream
from prefork.engines.base import InputError
from prefork.pool.pipeline import Intake
from prefork.pool.tasks import HangLimit
from prefork.run.corpus import find_jobs
from prefork.work.torch_state import is_out_of_memory
from tests.engines.audio_files import make_sound, write_audio

pytestmark = pytest.mark.dependencies
RATE = 16_000
FORMATS = [
    ("a.wav", "pcm_s16le"),
    ("a.flac", "flac"),
    ("a.mp3", "libmp3lame"),
    ("a.m4a", "aac"),
    ("a.mkv", "flac"),
    ("a.webm", "libopus"),
    ("a.aiff", "pcm_s16be"),
    ("a.ogg", "vorbis"),
    ("a.ts", "aac"),
    ("a.w64", "pcm_s16le"),
    ("a.caf", "pcm_s16be"),
]
STATING = {
    "a.w64",
    "a.caf",
    "a.wav",
    "a.flac",
    "a.mp3",
    "a.m4a",
    "a.mkv",
    "a.webm",
    "a.aiff",
}  # the length, in their header
AGAIN = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _measure(path: Path) -> float:
    with AudioReader(path) as reader:
        return len(reader.read(0, float("inf"))) / RATE


@pytest.mark.parametrize(("name", "codec"), FORMATS)
@pytest.mark.parametrize("left", [0.9, 0.3])
def test_what_a_header_claims_is_compared_with_what_is_there(
    tmp_path: Path, name: str, codec: str, left: float
) -> None:
    options = {"movflags": "faststart"} if name == "a.m4a" else {}
    path = write_audio(tmp_path / name, make_sound(40, RATE, 2), RATE, codec, options=options)
    whole = probe(path)
    assert whole.warnings == () and whole.seconds == pytest.approx(40, abs=0.2)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    cut = probe(path)
    assert cut.seconds == pytest.approx(_measure(path), abs=0.3)
    if name in STATING:
        assert cut.claimed == pytest.approx(40, abs=0.2)
        (warning,) = cut.warnings
        assert f"{cut.claimed - cut.seconds:.1f} s of {cut.claimed:.1f} s are missing at its end" in warning


LESS = {  # where a header says how long the sound is: behind these bytes, so many further, in this form
    "a.wav": ("pcm_s16le", b"data", 4, "<I"),
    "a.au": ("pcm_s16be", b".snd", 8, ">I"),
    "a.aiff": ("pcm_s16be", b"COMM", 10, ">I"),
    "a.mp3": ("libmp3lame", b"Info", 8, ">I"),
    "a.mka": ("flac", b"\x44\x89\x88", 3, ">d"),
}


@pytest.mark.parametrize("name", LESS)
def test_a_header_that_promises_less_than_there_is_is_not_believed_either(tmp_path: Path, name: str) -> None:
    codec, mark, place, form = LESS[name]
    path = write_audio(tmp_path / name, make_sound(10, RATE), RATE, codec, codec_options={"b": "32k"})
    data = bytearray(path.read_bytes().replace(b"Xing", b"Info"))
    at = data.index(mark) + place
    (claim,) = struct.unpack_from(form, data, at)
    struct.pack_into(form, data, at, claim / 2 if form == ">d" else claim // 2)
    path.write_bytes(data)
    found = probe(path)
    assert found.claimed == pytest.approx(5, abs=0.1)
    assert found.seconds == pytest.approx(10, abs=0.1)
    assert _measure(path) == pytest.approx(10, abs=0.1)
    assert found.warnings == (
        f"{name}: its header says {found.claimed:.1f} s, but there are {found.seconds:.1f} s: all of them were used",
    )


@pytest.mark.parametrize("behind", [b"LIST\x04\0\0\0abcd", b"levl\xff\xff\0\0" + bytes(9000), bytes(9000), b"xyz"])
def test_what_stands_behind_the_sound_of_a_wav_is_no_sound(tmp_path: Path, behind: bytes) -> None:
    path = write_audio(tmp_path / "a.wav", make_sound(1, RATE), RATE, "pcm_s16le")
    path.write_bytes(path.read_bytes() + behind)
    assert probe(path).seconds == _measure(path) == 1.0
    assert probe(path).warnings == ()


@AGAIN
@given(claim=st.integers(0, 2**32 - 1), seconds=st.floats(0.1, 3))
def test_the_length_of_a_wav_is_what_is_there_whatever_it_claims(tmp_path: Path, claim: int, seconds: float) -> None:
    path = write_audio(tmp_path / "a.wav", make_sound(seconds, RATE), RATE, "pcm_s16le")
    data = path.read_bytes()
    place = data.index(b"data") + 4
    path.write_bytes(data[:place] + struct.pack("<I", claim) + data[place + 4 :])
    try:
        found = probe(path).seconds
    except AudioError:
        assert claim < 2 * RATE  # next to nothing is claimed
    else:
        assert found <= seconds + 1.01


def test_timestamps_that_leap_are_no_length(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=RATE)
        stream.codec_context.layout = "mono"
        for start in (0, 18_000_000 * RATE):
            for at in range(0, 2 * RATE, 1000):
                frame = av.AudioFrame.from_ndarray(np.ones((1, 1000), np.int16), "s16", "mono")
                frame.sample_rate, frame.pts = RATE, start + at
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert probe(path).seconds == pytest.approx(4, abs=0.1)
    assert _measure(path) == pytest.approx(4, abs=0.1)


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:18000000\n#EXTINF:18000000,\nhold.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile hold.ts\nduration 18000000\n",
    "pls": "[playlist]\nFile1=hold.ts\nLength1=18000000\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    "metadata": ";FFMETADATA1\ntitle=x\n",
    "subtitles": "1\n00:00:00,000 --> 5000:00:00,000\nx\n",
}


@pytest.mark.parametrize(("kind", "suffix"), itertools.product(PLAYLISTS, [".wav", ".mp3", ".ts", ".m3u8", ".mp4"]))
def test_what_names_other_files_is_no_recording_whatever_its_own_name(tmp_path: Path, kind: str, suffix: str) -> None:
    write_audio(tmp_path / "hold.ts", make_sound(2, RATE), RATE, "aac")
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind])
    for read in (probe, SampleStream):
        with pytest.raises(AudioError, match=f"list{suffix} (is not a recording|has no audio stream)"):
            read(path)


def test_the_hang_limit_ends_however_much_is_claimed() -> None:
    assert HangLimit().seconds(30.0) == 60 + 600
    assert HangLimit().seconds(18_000_000.0) == 60 + 6 * 3600
    assert HangLimit(base=1e6).seconds(1e9) > 1e6


@AGAIN
@given(
    value=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, -3e38, 1e300]),
    place=st.integers(0, 3 * RATE - 1),
    double=st.booleans(),
)
def test_a_sample_that_no_model_can_compute_with_is_named(
    tmp_path: Path, value: float, place: int, double: bool
) -> None:
    sound = make_sound(3, RATE).astype(np.float64)
    sound[0, place] = value
    with np.errstate(over="ignore"):
        path = write_audio(tmp_path / "a.wav", cast("np.ndarray", sound), RATE, "pcm_f64le" if double else "pcm_f32le")
    time = f"{place / RATE:.3f} s"
    with pytest.raises(AudioError, match=rf"a\.wav holds a sample, at {time}, that is .*; export it again"):
        _measure(path)
    with AudioReader(path) as reader:
        end = max(0, place - 4096) / RATE  # what lies before it can be read
        assert len(reader.read(0, end)) == round(end * RATE)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 32768.0, 2.0**31])
def test_floats_of_any_usual_scale_are_read(tmp_path: Path, scale: float) -> None:
    sound = make_sound(1, RATE) * np.float32(scale)
    path = write_audio(tmp_path / "a.wav", sound, RATE, "pcm_f32le")
    with AudioReader(path) as reader:
        assert np.array_equal(reader.read(0, 1), sound[0])


def test_what_ffmpeg_says_of_memory_is_no_shortage_of_it() -> None:
    assert not is_out_of_memory(av.error.MemoryError(12, "Cannot allocate memory"))
    assert is_out_of_memory(MemoryError())


def test_frames_that_lie_upon_each_other_are_read_once(shared: Path) -> None:
    """FFmpeg's resampler was given what was left of them, which was nothing, and said that memory was short."""
    path = shared / "cases/faults/enomem-webm/absurd.webm"
    assert _measure(path) == pytest.approx(probe(path).seconds, abs=0.01)


def test_a_corpus_takes_the_length_that_is_there_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write_audio(tmp_path / "in" / "a.mp3", make_sound(40, RATE), RATE, "libmp3lame")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (job,) = find_jobs(tmp_path / "in", tmp_path / "out", intake=Intake.RECORDINGS).jobs
    assert job.seconds == pytest.approx(20, abs=0.5)
    assert "s of 40.0 s are missing at its end: it is cut off, copy it again" in job.warnings[0]


def test_samples_that_are_no_numbers_are_named_in_the_case_that_was_found(shared: Path) -> None:
    with pytest.raises(InputError, match=r"wavnan\.wav holds a sample, at .*, that is no number"):
        _measure(shared / "cases/faults/not-finite/wavnan.wav")
