"""The container: a media file opened by FFmpeg, its audio stream, its packets; one reason for each file that is none.

Only formats that hold sound themselves are opened. A playlist or a concat script names other files and claims what it
likes of them; whatever its own name, it is no recording.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.error
import av.logging
from av.container import InputContainer
from av.format import ContainerFormat
from av.stream import Discard, Disposition

from prefork.engines.audio.content import is_row, measure_content, open_content
from prefork.engines.audio.wav import read_wav_data
from prefork.engines.errors import InputError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.stream import Stream

_PATIENCE = 100  # failures in a row to find another packet
# FFmpeg's names of the formats that it tells by their content, and of those that it tells by a file's suffix, which are
# allowed to files of such a suffix alone. What is raw PCM, without a header, is in neither.
_FORMATS = (
    "3dostr,aa,aac,aax,ac3,act,adx,aiff,amr,amrnb,amrwb,ape,apm,asf,ast,au,avi,avr,bonk,caf,codec2,dsf,dss,dts,dv,eac3,"
    "epaf,flac,flv,gsm,gxf,iff,ilbc,ircam,kvag,lc3,live_flv,loas,lxf,m4a,matroska,webm,mj2,mlp,mmf,mov,mp3,mp4,mpc,mpc8,"
    "mpeg,mpegts,mxf,nistsphere,nsv,nut,nuv,ogg,oma,osq,pvf,qcp,qoa,rka,rm,sds,shn,smjpeg,sox,swf,tak,truehd,tta,vag,voc,"
    "vqf,w64,wav,wavarc,wsaud,wsd,wtv,wv,wve,xwma,3g2,3gp"
)
_BY_SUFFIX = "adp,afc,apac,aptx,aptx_hd,daud,dfpwm,dtshd,g722,g723_1,g728,g729,laf,msf,rso,sbc,sln"
# A name such as "concat:a|b" is kept from being taken for a protocol by the prefix that it gets when it is opened.
_OPTIONS = {"protocol_whitelist": "file"}
# FFmpeg looks for DTS in what a WAV says is PCM, packet by packet: 2.9 ms for 2.7 s of 16 kHz, and 0.7 with 8 packets.
# They have 4 KB, and DTS is found in four of its frames, which are no longer.
_WAV_SUFFIXES, _WAV_OPTIONS = (".wav", ".wave"), {"max_probe_packets": "8"}
# At a tag that is not UTF-8, PyAV 18 stops unless told not to; PyAV 19 never does, and cannot be told.
_MOST_CHANNELS = 64  # FFmpeg's decoders take no more
_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if hasattr(InputContainer, "metadata_errors") else {}

# What it means when FFmpeg says that memory is short: it refuses what is larger than it ever allocates.
ABSURD = "a number in it asks for more memory than any recording needs"

_BLOCK = 1 << 20  # bytes

av.logging.set_level(None)


class AudioError(InputError):
    """A recording that cannot be read."""


def open_container(path: Path) -> InputContainer:
    _check(path)
    try:
        return _open(path)
    except av.error.ArgumentError as error:  # what FFmpeg says of a format that is not among those above
        raise AudioError(
            f"{path} is not a recording: a playlist, a text, or something with a damaged header; give the recording"
        ) from error
    except av.error.MemoryError as error:
        raise AudioError(f"{path} is damaged: {ABSURD}; copy it again") from error
    except av.error.FFmpegError as error:
        if fault := _find_fault(error, path):
            raise AudioError(f"{path} cannot be opened: {fault.strerror}; check its permissions") from error
        raise AudioError(
            f"{path} is not a recording, or is cut off before its index ({error.strerror}); "
            "check what it is, or copy it again"
        ) from error


def _check(path: Path) -> None:
    if is_row(path):
        if not measure_content(path):
            raise AudioError(f"{path} is empty; leave the row out, or put its recording there")
        return
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} is not a file; give a recording")
    if status.st_size == 0:
        raise AudioError(f"{path} is empty; copy or export it again")


def _open(path: Path) -> InputContainer:
    allowed = [_FORMATS, *(name for name in _BY_SUFFIX.split(",") if path.suffix[1:].lower() in _list_suffixes(name))]
    options = {**_OPTIONS, "format_whitelist": ",".join(allowed)}
    if path.suffix.lower() in _WAV_SUFFIXES:
        options |= _WAV_OPTIONS
    container: InputContainer = av.open(_locate(path), options=options, **_TAGS)
    if container.format.name == "wav" and (data := read_wav_data(path)) is not None and data.goes_on:
        container.close()
        container = av.open(_locate(path), options={**options, "ignore_length": "1"}, **_TAGS)
    return container


def _locate(path: Path) -> Any:
    return open_content(path) if is_row(path) else f"file:{path}"


@cache
def _list_suffixes(name: str) -> frozenset[str]:
    """Of the files that FFmpeg takes to be in a format; none if this FFmpeg does not know it."""
    try:
        return frozenset(ContainerFormat(name, "r").extensions)
    except ValueError:
        return frozenset()


def is_named_as_one(path: Path) -> bool:
    """Whether FFmpeg knows the suffix as that of a format with sound."""
    names = [*_FORMATS.split(","), *_BY_SUFFIX.split(",")]
    return any(path.suffix[1:].lower() in _list_suffixes(name) for name in names)


def is_recording(path: Path) -> bool:
    """Whether FFmpeg finds sound in a file, whatever its name, that it can decode."""
    try:
        with open_container(path) as container:
            return bool(find_audio(container, path).codec_context.sample_rate)
    except AudioError:
        return False


def is_lossless(path: Path) -> bool:
    """Whether its sound is as it was before it was compressed, if it was; not so if it cannot be opened."""
    try:
        with open_container(path) as container:
            return bool(find_audio(container, path).codec_context.codec.lossless)
    except AudioError:
        return False


def has_pictures(path: Path) -> bool:
    """Whether it is a film. Raises AudioError if it cannot be opened."""
    with open_container(path) as container:
        return any(stream.type == "video" and is_played(stream) for stream in container.streams)


def find_audio(container: InputContainer, path: Path, track: int | None = None) -> AudioStream:
    """The audio stream of that number, from 1, or the best one. Raises AudioError if none can be decoded."""
    known = container.streams.audio
    if track is not None and known and track > len(known):
        raise AudioError(f"{path} has {len(known)} audio track{'s' * (len(known) != 1)}, not {track}; check --track")
    stream = container.streams.best("audio") if track is None or not known else known[track - 1]
    rated = [s for s in known if s.codec_context is not None and s.codec_context.sample_rate]
    # The FFmpeg of PyAV 18 chooses none of these, that of PyAV 19 one that it cannot decode.
    if (stream is None and rated) or (stream in rated and stream.codec_context.channels > _MOST_CHANNELS):
        raise AudioError(
            f"{path} has audio of which FFmpeg cannot tell how many channels it has, or has too many "
            f"(at most {_MOST_CHANNELS}); export it with fewer"
        )
    if stream is None:
        raise AudioError(f"{path} has no audio stream; give the recording that has the audio")
    assert isinstance(stream, av.AudioStream)
    if stream.codec_context is None:  # whatever PyAV's types say
        raise AudioError(f"{path} has audio in a codec that FFmpeg cannot decode; convert it to WAV or FLAC")
    return stream


def open_stream(path: Path, track: int | None = None) -> tuple[InputContainer, AudioStream]:
    """The file with its audio stream of that number, or its best one, ready to be decoded by this thread alone."""
    container = open_container(path)
    stream = find_audio(container, path, track)
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "NONE"
    for other in container.streams:
        other.discard = Discard.default if other is stream else Discard.all
    return container, stream


def find_delay(container: InputContainer, stream: AudioStream, first: Fraction) -> Fraction:
    """Seconds from the beginning of the film to `first`, seconds by the stream's clock; 0 if nothing else begins
    earlier. The film begins with the first of its streams of pictures and of sound."""
    others = [
        other.start_time * base
        for other in container.streams
        if other.index != stream.index
        and is_played(other)
        and other.start_time is not None
        and (base := find_time_base(other)) is not None
    ]
    return first - min([first, *others])


def is_played(stream: Stream) -> bool:
    """Whether it is sound or moving pictures. The picture of a cover is one of no moment."""
    return stream.type == "audio" or (stream.type == "video" and not stream.disposition & Disposition.attached_pic)


def read_packets(container: InputContainer, stream: AudioStream, path: Path) -> Iterator[Packet[AudioStream]]:
    """The stream's packets from here to the end. Reads on behind damage, as long as there is anything to read."""
    failures = 0
    while failures < _PATIENCE:
        try:
            for packet in container.demux(stream):
                failures = 0
                yield packet
            return
        except av.error.FFmpegError as error:
            check_damage(error, path)
            failures += 1


def find_time_base(stream: Stream) -> Fraction | None:
    """Seconds from one timestamp to the next; None if the file does not say. PyAV 19 has a type of its own for it."""
    base = stream.time_base
    return Fraction(base.numerator, base.denominator) if base else None


def check_damage(error: av.error.FFmpegError, path: Path) -> None:
    """Returns if the error is in the data, which is skipped; raises if the file could not be read.

    FFmpeg's own want of memory is no error of the machine: it is damage, see ABSURD.
    """
    if fault := _find_fault(error, path):
        raise AudioError(f"{path} could not be read to its end: {fault.strerror}; check the disk") from error


def _find_fault(error: av.error.FFmpegError, path: Path) -> OSError | None:
    """What the system says when it is asked itself: FFmpeg's demuxers and decoders use its error numbers for damaged
    data too, EIO where a file is too short, and EPERM, which reading never ends with, wherever they like."""
    if isinstance(error, OSError) and error.errno != errno.EPERM and not is_row(path):
        try:
            with path.open("rb", buffering=0) as file:
                while file.read(_BLOCK):
                    pass
        except OSError as fault:
            return fault
    return None
