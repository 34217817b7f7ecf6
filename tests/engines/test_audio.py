"""The audio reader: a span is the same samples however it is reached."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
import pytest

from prefork.engines.audio import reader as audio
from prefork.engines.audio import sample_stream
from prefork.engines.audio.container import open_stream
from prefork.engines.audio.reader import SAMPLE_RATE, AudioError, AudioReader, Selection, probe, read_audio
from tests.engines.audio_files import Sound, make_sound, write_audio

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

pytestmark = pytest.mark.dependencies

REPOSITORY = Path(__file__).resolve().parents[2]
SPEECH = REPOSITORY.parent / "shared" / "data" / "speech"
SECONDS = 12.0

# file name, codec, sample format (None: the encoder's own), rates
Row = tuple[str, str, str | None, tuple[int, ...]]
LOSSLESS: list[Row] = [
    ("a.wav", "pcm_u8", None, (8000, 11025)),
    ("a.wav", "pcm_s16le", None, (8000, 11025, 16000, 22050, 44100, 48000)),
    ("a.wav", "pcm_s24le", None, (16000, 44100)),
    ("a.wav", "pcm_f32le", None, (16000, 48000)),
    ("a.flac", "flac", "s16", (8000, 11025, 16000, 22050, 44100, 48000)),
    ("a.flac", "flac", "s32", (16000, 48000)),
    ("a.ogg", "flac", "s16", (16000, 44100)),
    ("a.m4a", "alac", None, (16000, 44100)),
    ("a.mov", "pcm_s16le", None, (16000, 48000)),
    ("a.mkv", "pcm_s16le", None, (44100,)),
    ("a.mkv", "flac", "s16", (16000, 44100)),
]
LOSSY: list[Row] = [
    ("a.mp3", "libmp3lame", None, (8000, 16000, 22050, 44100, 48000)),
    ("a.mp4", "libmp3lame", None, (44100,)),
    ("a.mkv", "libmp3lame", None, (44100,)),
    ("a.m4a", "aac", None, (11025, 16000, 44100, 48000)),
    ("a.mp4", "aac", None, (48000,)),
    ("a.mkv", "aac", None, (44100,)),
    ("a.aac", "aac", None, (44100,)),
    ("a.ts", "aac", None, (44100,)),
    ("a.ogg", "vorbis", None, (16000, 44100)),
    ("a.webm", "vorbis", None, (48000,)),
    ("a.opus", "libopus", None, (16000, 48000)),
    ("a.ogg", "libopus", None, (48000,)),
    ("a.webm", "libopus", None, (48000,)),
]
# These streams say nothing of the encoder's delay: their sound comes later by it.
LATE = {"a.aac", "a.ts"}


def _spread(table: list[Row]) -> list[object]:
    return [
        pytest.param(name, codec, form, rate, id=f"{codec}{'-' + form if form else ''}-{rate}.{name[2:]}")
        for name, codec, form, rates in table
        for rate in rates
    ]


def _read(path: Path, start: float, end: float) -> Sound:
    with AudioReader(path) as reader:
        return reader.read(start, end)


def _lag(heard: Sound, meant: Sound, reach: int = 40) -> int:
    """By how many samples `heard` is late, as the correlation says."""
    inner = meant[reach:-reach]
    scores = [heard[at : at + inner.size] @ inner for at in range(2 * reach + 1)]
    return int(np.argmax(scores)) - reach


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "form", "rate"), _spread(LOSSLESS + LOSSY))
def test_span_reached_by_seeking_is_bit_equal_to_the_full_decode(
    tmp_path: Path, name: str, codec: str, form: str | None, rate: int
) -> None:
    sound = make_sound(SECONDS, rate, 2 if codec in ("vorbis", "alac") else 1)
    path = write_audio(tmp_path / name, sound, rate, codec, sample_format=form)
    whole = _read(path, 0, math.inf)
    assert abs(whole.size / SAMPLE_RATE - SECONDS) < 0.12  # an encoder may pad its last frame
    for start, end in [(7.0, 8.0), (3.1234, 3.5), (9.00007, 10.5), (11.2, 99.0), (0.0, 0.7)]:
        span = whole[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        assert np.array_equal(_read(path, start, end), span), f"{start} to {end} s"


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "flac"])
def test_lossless_samples_at_16_khz_are_those_of_the_source(tmp_path: Path, codec: str) -> None:
    sound = make_sound(3, SAMPLE_RATE)
    path = write_audio(tmp_path / ("a.flac" if codec == "flac" else "a.wav"), sound, SAMPLE_RATE, codec)
    step = {"pcm_u8": 2**-7, "pcm_f32le": 0, "pcm_s24le": 2**-22}.get(codec, 2**-15)
    assert np.abs(_read(path, 0, math.inf) - sound[0]).max() <= step / 2


@pytest.mark.parametrize(
    ("name", "codec", "form", "rate"), _spread([row for row in LOSSLESS + LOSSY if row[0] not in LATE])
)
def test_sound_is_at_its_time_in_the_source(tmp_path: Path, name: str, codec: str, form: str | None, rate: int) -> None:
    sound = make_sound(4, rate, 2 if codec in ("vorbis", "alac") else 1)
    reference = write_audio(tmp_path / "reference.wav", sound, rate, "pcm_f32le")
    path = write_audio(tmp_path / name, sound, rate, codec, sample_format=form)
    assert _lag(_read(path, 1, 3), _read(reference, 1, 3)) == 0


def test_consecutive_spans_join_to_the_full_decode(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.mp3", make_sound(SECONDS, 44100, 2), 44100, "libmp3lame")
    edges = [0, 0.00001, 1.5, 1.50004, 4.0, 9.7, 99.0]
    with AudioReader(path) as reader:
        parts = [reader.read(start, end) for start, end in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), _read(path, 0, math.inf))


def test_spans_in_any_order_from_one_reader_are_those_of_the_full_decode(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.m4a", make_sound(SECONDS, 44100), 44100, "aac")
    whole = _read(path, 0, math.inf)
    starts = np.random.default_rng(7).uniform(0, SECONDS, 12)
    with AudioReader(path) as reader:
        for start in starts:
            first = round(start * SAMPLE_RATE)
            assert np.array_equal(reader.read(start, start + 1), whole[first : round((start + 1) * SAMPLE_RATE)])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mkv", "a.mp3"])
def test_span_beyond_the_end_is_short_or_empty(tmp_path: Path, name: str) -> None:
    codec = {"a.wav": "pcm_s16le", "a.mp3": "libmp3lame"}.get(name, "flac")
    path = write_audio(tmp_path / name, make_sound(6, 16000), 16000, codec)
    with AudioReader(path) as reader:
        assert reader.read(5.5, 7).size == SAMPLE_RATE // 2
        assert reader.read(30, 31).size == 0
        assert reader.read(100, 101).size == 0
        assert reader.read(5, 6).size == SAMPLE_RATE


def test_span_that_runs_backwards_is_refused(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", make_sound(1, 8000), 8000, "pcm_s16le")
    with AudioReader(path) as reader:
        for start, end in [(0.5, 0.2), (-1, 1), (math.nan, 1), (math.inf, math.inf)]:
            with pytest.raises(ValueError, match="start <= end"):
                reader.read(start, end)


@pytest.mark.parametrize(("channels", "name", "codec"), [(2, "a.wav", "pcm_s16le"), (6, "a.flac", "flac")])
def test_channels_are_averaged(tmp_path: Path, channels: int, name: str, codec: str) -> None:
    sound = make_sound(2, SAMPLE_RATE, channels)
    path = write_audio(tmp_path / name, sound, SAMPLE_RATE, codec)
    assert np.abs(_read(path, 0, 2) - sound.mean(axis=0)).max() < 2**-14


def test_equal_channels_mix_to_either_of_them_bit_for_bit(tmp_path: Path) -> None:
    sound = make_sound(2, 44100)
    mono = write_audio(tmp_path / "mono.wav", sound, 44100, "pcm_s16le")
    stereo = write_audio(tmp_path / "stereo.wav", np.repeat(sound, 2, axis=0), 44100, "pcm_s16le")
    assert np.array_equal(_read(mono, 0, 2), _read(stereo, 0, 2))


def test_eight_planar_channels_are_read(tmp_path: Path) -> None:
    # PyAV 18.1 reads wild memory there: it looks for more planes behind the eighth (and cannot write them).
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((8, 2, 48000, 0, "NONE", ""))
        sound = np.round(make_sound(2, 48000, 8) * 32767).astype("<i2")
        file.writeframes(sound.T.tobytes())
    path = _transcode(tmp_path / "a.wav", tmp_path / "a.opus", "libopus", "7.1")
    assert probe(path).channels == 8
    assert _lag(_read(path, 0.5, 1.5), _read(tmp_path / "a.wav", 0.5, 1.5)) == 0


def _transcode(source: Path, target: Path, codec: str, layout: str) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = cast("AudioStream", new.add_stream(codec, rate=old.streams.audio[0].rate))
        stream.codec_context.layout = layout
        for frame in old.decode(audio=0):
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    return target


def test_three_hour_mark_is_read_at_once_and_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    mark = np.round(make_sound(10, 16000) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 3 * 3600 * 16000 + mark.size, "NONE", ""))
        file.writeframesraw(b"")
        file._ensure_header_written(mark.nbytes)  # type: ignore[attr-defined]
    with path.open("r+b") as data:  # three hours of silence as a hole in the file
        data.seek(44 + 3 * 3600 * 16000 * 2)
        data.write(mark.tobytes())
    code = (
        "import resource, sys, time; from prefork.engines.audio.reader import read_audio\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "read_audio(sys.argv[1], 0, 1); before = peak(); start = time.perf_counter()\n"
        "samples = read_audio(sys.argv[1], 10800, 10810)\n"
        "print(samples.size, round(float(abs(samples).sum()), 2), peak() - before, time.perf_counter() - start)"
    )
    size, total, megabytes, seconds = _python(code, str(path)).split()
    assert int(size) == mark.size
    assert float(total) == pytest.approx(np.abs(mark / 2**15).sum(), abs=0.1)
    assert float(megabytes) < 10
    assert float(seconds) < 2


def test_import_brings_no_torch_and_no_resampler_threads(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.m4a", make_sound(3, 44100, 2), 44100, "aac")
    code = (
        "import os, sys, numpy; threads = lambda: len(os.listdir('/proc/self/task')); before = threads()\n"
        "from prefork.engines.audio.reader import read_audio\n"
        "print(read_audio(sys.argv[1], 0, 2).size, threads() - before, 'torch' in sys.modules)"
    )
    assert _python(code, str(path)).split() == ["32000", "0", "False"]


def _python(code: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return run.stdout


def test_one_reader_stays_open_between_spans_of_a_file(tmp_path: Path, opened: Callable[[], int]) -> None:
    one = write_audio(tmp_path / "one.flac", make_sound(3, 16000, seed=1), 16000, "flac")
    two = write_audio(tmp_path / "two.flac", make_sound(3, 16000, seed=2), 16000, "flac")
    whole = _read(one, 0, 3)
    before = opened()
    parts = [read_audio(one, start, start + 1) for start in (0, 1, 2)]
    assert opened() == before + 1
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(read_audio(two, 0, 1), parts[0])
    assert opened() == before + 2
    assert len([link for link in _open_files() if link.parent == tmp_path]) == 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many readers were opened."""
    count = 0

    class Counted(AudioReader):
        def __init__(self, path: Path | str, selection: Selection | None = None) -> None:
            nonlocal count
            count += 1
            super().__init__(path, selection)

    monkeypatch.setattr(audio, "AudioReader", Counted)
    return lambda: count


