"""The sound of a recording as one stream of samples.

    file -> packets -> frames -> mono samples, each frame at the position its timestamp says

Anything FFmpeg decodes, through PyAV; decoded as it is read, never whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Literal, NamedTuple

import av.error
import numpy as np
from av.audio.frame import AudioFrame

from prefork.engines.audio.channels import choose_channels, list_channels, mix
from prefork.engines.audio.container import (
    AudioError,
    check_damage,
    find_delay,
    find_time_base,
    open_stream,
    read_packets,
)
from prefork.engines.audio.selection import Selection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

# Seconds decoded and thrown away before the first sample wanted. The slowest to forget are Opus, which predicts
# energies from frame to frame, and MP3, whose bit reservoir reaches 511 bytes (8 frames at 32 kbit/s) back.
_PREROLL = Fraction(1)
# Codecs whose decoders then give the same samples as from the start, bit for bit (tests/engines/test_audio.py).
_FORGETFUL = frozenset({"flac", "alac", "mp3", "mp3float", "vorbis", "opus", "libopus"})
_SKIP_AHEAD = 4.0  # seconds; up to here decoding on is cheaper than seeking with its pre-roll
# Seconds by which timestamps may disagree with the number of samples decoded before they are believed: half
# of the shortest frame that is commonly lost (20 ms), and more than the jitter of a recorder's clock.
_JITTER = 0.01
_CONFIRMING = (
    3  # frames that follow; libvorbis's first timestamp on a page is off by up to 448 samples, the next is not
)
_RESTART = 1.0  # seconds; a timestamp that far back is a clock set anew, as in files joined end to end
LONGEST_GAP = 3600.0  # seconds; a timestamp beyond it is broken, not a pause in the recording
_LOUDEST = 2.0**32  # times full scale; above any whole numbers that a file of floats may hold unscaled


class _SampleBlock(NamedTuple):
    """A stretch of the stream: the frame's samples from `cut` on, or silence; mixed only when they are wanted."""

    start: int
    end: int
    frame: AudioFrame | None = None
    cut: int = 0

    def samples_from(self, position: int, channels: tuple[int, ...]) -> Samples:
        first = max(self.start, position)
        if self.frame is None:
            return np.zeros(self.end - first, np.float32)
        return mix(list_channels(self.frame), channels)[self.cut + first - self.start :]


class SampleStream:
    """An open recording as one stream of mono samples at its own rate. Position 0 is the beginning of the film, if
    there is one; otherwise the first sample decoded.

    rate: Hz. seekable: a seek gives the same samples as decoding from the start.
    """

    def __init__(self, path: Path, selection: Selection | None = None) -> None:
        """Raises AudioError as `probe` does, and if nothing in the recording can be decoded."""
        self._path = path
        self._selection = selection = selection or Selection()
        self._container, self._stream = open_stream(path, selection.track)
        frames = self._frames()
        frame = next(frames, None)
        if frame is None:
            self.close()
            raise AudioError(f"{path} has an audio stream but no audio in it; copy or export it again")
        self.rate = frame.sample_rate
        self._tick = find_time_base(self._stream) or Fraction(1, self.rate)  # seconds
        self._scale = self._tick * self.rate  # samples for each unit of a timestamp
        self._origin = Fraction(0)  # of position 0, in samples
        position = self._find_position(frame)
        first = position or 0
        delay = find_delay(self._container, self._stream, Fraction(first, self.rate))
        self._origin = Fraction(first) - (delay * self.rate if _JITTER < delay <= LONGEST_GAP else 0)
        counts_samples = position is not None and (1 / self._scale).denominator == 1
        self.seekable = counts_samples and _forgets(self._stream.codec_context.codec.name)
        self._channels = choose_channels(path, selection) if frame.layout.nb_channels > 1 else ()
        self._begin(chain([frame], frames))

    def close(self) -> None:
        self._container.close()

    def read_from(self, position: int) -> Iterator[Samples]:
        """The samples from `position` to the end, in pieces of a frame or a second; one call at a time."""
        self._move_before(position)
        yield from self._decode_from(position)
        if self._sought and self._at <= position:
            # Past the end, or past a clock set anew, which a seek does not see.
            self._reopen()
            yield from self._decode_from(position)

    def _decode_from(self, position: int) -> Iterator[Samples]:
        for block in self._blocks:
            self._at = block.end
            if block.end > position:
                yield self._check(block.samples_from(position, self._channels), max(block.start, position))
        self._ended = True

    def _check(self, samples: Samples, position: int) -> Samples:
        """The samples, if a model can compute with them. A file of floats that holds others is refused; what a decoder
        makes of damaged data is silence, as everywhere."""
        if np.abs(samples).max() <= _LOUDEST:  # also false for NaN
            return samples
        sound = np.abs(samples) <= _LOUDEST
        if not self._stream.codec_context.codec.name.startswith("pcm_f"):
            return np.where(sound, samples, np.float32(0))
        first = int(np.argmin(sound))
        value = float(samples[first])
        what = f"is {value:g}, where full scale is 1" if np.isfinite(value) else "is no number, or too large for one"
        raise AudioError(
            f"{self._path} holds a sample, at {(position + first) / self.rate:.3f} s, that {what}; "
            "export it again, as 16-bit for example"
        )

    def _move_before(self, position: int) -> None:
        """Makes the next block one from which decoding on gives the true samples at `position`."""
        ahead = position - self._at
        if ahead >= 0 and (self._ended or not self.seekable or ahead <= _SKIP_AHEAD * self.rate):
            return
        preroll = int(_PREROLL * self.rate)
        target = position - preroll - preroll // 2
        if self.seekable and target > 0 and self._seek(target) and self._at <= position - preroll:
            return
        self._reopen()

    def _reopen(self) -> None:
        """Goes back to the first packet, to which a seek to 0 does not take every demuxer."""
        self.close()
        self._container, self._stream = open_stream(self._path, self._selection.track)
        self._begin(self._frames())

    def _begin(self, frames: Iterator[AudioFrame]) -> None:
        """frames: all, from the first."""
        self._blocks, self._at = self._place(0, frames), 0
        self._ended = self._sought = False

    def _seek(self, position: int) -> bool:
        """Makes a block near `position` the next one; False if there is none."""
        time = (self._origin + position) / self.rate
        try:
            self._container.seek(int(time / self._tick), stream=self._stream)
        except av.error.FFmpegError as error:
            check_damage(error, self._path)
            return False
        blocks = self._place(None, self._frames())
        first = next(blocks, None)
        if first is None:
            return False
        self._blocks, self._at = chain([first], blocks), first.start
        self._ended, self._sought = False, True
        return True

    def _place(self, expected: int | None, frames: Iterator[AudioFrame]) -> Iterator[_SampleBlock]:
        """Puts each frame where its timestamp says. Gapless: fills holes with silence, cuts what overlaps.

        expected: position that the first frame may have; None after a seek, then the first timestamps decide.
        """
        shift = 0  # from the timestamps' positions to those of the stream
        opening = expected == 0
        for frame, starts in _look_ahead((frame, self._find_position(frame)) for frame in frames):
            if opening and starts:  # the film may begin before its sound does
                yield from _silence(0, starts[0], self.rate)
                expected = starts[0]
            opening = False
            if expected is None:
                if not starts:
                    continue
                expected = median_low(starts)
            drift = _agree([start + shift - expected for start in starts], _JITTER * self.rate)
            cut = 0
            match judge(drift / self.rate):
                case "late":
                    yield from _silence(expected, expected + drift, self.rate)
                    expected += drift
                case "early":
                    cut = min(-drift, frame.samples)
                case "broken":
                    shift -= drift
            end = expected + frame.samples - cut
            if cut < frame.samples:  # FFmpeg's filters refuse a frame without samples
                yield _SampleBlock(expected, end, frame, cut)
            expected = end

    def _find_position(self, frame: AudioFrame) -> int | None:
        """Where its timestamp says that it begins; None if it has none."""
        if frame.sample_rate != self.rate:
            raise AudioError(
                f"{self._path} changes its sample rate midway, from {self.rate} to {frame.sample_rate} Hz; "
                "convert it to one rate throughout"
            )
        return None if frame.pts is None else round(frame.pts * self._scale - self._origin)

    def _frames(self) -> Iterator[AudioFrame]:
        """The frames from here to the end of what can be read; a damaged packet yields none."""
        for packet in chain(read_packets(self._container, self._stream, self._path), [None]):
            try:
                yield from self._stream.decode(packet)  # None: what the decoder still holds
            except av.error.FFmpegError as error:
                check_damage(error, self._path)


