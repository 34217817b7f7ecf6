"""Channels: the ones that may be mixed. Of two that hold the same sound with opposite signs, the mean is silence.

Which they are is decided once for a recording, by the correlation of its channels in places spread over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av.error
import av.filter
import numpy as np
from av.audio.frame import AudioFrame, format_dtypes

from prefork.engines.audio.container import check_damage, find_time_base, open_stream, read_packets

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from numpy.typing import NDArray

    from prefork.engines.audio.selection import Selection

    Samples = NDArray[np.float32]
    Channels = NDArray[Any]  # (channels, samples), of the frame's own type
    Covariance = NDArray[np.float64]  # (channels, channels)

_FULL_SCALE = {"u1": (128, 2**7), "i2": (0, 2**15), "i4": (0, 2**31), "f4": (0, 1), "f8": (0, 1)}
_PLACES = 12  # of a recording that are looked at, and
_SECONDS = 1  # how long each of them is
_CANCELS = -0.5  # correlation of two channels of equal power whose mean has a quarter of it
_SHARE = 0.25  # of a channel's power that is in places where it cancels the others
_SILENT = 1e-10  # mean power of a sample, at full scale 1: -100 dB, as the rounding to 16 bits


@dataclass(frozen=True, slots=True)
class ChannelSurvey:
    """What the places of a recording tell. mixed: as Selection.channels has it, never None. silent: nothing was
    recorded in any of them."""

    mixed: tuple[int, ...] = ()
    silent: bool = False


def list_channels(frame: AudioFrame) -> Channels:
    """(channels, samples) of a decoded frame, unscaled."""
    # PyAV takes what lies behind the eighth plane for more planes, and reads them.
    if frame.format.name not in format_dtypes or (frame.format.is_planar and frame.layout.nb_channels >= 8):
        frame = _pack(frame)
    data = frame.to_ndarray()
    return data if frame.format.is_planar else data.reshape(frame.samples, -1).T


def mix(channels: Channels, chosen: tuple[int, ...] = ()) -> Samples:
    """(samples,) float32 in [-1, 1]: the mean of the chosen channels, numbers from 1; of all if none is chosen, or none
    of them is there, as in a damaged frame."""
    numbers = [number - 1 for number in chosen if number <= len(channels)]
    channels = channels[numbers] if numbers else channels
    zero, one = _FULL_SCALE[channels.dtype.str[1:]]
    # Double precision: the sum of 16-bit channels is exact, so equal channels mix to either of them.
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of numbers that are none is looked at later
        total = channels.sum(axis=0, dtype=np.float64)
        return np.asarray((total / len(channels) - zero) / one, np.float32)


def _pack(frame: AudioFrame) -> AudioFrame:
    """The same samples as float32, the channels of a moment side by side."""
    graph = av.filter.Graph()
    graph.threads = 1  # the default starts a thread per core
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate,
        format=frame.format,
        layout=frame.layout,
        time_base=Fraction(1, frame.sample_rate),
    )
    pack = graph.add("aformat", "sample_fmts=flt")
    graph.link_nodes(source, pack, graph.add("abuffersink")).configure()
    graph.push(frame)
    packed = graph.pull()
    assert isinstance(packed, AudioFrame)
    return packed


def choose_channels(path: Path, selection: Selection) -> tuple[int, ...]:
    """The channels to be mixed, as Selection has them. Raises AudioError as `open_stream` does."""
    return survey(path, selection.track).mixed if selection.channels is None else selection.channels


def survey(path: Path, track: int | None) -> ChannelSurvey:
    """Looks at a few seconds of a recording. Raises AudioError as `open_stream` does."""
    container, stream = open_stream(path, track)
    covariances: list[Covariance] = []
    power = samples = 0.0
    with container:
        for start in _list_places(container, stream):
            parts = _read_place(container, stream, start, path)
            shape = max((len(part) for part in parts), default=0)
            sound = [part for part in parts if len(part) == shape]
            if not sound:
                continue
            place = np.concatenate(sound, axis=1)
            place = np.where(np.isfinite(place), place, 0)
            covariance = np.atleast_2d(np.cov(place, bias=True)) if place.shape[1] > 1 else np.zeros((shape, shape))
            power, samples = power + float(np.trace(covariance)) * place.shape[1], samples + place.size
            covariances.append(covariance)
    if not covariances:
        return ChannelSurvey()
    shape = max(len(covariance) for covariance in covariances)
    alike = [covariance for covariance in covariances if len(covariance) == shape]
    return ChannelSurvey(choose(alike), power <= _SILENT * samples)


def _list_places(container: InputContainer, stream: AudioStream) -> list[int | None]:
    """Timestamps of places spread over the stream; None for its beginning, which needs no seek."""
    tick = find_time_base(stream)
    seconds = Fraction(container.duration, av.time_base) if container.duration else Fraction(0)
    if tick is None or seconds <= 2 * _PLACES * _SECONDS:
        return [None] * (2 * _PLACES)  # one after the other
    start = stream.start_time or 0
    return [start + int(seconds * number / _PLACES / tick) for number in range(_PLACES)]


def _read_place(container: InputContainer, stream: AudioStream, start: int | None, path: Path) -> list[Samples]:
    """A second of sound from a timestamp on, or from where the last place ended; each part (channels, samples)."""
    parts: list[Samples] = []
    try:
        if start is not None:
            container.seek(start, stream=stream)
        wanted = _SECONDS * stream.codec_context.sample_rate
        for packet in read_packets(container, stream, path):
            for frame in stream.decode(packet):
                channels = list_channels(frame)
                zero, one = _FULL_SCALE[channels.dtype.str[1:]]
                parts.append(((channels.astype(np.float32) - zero) / one).astype(np.float32))
                wanted -= frame.samples
            if wanted <= 0:
                break
    except av.error.FFmpegError as error:
        check_damage(error, path)
    return parts


def choose(covariances: Sequence[Covariance]) -> tuple[int, ...]:
    """The channels whose mean keeps what they hold, as numbers from 1; none if all may be mixed.

    covariances: of the channels, in each place. The loudest channel stays; another one is left out if it is correlated
    by less than -0.5 with the sum of those that stay, in places that have a quarter of its power.

    >>> choose([np.array([[1.0, -0.9], [-0.9, 0.9]])]), choose([np.array([[1.0, 0.3], [0.3, 1.0]])])
    ((1,), ())
    """
    powers = np.sum([np.diag(covariance) for covariance in covariances], axis=0)
    order = [int(number) for number in np.argsort(-powers, kind="stable")]
    kept = order[:1]
    for channel in order[1:]:
        cancelled = sum(float(c[channel, channel]) for c in covariances if _cancels(c, channel, kept))
        if not powers[channel] or cancelled < _SHARE * powers[channel]:
            kept.append(channel)
    return () if len(kept) == len(order) else tuple(sorted(channel + 1 for channel in kept))


def _cancels(covariance: Covariance, channel: int, kept: Sequence[int]) -> bool:
    power = covariance[np.ix_(kept, kept)].sum() * covariance[channel, channel]
    return bool(power > 0 and covariance[channel, kept].sum() < _CANCELS * np.sqrt(power))
