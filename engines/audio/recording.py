"""The recording: what a media file says about its sound, and its sound as one stream of samples.

    file -> packets -> frames -> mono samples, each frame at the position its timestamp says

Anything FFmpeg decodes, through PyAV; decoded as it is read, never whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import av
import av.error
import av.filter
import numpy as np
from av.audio.frame import AudioFrame, format_dtypes

from prefork.engines.audio.container import (
    AudioError,
    check_damage,
    find_audio,
    find_time_base,
    open_container,
    open_stream,
    read_packets,
)

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
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
_RESTART = 1.0  # seconds; a timestamp that far back is a clock set anew, as in files joined end to end
_LONGEST_GAP = 3600.0  # seconds; a timestamp beyond it is broken, not a pause in the recording
# Formats without a length in the header: FFmpeg's figure is the file's size over its first frames' bit rate.
# An MP3 with a Xing header does state it; FFmpeg shows that by the encoder's delay, which is in the same header.
_GUESSED_LENGTH = frozenset({"mp3", "aac", "ac3", "eac3", "loas"})
_MISSING = 1.0  # seconds by which a recording may be shorter than its header says; encoders count their padding
_LEAST_BYTES = 50  # for a second; what is longer for its size is counted: silence in FLAC takes as little as that
_UNKNOWN_SIZE = 0x7FFF_F000  # bytes of a WAV file's data, from which on they stand for "to the end"
_LONGEST = 7 * 24 * 3600.0  # seconds; a recording that is longer is none
_LOUDEST = 2.0**32  # times full scale; above any whole numbers that a file of floats may hold unscaled
_FULL_SCALE = {"u1": (128, 2**7), "i2": (0, 2**15), "i4": (0, 2**31), "f4": (0, 1), "f8": (0, 1)}


@dataclass(frozen=True, slots=True)
class Recording:
    """What a media file holds of sound.

    seconds: length of the audio stream. claimed: the one that its header states, 0 if none. sample_rate: Hz, in the
    file. codec: FFmpeg's name of the decoder.
    """

    path: Path
    seconds: float
    sample_rate: int
    channels: int
    codec: str
    claimed: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its user should know."""
        if self.claimed - self.seconds <= _MISSING:
            return ()
        missing = f"{self.claimed - self.seconds:.1f} s of {self.claimed:.1f} s are missing at its end"
        return (f"{self.path.name}: {missing}: it is cut off, copy it again",)


def probe(path: Path | str) -> Recording:
    """The recording's header, without decoding. What that states of its length is compared with the last packets;
    where they are elsewhere, or it states none, all are counted.

    Raises AudioError if there is no such file, or no sound in it.
    """
    path = Path(path)
    with open_container(path) as container:
        stream = find_audio(container, path)
        context = stream.codec_context
        rate, channels, codec = context.sample_rate, context.channels, context.codec.name
        claimed = _stated_seconds(container, stream, path)
        there = claimed is not None and _reaches(container, stream, claimed, path)
    seconds = claimed if there else _count_seconds(path)
    if seconds is None or (claimed is not None and abs(claimed - seconds) <= _MISSING):
        seconds = claimed or Fraction(0)
    if seconds <= 0:
        raise AudioError(f"{path} holds no audio: its length is 0 s; record or export it again")
    if seconds > _LONGEST:
        raise AudioError(
            f"{path} would last {float(seconds) / 3600:.0f} h by its timestamps; cut it, or export it again"
        )
    return Recording(path, float(seconds), rate, channels, codec, float(claimed or 0))


class _SampleBlock(NamedTuple):
    """A stretch of the stream: the frame's samples from `cut` on, or silence; made only when they are wanted."""

    start: int
    end: int
    frame: AudioFrame | None = None
    cut: int = 0

    def samples_from(self, position: int) -> Samples:
        first = max(self.start, position)
        if self.frame is None:
            return np.zeros(self.end - first, np.float32)
        return _mix(self.frame)[self.cut + first - self.start :]