def _forgets(codec: str) -> bool:
    """Whether the decoder's state is gone after the pre-roll. AAC's and AC-3's noise generators run on."""
    return codec in _FORGETFUL or codec.startswith("pcm_")


_Placed = tuple[AudioFrame, int | None]  # a frame, and the position that its timestamp states


def _look_ahead(frames: Iterator[_Placed]) -> Iterator[tuple[AudioFrame, list[int]]]:
    """Each frame, with where it begins by its own timestamp and by those of the frames that follow it. Nowhere if it
    has no timestamp."""
    held: deque[_Placed] = deque()
    last: int | None = None
    for frame, position in frames:
        held.append((frame, None if position == last else position))  # a clock that stands says nothing
        last = position
        if len(held) > _CONFIRMING:
            yield held[0][0], _list_starts(held)
            held.popleft()
    while held:
        yield held[0][0], _list_starts(held)
        held.popleft()


def _list_starts(placed: Sequence[_Placed]) -> list[int]:
    """Where the first of them begins, as each of them has it."""
    if placed[0][1] is None:
        return []
    starts, before = [], 0
    for frame, position in placed:
        if position is not None:
            starts.append(position - before)
        before += frame.samples
    return starts


def _agree(drifts: Sequence[int], tolerance: float) -> int:
    """By how many samples a frame is off as its timestamp and those of the frames that follow have it: the least of
    them; 0 unless all say that it is late, or all that it is early.

    >>> _agree([448, 0, 0, 0], 441), _agree([900, 900, 1800, 1800], 441), _agree([-9000, -9000], 441)
    (0, 900, -9000)
    """
    if len(drifts) < 2 or not (min(drifts) > tolerance or max(drifts) < -tolerance):
        return 0
    return min(drifts, key=abs)


def judge(drift: float) -> Literal["in time", "late", "early", "broken"]:
    """What timestamps mean that are `drift` seconds after the end of the samples before them."""
    if not -_RESTART <= drift <= LONGEST_GAP:
        return "broken"
    if abs(drift) <= _JITTER:
        return "in time"
    return "late" if drift > 0 else "early"


def _silence(start: int, end: int, rate: int) -> Iterator[_SampleBlock]:
    """In blocks of a second: a gap may be an hour long."""
    for position in range(start, end, rate):
        yield _SampleBlock(position, min(position + rate, end))
