"""The recording: what a media file says about its sound, and its sound as one stream of samples.

    file -> packets -> frames -> mono samples, each frame at the position its timestamp says

Anything FFmpeg decodes, through PyAV; decoded as it is read, never whole.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import av
import av.error
import av.filter
import av.logging
import numpy as np
from av.audio.frame import AudioFrame, format_dtypes
from av.container import InputContainer
from av.stream import Discard

from prefork.engines.errors import InputError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
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
_PATIENCE = 100  # failures in a row to find another packet
# At a tag that is not UTF-8, PyAV 18 stops unless told not to; PyAV 19 never does, and cannot be told.
_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if hasattr(InputContainer, "metadata_errors") else {}
_FULL_SCALE = {"u1": (128, 2**7), "i2": (0, 2**15), "i4": (0, 2**31), "f4": (0, 1), "f8": (0, 1)}

av.logging.set_level(None)


class AudioError(InputError):
    """A recording that cannot be read."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What the header of a media file says about its sound.

    seconds: length of the audio stream. sample_rate: Hz, in the file. codec: FFmpeg's name of the decoder.
    """

    path: Path
    seconds: float
    sample_rate: int
    channels: int
    codec: str


def probe(path: Path | str) -> Recording:
    """The recording's header, without decoding; packets are counted where the header states no length.

    Raises AudioError if there is no such file, or no sound in it.
    """
    path = Path(path)
    with _open(path) as container:
        stream = _audio_stream(container, path)
        seconds = _stated_seconds(container, stream)
        if seconds is None:
            seconds = _counted_seconds(container, stream, path)
        if seconds <= 0:
            raise AudioError(f"{path} holds no audio: its length is 0 s; record or export it again")
        context = stream.codec_context
        return Recording(path, float(seconds), context.sample_rate, context.channels, context.codec.name)


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
        self._container, self._stream = _open_stream(path)
        frame = next(self._frames(), None)
        if frame is None:
            self.close()
            raise AudioError(f"{path} has an audio stream but no audio in it; copy or export it again")
        self.rate = frame.sample_rate
        self._tick = _time_base(self._stream) or Fraction(1, self.rate)  # seconds
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
                yield block.samples_from(position)
        self._ended = True

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
        self._container, self._stream = _open_stream(self._path)
        self._blocks, self._at = self._place(0), 0
        self._ended = self._sought = False

    def _seek(self, position: int) -> bool:
        """Makes a block near `position` the next one; False if there is none."""
        time = self._origin + Fraction(position, self.rate)
        try:
            self._container.seek(int(time / self._tick), stream=self._stream)
        except av.error.FFmpegError as error:
            _check_damage(error, self._path)
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
        for packet in chain(_packets(self._container, self._stream, self._path), [None]):
            try:
                yield from self._stream.decode(packet)  # None: what the decoder still holds
            except av.error.FFmpegError as error:
                _check_damage(error, self._path)


def _packets(container: InputContainer, stream: AudioStream, path: Path) -> Iterator[Packet[AudioStream]]:
    """The stream's packets from here to the end. Reads on behind damage, as long as there is anything to read."""
    failures = 0
    while failures < _PATIENCE:
        try:
            for packet in container.demux(stream):
                failures = 0
                yield packet
            return
        except av.error.FFmpegError as error:
            _check_damage(error, path)
            failures += 1


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


def _open(path: Path) -> InputContainer:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is not a file; give a recording")
    if status.st_size == 0:
        raise AudioError(f"{path} is empty; copy or export it again")
    try:
        # The prefix keeps a name such as "concat:a|b" from being taken for a protocol, the whitelist keeps a
        # playlist from fetching its parts from the network.
        container: InputContainer = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, **_TAGS)
        return container
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise AudioError(f"{path} cannot be opened: {error.strerror}; check its permissions") from error
        raise AudioError(
            f"{path} is not a recording, or is cut off before its index ({error.strerror}); "
            "check what it is, or copy it again"
        ) from error


def _audio_stream(container: InputContainer, path: Path) -> AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise AudioError(f"{path} has no audio stream; give the recording that has the audio")
    assert isinstance(stream, av.AudioStream)
    if stream.codec_context is None:  # whatever PyAV's types say
        raise AudioError(f"{path} has audio in a codec that FFmpeg cannot decode; convert it to WAV or FLAC")
    return stream


def _open_stream(path: Path) -> tuple[InputContainer, AudioStream]:
    """The file with its best audio stream, ready to be decoded by this thread alone."""
    container = _open(path)
    stream = _audio_stream(container, path)
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"
    for other in container.streams:
        other.discard = Discard.default if other is stream else Discard.all
    return container, stream


def _stated_seconds(container: InputContainer, stream: AudioStream) -> Fraction | None:
    if container.format.name in _GUESSED_LENGTH and not stream.start_time:
        return None
    tick = _time_base(stream)
    if stream.duration is not None and tick is not None:
        return stream.duration * tick
    if container.duration is None:
        return None
    start = stream.start_time * tick if stream.start_time and tick else Fraction(0)
    return Fraction(container.duration, av.time_base) - max(start, Fraction(0))


def _counted_seconds(container: InputContainer, stream: AudioStream, path: Path) -> Fraction:
    """From the first packet's time to the last one's end."""
    start = end = None
    for packet in _packets(container, stream, path):
        if packet.pts is not None:
            start = packet.pts if start is None else start
            end = packet.pts + (packet.duration or 0)
    tick = _time_base(stream)
    if start is None or end is None or tick is None:
        return Fraction(0)
    return (end - start) * tick


def _time_base(stream: AudioStream) -> Fraction | None:
    """Seconds from one timestamp to the next; None if the file does not say. PyAV 19 has a type of its own for it."""
    base = stream.time_base
    return Fraction(base.numerator, base.denominator) if base else None


def _check_damage(error: av.error.FFmpegError, path: Path) -> None:
    """Returns if the error is in the data, which is skipped; raises if the file could not be read."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError):
        raise AudioError(f"{path} could not be read to its end: {error.strerror}; check the disk") from error
