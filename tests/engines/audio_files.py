"""Recordings made on the spot: every moment sounds different, so that one sample out of place is seen."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

Sound = NDArray[np.float32]
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


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


def make_distinct(sound: Sound, seed: int) -> Sound:
    """The same to the ear and no two the same to a program, which may know what it has heard before: one bit of 16 of
    noise."""
    noise = np.random.default_rng(seed).integers(-1, 2, sound.shape).astype(np.float32)
    return np.clip(sound + noise / 2**15, -0.999, 0.999)


def write_audio(
    path: Path,
    sound: Sound,
    rate: int,
    codec: str,
    *,
    sample_format: str | None = None,
    start: int = 0,
    gap: tuple[int, int] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    container: str | None = None,
) -> Path:
    """Encodes `sound`. start: first timestamp, samples. gap: (position, length) of samples left out.

    options: of the container's format. codec_options: of the encoder. container: FFmpeg's name of the format, by
    default what the path's suffix says.
    """
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        output.metadata.update(tags or {})
        stream = cast("AudioStream", output.add_stream(codec, rate=rate))
        stream.codec_context.layout = LAYOUTS[len(sound)]
        if sample_format is not None:
            stream.codec_context.format = sample_format
        experimental = {"strict": "experimental"} if stream.codec_context.codec.experimental else {}
        stream.codec_context.options = experimental | (codec_options or {})
        encode(output, stream, sound, start=start, gap=gap)
    return path


def encode(
    output: OutputContainer,
    stream: AudioStream,
    sound: Sound,
    start: int = 0,
    gap: tuple[int, int] | None = None,
) -> None:
    """Writes `sound` as the whole of the stream; arguments as in `write_audio`."""
    layout, rate = LAYOUTS[len(sound)], stream.codec_context.sample_rate
    for position, block in _blocks(sound, gap):
        frame = _frame(block, layout, stream.codec_context.format.name)
        frame.sample_rate = rate
        frame.pts = start + position
        frame.time_base = Fraction(1, rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def _blocks(sound: Sound, gap: tuple[int, int] | None) -> Sequence[tuple[int, Sound]]:
    spans = [(0, sound.shape[1])] if gap is None else [(0, gap[0]), (gap[0] + gap[1], sound.shape[1])]
    return [(at, sound[:, at : min(at + 1024, stop)]) for first, stop in spans for at in range(first, stop, 1024)]


def _frame(block: Sound, layout: str, sample_format: str) -> av.AudioFrame:
    data = _convert(block, sample_format.removesuffix("p"))
    if not sample_format.endswith("p"):
        data = data.T.reshape(1, -1)
    return av.AudioFrame.from_ndarray(np.ascontiguousarray(data), sample_format, layout)


def _convert(block: Sound, sample_format: str) -> NDArray[Any]:
    if sample_format == "u8":
        return np.round(block * 2**7 + 128).astype(np.uint8)
    if sample_format == "s16":
        return np.round(block * 2**15).astype(np.int16)
    if sample_format == "s32":
        return np.round(block * 2.0**31).astype(np.int32) & ~np.int32(255)
    return block.astype({"flt": np.float32, "dbl": np.float64}[sample_format])
