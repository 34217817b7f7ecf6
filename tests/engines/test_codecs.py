"""Whatever Debian's FFmpeg can write is read: sample for sample as FFmpeg itself decodes it, at every rate."""

from __future__ import annotations

import shutil
import subprocess
import wave
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from prefork.engines.audio.channels import list_channels, mix
from prefork.engines.audio.recording import probe
from prefork.engines.audio.sample_stream import SampleStream
from tests.engines.audio_files import Sound, make_sound

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg, with its encoders")
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
SECONDS = 1.5
# Encoders, and the suffixes of files with their sound; those that do not take a rate are left out at it.
ENCODERS = {
    "aac": "m4a aac mkv ts", "ac3": "ac3 mkv", "eac3": "eac3", "flac": "flac ogg mka", "alac": "m4a caf",
    "libmp3lame": "mp3 mkv mp4", "libshine": "mp3", "mp2": "mp2 ts", "libtwolame": "mp2", "libvorbis": "ogg webm mka",
    "vorbis": "ogg", "libopus": "opus webm ogg mp4", "opus": "opus", "libspeex": "spx", "tta": "tta", "wavpack": "wv",
    "wmav1": "wma", "wmav2": "wma", "g722": "wav g722", "g723_1": "g723_1", "g726": "wav", "libgsm": "gsm",
    "libgsm_ms": "wav", "pcm_alaw": "wav au", "pcm_mulaw": "wav au", "pcm_s16le": "wav w64 mkv mov voc",
    "pcm_s24le": "wav mka", "pcm_s32le": "wav", "pcm_f32le": "wav mka", "pcm_f64le": "wav", "pcm_u8": "wav voc",
    "pcm_s16be": "aiff au caf mov sox", "pcm_s24be": "aiff caf", "pcm_f32be": "au aiff", "pcm_s8": "aiff",
    "adpcm_ima_wav": "wav", "adpcm_ms": "wav", "adpcm_yamaha": "wav mmf", "adpcm_ima_qt": "mov", "adpcm_swf": "flv",
    "nellymoser": "flv", "real_144": "rm", "dca": "dts mka", "mlp": "mlp", "truehd": "thd", "sbc": "sbc",
    "s302m": "ts", "adpcm_adx": "adx", "dfpwm": "dfpwm",
    "aptx": "aptx", "pcm_bluray": "m2ts", "pcm_s64le": "nut", "pcm_u16le": "nut", "pcm_u24be": "nut",
    "pcm_s16le_planar": "nut", "pcm_vidc": "nut",
}  # fmt: skip


def write_source(path: Path, rate: int, channels: int) -> Path:
    sound = make_sound(SECONDS, rate, channels)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.round(sound * 20_000).astype("<i2").T.tobytes())
    return path


def encode(source: Path, target: Path, encoder: str) -> bool:
    """Whether there is such a file."""
    options = ["-c:a", encoder, "-strict", "-2"]
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", str(source), *options, str(target)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return done.returncode == 0 and target.stat().st_size > 0


def decode(path: Path) -> Sound:
    """FFmpeg's own samples, one frame after the other."""
    parts = [np.zeros(0, np.float32)]
    with av.open(str(path)) as container:
        stream = container.streams.best("audio")
        assert isinstance(stream, av.AudioStream)
        for packet in container.demux(stream):
            try:
                parts += [mix(list_channels(frame)) for frame in stream.decode(packet)]
            except av.error.FFmpegError:
                continue
    return np.concatenate(parts)


def read(path: Path) -> Sound:
    stream = SampleStream(path)
    try:
        return np.concatenate([np.zeros(0, np.float32), *stream.read_from(0)])
    finally:
        stream.close()


def check(folder: Path, encoder: str, rates: tuple[int, ...]) -> int:
    """How many combinations there were."""
    tried = 0
    for rate in rates:
        for channels in (1, 2) if rate == 44100 else (1,):
            source = write_source(folder / "source.wav", rate, channels)
            for suffix in ENCODERS[encoder].split():
                path = folder / f"{encoder}-{rate}-{channels}.{suffix}"
                if encode(source, path, encoder):
                    tried += 1
                    assert np.array_equal(read(path), decode(path)), path.name
                    found = probe(path)
                    assert found.warnings == () or suffix == "mmf", (
                        path.name,
                        found.warnings,
                    )  # whose length is doubled
    return tried


@needs_ffmpeg
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_samples_of_every_codec_are_ffmpegs_own_at_every_rate(tmp_path: Path, encoder: str) -> None:
    if not check(tmp_path, encoder, RATES):
        pytest.skip(f"this ffmpeg has no encoder {encoder}")


@needs_ffmpeg
def test_samples_of_vorbis_are_ffmpegs_own_at_every_rate(tmp_path: Path) -> None:
    """libvorbis's timestamps jitter by up to 448 samples, at 32 and 44.1 kHz."""
    if not check(tmp_path, "libvorbis", (32000, 44100)):
        pytest.skip("this ffmpeg has no encoder libvorbis")


def test_samples_of_the_vorbis_file_that_was_misread_are_ffmpegs_own(shared: Path) -> None:
    path = shared / "cases/recordings/ogg-vorbis/talk.ogg"
    assert np.array_equal(read(path), decode(path))
    assert len(read(path)) == 3 * 44100
    stream = SampleStream(path)
    try:
        parts = {start: np.concatenate([*stream.read_from(start)]) for start in (100_000, 20_000, 70_000, 0)}
    finally:
        stream.close()
    for start, samples in parts.items():
        assert np.array_equal(samples, read(path)[start:])
