"""The recording: what a media file says about its sound, compared with what is there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error

from prefork.engines.audio.channels import ChannelSurvey, survey
from prefork.engines.audio.container import (
    AudioError,
    check_damage,
    find_audio,
    find_delay,
    find_time_base,
    is_played,
    open_container,
    open_stream,
    read_packets,
)
from prefork.engines.audio.content import measure_content
from prefork.engines.audio.sample_stream import LONGEST_GAP, SampleStream, judge
from prefork.engines.audio.selection import Selection
from prefork.engines.audio.wav import READERS

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

# Formats without a length in the header: FFmpeg's figure is the file's size over its first frames' bit rate.
# An MP3 with a Xing header does state it; FFmpeg shows that by the encoder's delay, which is in the same header.
_GUESSED_LENGTH = frozenset({"mp3", "aac", "ac3", "eac3", "loas"})
_MISSING = 0.3  # seconds by which a recording may differ from what its header says; encoders count their padding
_LEAST_BYTES = 50  # for a second; what is longer for its size is counted: silence in FLAC takes as little as that
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_LIE = 10  # times by which a clock that can be believed differs from the sound at most
_LONGEST = 7 * 24 * 3600.0  # seconds; a recording that is longer is none


@dataclass(frozen=True, slots=True)
class Recording:
    """What a media file holds of sound.

    seconds: from the beginning of the recording, or of the film, to the end of its sound. claimed: as the header
    has it, 0 if it does not say. sample_rate: Hz, in the file. codec: FFmpeg's name of the decoder. selection: the
    track and the channels that are read. cancels: some channels are left out because they cancel the others. tracks:
    audio streams of the file. silent: nothing was recorded on this one.
    """

    path: Path
    seconds: float
    sample_rate: int
    channels: int
    codec: str
    claimed: float = 0.0
    selection: Selection = field(default_factory=Selection)
    cancels: bool = False
    tracks: int = 1
    silent: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its user should know."""
        found = []
        if self.claimed - self.seconds > _MISSING:
            missing = f"{self.claimed - self.seconds:.1f} s of {self.claimed:.1f} s are missing at its end"
            found.append(f"{missing}: it is cut off, copy it again")
        elif self.claimed and self.seconds - self.claimed > _MISSING:
            found.append(
                f"its header says {self.claimed:.1f} s, but there are {self.seconds:.1f} s: all of them were used"
            )
        mixed = self.selection.channels
        if self.cancels and mixed:
            listed = f"channel{'s' * (len(mixed) != 1)} {', '.join(map(str, mixed))}"
            found.append(f"its channels cancel each other out: {listed} of {self.channels} used (--channel chooses)")
        if self.silent and self.tracks > 1:
            found.append(f"its track is silent, and it has {self.tracks} audio tracks: choose one with --track")
        return tuple(f"{self.path.name}: {text}" for text in found)


def probe(path: Path | str, selection: Selection | None = None) -> Recording:
    """The recording's header, what it states of its length compared with the last packets; where they are elsewhere,
    or it states none, all are counted. Of several channels or tracks, a few seconds are decoded.

    Raises AudioError if there is no such file, no sound in it, or nothing that was selected.
    """
    path, selection = Path(path), selection or Selection()
    with open_container(path) as container:
        stream = find_audio(container, path, selection.track)
        context = stream.codec_context
        form = container.format.name
        rate, channels, codec = context.sample_rate, context.channels, context.codec.name
        tracks = len(container.streams.audio)
        start = _find_start(container, stream, path)
        delay = _find_delay(container, stream, start)
        claimed = _stated_seconds(container, stream) or None
        seconds = None if claimed is None else _find_end(container, stream, start or 0, claimed, path)
        if claimed is not None and seconds is None and _goes_on(container, path):
            claimed = None  # it is the film's length, of which there is the end
    if seconds is None:
        seconds = _count_seconds(path, selection.track) or _count_samples(path, selection)
    if seconds is None or (claimed is not None and abs(claimed - seconds) <= _MISSING):
        seconds = claimed or Fraction(0)
    if form in READERS and (data := READERS[form](path)) is not None and data.there > 0:
        claimed = seconds * Fraction(data.claimed, data.there)
    if seconds <= 0:
        raise AudioError(f"{path} holds no audio: its length is 0 s; record or export it again")
    if seconds > _LONGEST:
        raise AudioError(
            f"{path} would last {float(seconds) / 3600:.0f} h by its timestamps; cut it, or export it again"
        )
    if selection.channels and max(selection.channels) > channels:
        raise AudioError(
            f"{path} has {channels} channel{'s' * (channels != 1)}, not {max(selection.channels)}; check --channel"
        )
    found = (
        survey(path, selection.track)
        if tracks > 1 or (channels > 1 and selection.channels is None)
        else ChannelSurvey()
    )
    cancels = selection.channels is None and bool(found.mixed)
    chosen = replace(selection, channels=found.mixed if selection.channels is None else selection.channels)
    return Recording(
        path,
        float(seconds + delay),
        rate,
        channels,
        codec,
        float(claimed + delay if claimed else 0),
        chosen,
        cancels,
        tracks,
        found.silent,
    )


