"""Recordings made on the spot: every moment sounds different, so that one sample out of place is seen."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float32]


def make_sound(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> Sound:
    """(channels, n): tones that change every 0.37 s, under noise that comes and goes every 0.11 s."""
    random = np.random.default_rng(seed)
    count = round(seconds * rate)
    time = np.arange(count) / rate
    sound = np.empty((channels, count), np.float32)
    for channel in sound:
        tones = random.uniform(120, rate / 5, int(seconds / 0.37) + 1)[(time / 0.37).astype(int)]
        bursts = random.uniform(0, 0.3, int(seconds / 0.11) + 1)[(time / 0.11).astype(int)]
        channel[:] = 0.4 * np.sin(2 * np.pi * tones * time) + bursts * random.standard_normal(count)
    return np.clip(sound, -0.99, 0.99)


def write_audio(
    path: Path,
    sound: Sound,
    rate: int,
    codec: str,
    *,
    layout: str = "",
    sample_format: str | None = None,
    bit_rate: int | None = None,
    start: int = 0,
    gap: tuple[int, int] | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encodes `sound`. start: first timestamp, samples. gap: (position, length) of samples left out."""
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout or {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
        stream.codec_context.format = sample_format or stream.codec_context.codec.audio_formats[0].name
        if stream.codec_context.codec.experimental:
            stream.codec_context.options = {"strict": "experimental"}
        if bit_rate is not None:
            stream.codec_context.bit_rate = bit_rate
        for position, block in _blocks(sound, gap):
            frame = _frame(block, stream.codec_context.layout.name, stream.codec_context.format.name)
            frame.sample_rate = rate
            frame.pts = start + position
            frame.time_base = Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def _blocks(sound: Sound, gap: tuple[int, int] | None) -> Sequence[tuple[int, Sound]]:
    spans = [(0, sound.shape[1])] if gap is None else [(0, gap[0]), (gap[0] + gap[1], sound.shape[1])]
    return [(at, sound[:, at : min(at + 1024, stop)]) for first, stop in spans for at in range(first, stop, 1024)]


def _frame(block: Sound, layout: str, sample_format: str) -> av.AudioFrame:
    name = sample_format.removesuffix("p")
    data = {
        "u8": lambda: np.round(block * 127 + 128).astype(np.uint8),
        "s16": lambda: np.round(block * 32767).astype(np.int16),
        "s32": lambda: np.round(block * (2**31 - 256)).astype(np.int32) & ~np.int32(255),
        "flt": lambda: block,
        "dbl": lambda: block.astype(np.float64),
    }[name]()
    if not sample_format.endswith("p"):
        data = data.T.reshape(1, -1)
    return av.AudioFrame.from_ndarray(np.ascontiguousarray(data), sample_format, layout)
