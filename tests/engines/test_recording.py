"""The recording: what its header says, what is wrong with it, and what damage does to it."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
import pytest
from av.stream import Disposition

from prefork.engines.audio.container import AudioError
from prefork.engines.audio.recording import probe
from prefork.engines.audio.sample_stream import SampleStream, judge
from prefork.engines.base import InputError
from tests.engines.audio_files import Sound, encode, make_sound, write_audio
from tests.prefork.command import SAMPLES

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.video.stream import VideoStream

pytestmark = pytest.mark.dependencies

RATE = 16000


def _read(path: Path, start: int = 0) -> Sound:
    line = SampleStream(path)
    try:
        return np.concatenate([*line.read_from(start), np.zeros(0, np.float32)])
    finally:
        line.close()


FORMATS = [
    ("a.wav", "pcm_s16le"),
    ("a.flac", "flac"),
    ("a.mp3", "libmp3lame"),
    ("a.m4a", "aac"),
    ("a.aac", "aac"),
    ("a.ogg", "vorbis"),
    ("a.opus", "libopus"),
    ("a.webm", "libopus"),
    ("a.mkv", "flac"),
    ("a.ts", "aac"),
]


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_probe_states_the_length_that_is_decoded(tmp_path: Path, name: str, codec: str) -> None:
    path = write_audio(tmp_path / name, make_sound(7.3, 48000, 2), 48000, codec)
    recording = probe(path)
    assert recording.seconds == pytest.approx(_read(path).size / 48000, abs=0.05)
    assert (recording.path, recording.sample_rate, recording.channels) == (path, 48000, 2)


def test_length_of_an_mp3_with_changing_bit_rate_and_no_header_is_counted(tmp_path: Path) -> None:
    quiet, loud = np.zeros((1, 20 * RATE), np.float32), make_sound(5, RATE)
    path = write_audio(
        tmp_path / "a.mp3",
        np.concatenate([quiet, loud], axis=1),
        RATE,
        "libmp3lame",
        codec_options={"abr": "1"},
        options={"write_xing": "0"},
    )
    assert probe(path).seconds == pytest.approx(25, abs=0.15)


def test_length_of_a_live_matroska_is_counted(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.mkv", make_sound(5, RATE), RATE, "flac", options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    assert probe(path).seconds == pytest.approx(5, abs=0.01)


def test_timestamps_that_begin_late_do_not_shift_the_sound(tmp_path: Path) -> None:
    sound = make_sound(8, RATE)
    for name, codec in [("a.mkv", "flac"), ("a.ts", "aac"), ("a.ogg", "vorbis")]:
        channels = np.repeat(sound, 2, axis=0)
        at_zero = write_audio(tmp_path / f"zero-{name}", channels, RATE, codec)
        late = write_audio(tmp_path / f"late-{name}", channels, RATE, codec, start=30 * RATE)
        assert np.array_equal(_read(late), _read(at_zero)), name
        assert probe(late).seconds == pytest.approx(8, abs=0.1), name


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "flac"), ("a.mkv", "libmp3lame"), ("a.ogg", "vorbis")])
def test_gap_in_the_timestamps_is_silence_and_shifts_nothing(tmp_path: Path, name: str, codec: str) -> None:
    sound = make_sound(9, RATE, 2)
    whole = _read(write_audio(tmp_path / f"whole-{name}", sound, RATE, codec))
    path = write_audio(tmp_path / name, sound, RATE, codec, gap=(4 * RATE, 2 * RATE))
    samples = _read(path)
    assert samples.size == pytest.approx(9 * RATE, abs=20)
    if codec == "flac":
        assert not samples[4 * RATE + 1024 : 6 * RATE].any()
    inner = whole[7 * RATE : 8 * RATE]
    lags = [float(samples[7 * RATE + lag : 8 * RATE + lag] @ inner) for lag in range(-20, 21)]
    assert abs(int(np.argmax(lags)) - 20) <= 8  # Matroska's timestamps are good to half a millisecond


# Streams without timestamps: lost frames are lost time.
UNTIMED = {"a.mp3", "a.aac"}


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _garble(data: bytes) -> bytes:
    middle, length = len(data) // 2, len(data) // 20
    return data[:middle] + np.random.default_rng(1).bytes(length) + data[middle + length :]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec"), [*FORMATS, ("fragmented.mp4", "aac")])
def test_truncated_recording_gives_what_is_there(tmp_path: Path, name: str, codec: str) -> None:
    whole, path = _write_then_damage(tmp_path / name, codec, _cut)
    samples = _read(path)
    assert 0.4 < samples.size / whole.size < 0.6
    settled = samples.size - 4096  # a frame that is cut short may decode to anything
    assert np.array_equal(samples[:settled], whole[:settled])


@pytest.mark.parametrize("length", [2735, 6000])
@pytest.mark.parametrize("name", ["adult00", "child15"])
def test_a_recording_cut_off_near_its_start_is_read_as_far_as_it_goes(tmp_path: Path, name: str, length: int) -> None:
    """FFmpeg says EPERM of some: that is damage, not the file's permissions or the disk."""
    path = tmp_path / "a.flac"
    path.write_bytes((SAMPLES / f"{name}.flac").read_bytes()[:length])
    assert 0 < probe(path).seconds < 1
    assert _read(path).size > 0