def _open_files() -> list[Path]:
    folder = Path("/proc/self/fd")
    return [entry.readlink() for entry in folder.iterdir() if entry.is_symlink() and entry.exists()]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no file that is open")
def test_file_written_anew_is_opened_anew(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.flac", make_sound(2, 16000, seed=1), 16000, "flac")
    old = read_audio(path, 0, 1)
    write_audio(path, make_sound(2, 16000, seed=2), 16000, "flac")
    assert not np.array_equal(read_audio(path, 0, 1), old)
    path.unlink()
    with pytest.raises(AudioError, match="No such file"):
        read_audio(path, 0, 1)


def test_recording_that_failed_once_fails_again(tmp_path: Path) -> None:
    parts = [write_audio(tmp_path / f"{rate}.mp3", make_sound(3, rate), rate, "libmp3lame") for rate in (44100, 48000)]
    path = tmp_path / "joined.mp3"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for _ in range(2):
        with pytest.raises(AudioError, match="changes its sample rate"):
            read_audio(path, 0, 9)


def test_child_does_not_read_on_with_its_parents_reader(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", make_sound(20, 48000), 48000, "pcm_s16le")
    whole = _read(path, 0, 20)
    read_audio(path, 0, 1)
    child = os.fork()
    if child == 0:
        good = all(np.array_equal(read_audio(path, t, t + 1), _span(whole, t)) for t in (1, 2, 15))
        os._exit(0 if good else 1)
    for start in (1, 2, 3, 4):
        assert np.array_equal(read_audio(path, start, start + 1), _span(whole, start))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _span(whole: Sound, start: float) -> Sound:
    return whole[round(start * SAMPLE_RATE) : round((start + 1) * SAMPLE_RATE)]


@pytest.mark.skipif(not SPEECH.is_dir(), reason="needs ../shared/data/speech")
def test_real_speech_reads_alike_whole_and_in_segments() -> None:
    for path in sorted(SPEECH.glob("*.flac"))[:4]:
        seconds = probe(path).seconds
        whole = _read(path, 0, math.inf)
        assert whole.size == round(seconds * SAMPLE_RATE)
        for start in np.arange(0, seconds, 9.7)[::-1]:
            first = round(start * SAMPLE_RATE)
            assert np.array_equal(
                read_audio(path, start, start + 9.7), whole[first : round((start + 9.7) * SAMPLE_RATE)]
            )


def test_dts_in_a_wav_is_not_taken_for_noise(tmp_path: Path) -> None:
    size = 2012  # bytes of a frame: a header as ETSI TS 102 114 has it, stereo of 44.1 kHz, and noise
    bits = f"{0x7FFE8001:032b}1{31:05b}0{15:07b}{size - 1:014b}{2:06b}{8:04b}{24:05b}".ljust(112, "0")
    noise = np.random.default_rng(0).integers(0, 256, (60, size - 14), dtype=np.uint8)
    frames = b"".join(int(bits, 2).to_bytes(14, "big") + bytes(frame) for frame in noise)
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(frames)
    container, stream = open_stream(path)
    with container:
        assert stream.codec_context.codec.id == av.codec.Codec("dca", "r").id


def test_a_short_recording_is_opened_once_and_what_was_read_of_it_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def open_counted(path: Path, track: int | None = None) -> object:
        opened.append(path)
        return open_stream(path, track)

    monkeypatch.setattr(sample_stream, "open_stream", open_counted)
    path = write_audio(tmp_path / "a.wav", make_sound(8.0, 48_000), 48_000, "pcm_s16le")
    whole = read_audio(path, 0, math.inf)
    for start, end in ((0.0, 8.0), (1.0, 3.5), (7.0, 99.0), (8.0, math.inf)):
        found = read_audio(path, start, end)
        last = len(whole) if math.isinf(end) else round(end * SAMPLE_RATE)
        assert np.array_equal(found, whole[round(start * SAMPLE_RATE) : last])
        found[:] = 0  # the caller's own
    assert np.array_equal(read_audio(path, 0, math.inf), whole)
    assert len(opened) == 1