def _find_start(container: InputContainer, stream: AudioStream, path: Path) -> int | None:
    """The stream's first timestamp; FFmpeg says 0 for all streams of an AVI. Moves the container. Raises AudioError if
    the clock of an MP4 has nothing to do with its sound."""
    known, tick = stream.start_time, find_time_base(stream)
    if container.format.name not in ("avi", _MP4) or tick is None:
        return known
    first = next((packet for packet in read_packets(container, stream, path) if packet.pts is not None), None)
    if first is None:
        return known
    context = stream.codec_context
    usual = Fraction(context.frame_size or 0, context.sample_rate or 1)
    stated = (first.duration or 0) * tick
    if container.format.name == _MP4 and 0 < stated * _LIE < usual:
        raise AudioError(
            f"{path} has a damaged header: by its clock a packet of {float(usual) * 1000:.0f} ms lasts "
            f"{float(stated) * 1000:.2f} ms; copy or export it again"
        )
    return first.pts if container.format.name == "avi" else known


def _find_delay(container: InputContainer, stream: AudioStream, start: int | None) -> Fraction:
    """Seconds of the film before its sound begins. start: the stream's first timestamp."""
    tick = find_time_base(stream)
    if tick is None or start is None:
        return Fraction(0)
    delay = find_delay(container, stream, start * tick)
    return delay if delay <= LONGEST_GAP else Fraction(0)


def _stated_seconds(container: InputContainer, stream: AudioStream) -> Fraction | None:
    if container.format.name in _GUESSED_LENGTH and not stream.start_time:
        return None
    if container.format.name == "wav" and not stream.codec_context.codec.name.startswith("pcm_"):
        return None  # the rate in the header of a compressed one is a mean, and often wrong
    tick = find_time_base(stream)
    if stream.duration is not None and tick is not None:
        return stream.duration * tick
    if container.duration is None:
        return None
    start = stream.start_time * tick if stream.start_time and tick else Fraction(0)
    return Fraction(container.duration, av.time_base) - max(start, Fraction(0))


def _find_end(
    container: InputContainer, stream: AudioStream, start: int, seconds: Fraction, path: Path
) -> Fraction | None:
    """Seconds from the first timestamp to the end of the last packet, if there are some where the stated seconds end;
    else None. Moves the container there."""
    tick = find_time_base(stream)
    if tick is None or seconds * _LEAST_BYTES > measure_content(path):
        return None
    try:
        container.seek(start + int(max(Fraction(0), seconds - 1) / tick), stream=stream)
    except av.error.FFmpegError as error:
        check_damage(error, path)
        return None
    end, last, step = start, None, 0  # of packets that do not say how long they last, the next one tells
    for packet in read_packets(container, stream, path):
        if packet.pts is not None:
            step = packet.pts - last if last is not None and packet.pts > last else step
            end, last = max(end, packet.pts + (packet.duration or step)), packet.pts
    found = (end - start) * tick if last is not None else Fraction(0)
    return found if found >= seconds - Fraction(_MISSING) else None


def _goes_on(container: InputContainer, path: Path) -> bool:
    """Whether the pictures, or another sound, of a film reach to its end. Moves the container there."""
    played = [s for s in container.streams if is_played(s) and s.start_time is not None]
    stated = [s.duration * base for s in played if s.duration is not None and (base := find_time_base(s))]
    lengths = [max(stated)] if stated else []
    lengths += [Fraction(container.duration, av.time_base)] if container.duration else []
    if len(played) < 2 or not lengths:
        return False
    seconds = min(lengths)
    start = min(s.start_time * (find_time_base(s) or 0) for s in played if s.start_time is not None)
    try:
        container.seek(int((start + max(Fraction(0), seconds - 1)) * av.time_base))
        ends = [
            (packet.pts + (packet.duration or 0)) * (find_time_base(packet.stream) or 0) - start
            for packet in container.demux(played)
            if packet.pts is not None
        ]
    except av.error.FFmpegError as error:
        check_damage(error, path)
        return False
    return bool(ends) and max(ends) >= seconds - Fraction(_MISSING)


def _count_samples(path: Path, selection: Selection) -> Fraction:
    """What is decoded of a recording whose packets do not say how long they last."""
    stream = SampleStream(path, replace(selection, channels=()))
    try:
        return Fraction(sum(map(len, stream.read_from(0))), stream.rate)
    finally:
        stream.close()


def _count_seconds(path: Path, track: int | None) -> Fraction | None:
    """The packets' own time, with the gaps between them; None if they have none."""
    container, stream = open_stream(path, track)
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
            elif judge(float((at - expected) * tick)) == "broken":
                shift += expected - at
                at = expected
            end = at + (packet.duration or 0)
            expected = end if expected is None else max(expected, end)
    return None if first is None or expected is None or tick is None else (expected - first) * tick