@pytest.mark.parametrize(("name", "codec"), [row for row in FORMATS if row[0] not in UNTIMED])
def test_damage_in_the_middle_does_not_shift_what_follows(tmp_path: Path, name: str, codec: str) -> None:
    whole, path = _write_then_damage(tmp_path / name, codec, _garble)
    samples = _read(path)
    assert samples.size == pytest.approx(whole.size, abs=60)
    third, tail = whole.size // 3, whole.size // 5
    assert np.array_equal(samples[:third], whole[:third])
    assert not np.array_equal(samples[third : 2 * third], whole[third : 2 * third])
    # Matroska loses a whole cluster, 5 s, and its timestamps are good to half a millisecond.
    lags = range(-24, 25) if name.endswith((".mkv", ".webm")) else [0]
    # The noise that AAC fills bands with depends on how much was decoded before; one sample out of place leaves no two
    # of them alike.
    least = 0.5 if codec == "aac" else 1.0
    assert max(np.mean(samples[-tail + lag : -9600 + lag] == whole[-tail:-9600]) for lag in lags) >= least


def _write_then_damage(path: Path, codec: str, damage: object) -> tuple[Sound, Path]:
    options = {"a.m4a": {"movflags": "faststart"}, "fragmented.mp4": {"movflags": "frag_keyframe+empty_moov"}}
    write_audio(path, make_sound(20, 48000, 2), 48000, codec, options=options.get(path.name))
    whole = _read(path)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    return whole, path


