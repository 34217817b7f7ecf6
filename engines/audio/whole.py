"""Whole recordings that are short, such as the rows of a data set: the samples that an `AudioReader` gives, sooner."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np

from prefork.engines.audio.content import lend
from prefork.engines.audio.reader import SAMPLE_RATE, AudioReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefork.engines.audio.channels import Samples

    Raw = NDArray[Any]  # (n,), int16 or float32

# A WAV header as most programs write it: RIFF, WAVE, a chunk fmt of 16 bytes, a chunk data.
_HEADER = 44
_SAMPLE = Fraction(1, SAMPLE_RATE)  # seconds
_STEP = np.float32(1 / 32768)  # of 16 bits, at full scale 1
_PLAIN = b"WAVEfmt \x10\0\0\0\1\0\1\0" + SAMPLE_RATE.to_bytes(4, "little") + (2 * SAMPLE_RATE).to_bytes(4, "little")
_PLAIN += b"\2\0\x10\0data"


def decode(content: bytes, path: Path) -> Samples:
    """(n,) float32 at 16 kHz: all of a recording, bit for bit as `AudioReader` reads it. path: a row's, which errors
    name. Raises AudioError."""
    raw = decode_raw(content, path)
    samples = np.empty(len(raw), np.float32)
    scale(raw, samples)
    return samples


def decode_raw(content: bytes, path: Path) -> Raw:
    """The same, but int16 where the recording is of 16 bits, for `scale`."""
    raw = _read_wav(content) if content.startswith(b"RIFF") else None
    if raw is None and content.startswith(b"fLaC"):
        raw = _decode_flac(content)
    if raw is not None:
        return raw
    with lend(path, content), AudioReader(path) as reader:
        return reader.read(0.0, float("inf"))


def scale(raw: Raw, samples: Samples) -> None:
    """Writes them into `samples`, as `channels.mix` scales them: every 16-bit number has a float32 of its own."""
    if raw.dtype == np.int16:
        np.multiply(raw, _STEP, out=samples, dtype=np.float32)
    else:
        samples[:] = raw


def _read_wav(content: bytes) -> Raw | None:
    """None unless it is mono, 16 bits, 16 kHz, and ends where its header says."""
    if content[8:40] != _PLAIN:
        return None
    size = int.from_bytes(content[40:44], "little")
    if not size or size % 2 or _HEADER + size != len(content):
        return None
    return np.frombuffer(content, np.int16, offset=_HEADER)


def _decode_flac(content: bytes) -> Raw | None:
    """None unless it is mono, 16 bits, 16 kHz, and whole: its frames follow each other up to the length in its
    header. Frames may be short, and there may be many: each is handled once."""
    parts: list[bytes] = []
    try:
        with av.open(io.BytesIO(content), "r", format="flac") as container:
            if len(container.streams) != 1 or not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            context = stream.codec_context
            known = (context.sample_rate, context.layout.nb_channels, context.format.name, stream.time_base)
            if known != (SAMPLE_RATE, 1, "s16", _SAMPLE):
                return None
            context.thread_count = 1
            context.thread_type = "NONE"
            position = 0
            for frame in container.decode(stream):
                if frame.pts != position:
                    return None
                count = frame.samples
                parts.append(bytes(frame.planes[0])[: 2 * count])
                position += count
            if stream.duration != position:
                return None
    except (av.error.FFmpegError, ValueError):  # `AudioReader` says what is wrong, or reads what can be read
        return None
    return np.frombuffer(b"".join(parts), np.int16)