class SampleStream:
    """An open recording as one stream of mono samples at its own rate; position 0 is the first one decoded.

    rate: Hz. seekable: a seek gives the same samples as decoding from the start.
    """

    def __init__(self, path: Path) -> None:
        """Raises AudioError as `probe` does, and if nothing in the recording can be decoded."""
        self._path = path
        self._container, self._stream = open_stream(path)
        frame = next(self._frames(), None)
        if frame is None:
            self.close()
            raise AudioError(f"{path} has an audio stream but no audio in it; copy or export it again")
        self.rate = frame.sample_rate
        self._tick = find_time_base(self._stream) or Fraction(1, self.rate)  # seconds
        self._origin = Fraction(0) if frame.pts is None else frame.pts * self._tick  # seconds
        counts_samples = frame.pts is not None and (1 / (self._tick * self.rate)).denominator == 1
        self.seekable = counts_samples and _forgets(self._stream.codec_context.codec.name)
        self._reopen()

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
                yield self._check(block.samples_from(position), max(block.start, position))
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
        self._container, self._stream = open_stream(self._path)
        self._blocks, self._at = self._place(0), 0
        self._ended = self._sought = False

    def _seek(self, position: int) -> bool:
        """Makes a block near `position` the next one; False if there is none."""
        time = self._origin + Fraction(position, self.rate)
        try:
            self._container.seek(int(time / self._tick), stream=self._stream)
        except av.error.FFmpegError as error:
            check_damage(error, self._path)
            return False
        blocks = self._place(None)
        first = next(blocks, None)
        if first is None:
            return False
        self._blocks, self._at = chain([first], blocks), first.start
        self._ended, self._sought = False, True
        return True

    def _place(self, expected: int | None) -> Iterator[_SampleBlock]:
        """Puts each frame where its timestamp says. Gapless: fills holes with silence, cuts what overlaps.

        expected: position of the first frame; None after a seek, then the first timestamp decides.
        """
        shift = 0  # from the timestamps' positions to those of the stream
        for frame in self._frames():
            position = self._position(frame, shift)
            if position is None:
                position = expected
            if position is None:
                continue
            if expected is None:
                expected = position
            cut = 0
            match _judge((position - expected) / self.rate):
                case "late":
                    yield from _silence(expected, position, self.rate)
                    expected = position
                case "early":
                    cut = min(expected - position, frame.samples)
                case "broken":
                    shift += expected - position
            end = expected + frame.samples - cut
            if cut < frame.samples:  # FFmpeg's filters refuse a frame without samples
                yield _SampleBlock(expected, end, frame, cut)
            expected = end

    def _position(self, frame: AudioFrame, shift: int) -> int | None:
        if frame.sample_rate != self.rate:
            raise AudioError(
                f"{self._path} changes its sample rate midway, from {self.rate} to {frame.sample_rate} Hz; "
                "convert it to one rate throughout"
            )
        if frame.pts is None:
            return None
        return round((frame.pts * self._tick - self._origin) * self.rate) + shift

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


def _judge(drift: float) -> Literal["in time", "late", "early", "broken"]:
    """What a timestamp means that is `drift` seconds after the end of the samples before it."""
    if not -_RESTART <= drift <= _LONGEST_GAP:
        return "broken"
    if abs(drift) <= _JITTER:
        return "in time"
    return "late" if drift > 0 else "early"


def _silence(start: int, end: int, rate: int) -> Iterator[_SampleBlock]:
    """In blocks of a second: a gap may be an hour long."""
    for position in range(start, end, rate):
        yield _SampleBlock(position, min(position + rate, end))


def _mix(frame: AudioFrame) -> Samples:
    """(n,) float32 in [-1, 1]: the mean of the frame's channels."""
    # PyAV takes what lies behind the eighth plane for more planes, and reads them.
    if frame.format.name not in format_dtypes or (frame.format.is_planar and frame.layout.nb_channels >= 8):
        frame = _pack(frame)
    data = frame.to_ndarray()
    channels = data if frame.format.is_planar else data.reshape(frame.samples, -1).T
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


def _stated_seconds(container: InputContainer, stream: AudioStream, path: Path) -> Fraction | None:
    if container.format.name == "wav" and (seconds := _read_wav_length(path)) is not None:
        return seconds
    if container.format.name in _GUESSED_LENGTH and not stream.start_time:
        return None
    tick = find_time_base(stream)
    if stream.duration is not None and tick is not None:
        return stream.duration * tick
    if container.duration is None:
        return None
    start = stream.start_time * tick if stream.start_time and tick else Fraction(0)
    return Fraction(container.duration, av.time_base) - max(start, Fraction(0))


def _read_wav_length(path: Path) -> Fraction | None:
    """What the header of a WAV file says, which FFmpeg does not tell where the file ends before; None if it is written
    by a program that did not know it."""
    with path.open("rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return None
        rate = 0  # bytes per second
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                return Fraction(size, rate) if rate and 0 < size < _UNKNOWN_SIZE else None
            content = file.read(16) if head[:4] == b"fmt " else b""
            rate = int.from_bytes(content[8:12], "little") if content else rate
            file.seek(size + size % 2 - len(content), 1)
    return None


def _reaches(container: InputContainer, stream: AudioStream, seconds: Fraction, path: Path) -> bool:
    """Whether there are packets at the end of so many seconds. Moves the container there."""
    tick = find_time_base(stream)
    if tick is None or seconds * _LEAST_BYTES > path.stat().st_size:
        return False
    start = stream.start_time or 0
    try:
        container.seek(start + int(max(Fraction(0), seconds - 1) / tick), stream=stream)
    except av.error.FFmpegError as error:
        check_damage(error, path)
        return False
    ends = [p.pts + (p.duration or 0) for p in read_packets(container, stream, path) if p.pts is not None]
    return bool(ends) and (max(ends) - start) * tick >= seconds - Fraction(_MISSING)


def _count_seconds(path: Path) -> Fraction | None:
    """The packets' own time, with the gaps between them; None if they have none."""
    container, stream = open_stream(path)
    with container:
        tick = find_time_base(stream)
        first = expected = None
        shift = 0  # from the timestamps to those that follow each other
        for packet in read_packets(container, stream, path):
            if packet.pts is None or tick is None:
                continue
            at = packet.pts + shift
            if expected is None:
                first = at
            elif _judge(float((at - expected) * tick)) == "broken":
                shift += expected - at
                at = expected
            end = at + (packet.duration or 0)
            expected = end if expected is None else max(expected, end)
    return None if first is None or expected is None or tick is None else (expected - first) * tick