def test_frames_decoded_from_garbage_do_not_crash_the_process(tmp_path: Path) -> None:
    # Bytes missing from an MP4 make the AAC decoder see up to 31 channels, whose planes PyAV cannot list.
    path = write_audio(
        tmp_path / "a.mp4", make_sound(60, RATE), RATE, "aac", options={"movflags": "frag_keyframe+empty_moov"}
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + len(data) // 20 :])
    samples = _read(path)
    assert samples.size > 28 * RATE


def test_seek_into_joined_files_is_not_fooled_by_the_second_ones_clock(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.flac", make_sound(8, RATE), RATE, "flac")
    one = _read(path)
    path.write_bytes(path.read_bytes() * 2)
    assert np.array_equal(_read(path), np.concatenate([one, one]))
    assert np.array_equal(_read(path, 14 * RATE), one[6 * RATE :])


def test_sound_of_a_video_and_of_a_file_with_cover_art_is_found(tmp_path: Path) -> None:
    for name, video_codec in [("film.mp4", "mpeg4"), ("film.mkv", "mpeg4"), ("song.m4a", "png")]:
        path = tmp_path / name
        _write_video(path, video_codec, make_sound(3, RATE))
        assert probe(path).seconds == pytest.approx(3, abs=0.1), name
        assert _read(path).size == pytest.approx(3 * RATE, abs=2048), name


def test_first_of_equal_audio_streams_is_read(tmp_path: Path) -> None:
    sound, other = make_sound(3, RATE, seed=1), make_sound(3, RATE, seed=2)
    path = tmp_path / "two.mov"
    _write_video(path, None, sound, other, codec="pcm_s16le")
    assert np.abs(_read(path) - sound[0]).max() < 2**-14


def test_sound_of_an_avi_begins_where_its_header_says(tmp_path: Path) -> None:
    """FFmpeg says 0 of every stream of an AVI; the first packet's time is right."""
    path, sound = tmp_path / "film.avi", make_sound(3, RATE)
    _write_video(path, "mpeg4", sound, codec="pcm_s16le")
    data = bytearray(path.read_bytes())
    (head,) = [at for at in range(len(data)) if data[at : at + 4] == b"strh" and data[at + 8 : at + 12] == b"auds"]
    scale, rate = (int.from_bytes(data[head + at : head + at + 4], "little") for at in (28, 32))
    data[head + 36 : head + 40] = (2 * rate // scale).to_bytes(4, "little")  # dwStart
    path.write_bytes(data)
    assert probe(path).seconds == pytest.approx(5, abs=0.1)
    samples = _read(path)
    assert not samples[: 2 * RATE].any() and np.abs(samples[2 * RATE :] - sound[0]).max() < 2**-14


def test_avi_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    _write_video(path, "mpeg4", make_sound(3, RATE), codec="libmp3lame")
    assert probe(path).warnings == ()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    (warning,) = probe(path).warnings
    assert "are missing at its end" in warning


def test_clock_of_an_mp4_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.m4a", make_sound(3, RATE), RATE, "aac")
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd") + 16
    data[at : at + 4] = (100 * int.from_bytes(data[at : at + 4], "big")).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.m4a has a damaged header: by its clock a packet of 64 ms lasts 0\.64 ms"):
        probe(path)


def test_too_many_channels_are_not_called_no_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    rate, channels = (16_000).to_bytes(4, "little"), (65_535).to_bytes(2, "little")
    form = b"\1\0" + channels + rate + bytes(4) + b"\xfe\xff\x10\0"
    path.write_bytes(b"RIFF\xff\0\0\0WAVEfmt \x10\0\0\0" + form + b"data\0\0\1\0" + bytes(1 << 16))
    with pytest.raises(AudioError, match="how many channels it has, or has too many"):
        probe(path)


def _write_video(path: Path, video_codec: str | None, *sounds: Sound, codec: str = "aac") -> None:
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as output:
        if video_codec is not None:
            video = cast("VideoStream", output.add_stream(video_codec, rate=5))
            video.width, video.height = 64, 48
            video.pix_fmt = "rgb24" if video_codec == "png" else "yuv420p"
            if video_codec == "png":
                video.disposition = Disposition.attached_pic
        streams = [cast("AudioStream", output.add_stream(codec, rate=RATE, layout="mono")) for _ in sounds]
        if video_codec is not None:
            for index in range(1 if video_codec == "png" else 15):
                picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 16 * index, np.uint8), "rgb24")
                output.mux(video.encode(picture.reformat(format=video.pix_fmt)))
            output.mux(video.encode(None))
        for stream, sound in zip(streams, sounds, strict=True):
            encode(output, stream, sound)


def test_recording_that_changes_its_rate_is_refused(tmp_path: Path) -> None:
    parts = [write_audio(tmp_path / f"{rate}.mp3", make_sound(3, rate), rate, "libmp3lame") for rate in (44100, 48000)]
    path = tmp_path / "joined.mp3"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(AudioError, match=r"joined\.mp3 changes its sample rate midway, from 44100 to 48000 Hz;"):
        _read(path)


@pytest.mark.parametrize(
    ("drift", "verdict"),
    [
        (0.0, "in time"),
        (0.009, "in time"),
        (-0.009, "in time"),
        (0.02, "late"),
        (3000.0, "late"),
        (-0.02, "early"),
        (-0.9, "early"),
        (-2.0, "broken"),
        (1e5, "broken"),
    ],
)
def test_timestamp_is_believed_beyond_jitter_and_up_to_an_hour(drift: float, verdict: str) -> None:
    assert judge(drift) == verdict


def test_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    _write_video(path, "mpeg4")
    with pytest.raises(AudioError, match=r"mute\.mp4 has no audio stream; give the recording"):
        probe(path)


def test_truncated_file_without_its_index_names_the_remedy(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.m4a", make_sound(5, RATE), RATE, "aac")
    path.write_bytes(_cut(path.read_bytes()))
    with pytest.raises(AudioError, match=r"a\.m4a is not a recording, or is cut off before its index.*copy it"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "is empty"),
        ("talk.cha", b"@UTF8\n@Begin\n*CHI:\thello .\n@End\n", "is not a recording"),
        ("notes.txt", b"not a recording\n" * 300, "is not a recording: a playlist, a text"),
        ("noise.mp3", np.random.default_rng(0).bytes(50_000), "is not a recording"),
        ("zeros.flac", bytes(5000), "no audio stream"),
    ],
)
def test_file_that_is_no_recording_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (probe, SampleStream):
        with pytest.raises(InputError, match=rf"{name}.*{reason}.*; "):
            read(tmp_path / name)


def test_header_without_sound_is_refused(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", np.zeros((1, 0), np.float32), RATE, "pcm_s16le")
    for read in (probe, SampleStream):
        with pytest.raises(AudioError, match=r"a\.wav"):
            read(path)


def test_missing_file_and_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav cannot be read: No such file or directory; check the path"):
        probe(tmp_path / "gone.wav")
    with pytest.raises(AudioError, match="is not a file; give a recording"):
        probe(tmp_path)


@pytest.mark.parametrize("name", ["a:b.wav", "concat:x|y.wav", "-x.wav", "sp ace ü %03d ?#.wav", "noextension"])
def test_file_name_is_never_taken_for_a_protocol(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "a.wav", make_sound(1, RATE), RATE, "pcm_s16le").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).seconds == 1
    assert probe(os.fsdecode(os.fsencode(tmp_path) + b"/") + name).seconds == 1


def test_tag_that_is_not_utf8_does_not_stop_the_reader(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "a.wav", make_sound(1, RATE), RATE, "pcm_s16le", tags={"title": "Zuerich!"})
    data = path.read_bytes()
    assert b"Zuerich!" in data
    path.write_bytes(data.replace(b"Zuerich!", b"Z\xfcrich!!"))
    assert probe(path).seconds == 1


def test_playlist_fetches_nothing_from_the_network(tmp_path: Path) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        link = f"http://127.0.0.1:{server.server_port}/a.ts"
        path = tmp_path / "a.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{link}\n#EXT-X-ENDLIST\n")
        with pytest.raises(AudioError, match=r"a\.m3u8"):
            probe(path)
        server.shutdown()
    assert asked == []


def test_many_files_are_probed_from_threads(tmp_path: Path) -> None:
    paths = [
        write_audio(tmp_path / f"{tenths}.flac", make_sound(tenths / 10, RATE), RATE, "flac") for tenths in range(5, 25)
    ]
    with ThreadPoolExecutor(8) as pool:
        lengths = [recording.seconds for recording in pool.map(probe, paths * 10)]
    assert lengths == [tenths / 10 for tenths in range(5, 25)] * 10
    assert math.isclose(sum(lengths), 290, rel_tol=1e-9)
