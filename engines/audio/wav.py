"""What the header of a WAV, W64, CAF or AVI file says of its length, and what is really there. FFmpeg tells neither."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prefork.engines.audio.content import open_content

_UNKNOWN_SIZE = 0x7FFF_F000  # bytes of data, from which on they stand for "to the end"
_UNKNOWN_64 = 1 << 62
_BLOCK = 1 << 20  # bytes read at a time
# Chunks of metadata, as programs and recorders write them behind the data.
_KNOWN = frozenset(
    b"LIST|id3 |ID3 |bext|cue |fact|iXML|PEAK|smpl|JUNK|junk|afsp|_PMX|axml|chna|PAD |FLLR|inst|acid|strc|DISP|umid|"
    b"minf|elm1|regn|plst|labl|note|adtl|MD5 |cart|levl".split(b"|")
)


@dataclass(frozen=True, slots=True)
class WavData:
    """The data chunk, in bytes. claimed: by the header. there: in the file, with the sound that goes on behind what the
    header says."""

    claimed: int
    there: int

    @property
    def goes_on(self) -> bool:
        return self.there > self.claimed


def read_wav_data(path: Path) -> WavData | None:
    """None if it is no RIFF file, or one by a program that did not know the length. Raises OSError."""
    with open_content(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(12)[:4] != b"RIFF":
            return None
        rate = 0  # bytes per second
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                if not rate or not 0 < size < _UNKNOWN_SIZE:
                    return None
                behind = file.tell() + size
                rest = end - behind - size % 2
                goes_on = rest * 10 >= rate and not _is_metadata(file, behind + size % 2, end)
                return WavData(size, end - behind + size if goes_on else min(size, end - behind + size))
            content = file.read(16) if head[:4] == b"fmt " else b""
            rate = int.from_bytes(content[8:12], "little") if content else rate
            file.seek(size + size % 2 - len(content), 1)
    return None


def read_w64_data(path: Path) -> WavData | None:
    """The same of Sony's Wave64, whose chunks have 16 bytes of name and 8 of a size that counts these too."""
    with open_content(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.seek(40)  # RIFF, the size of all, WAVE
        while len(head := file.read(24)) == 24:
            size = int.from_bytes(head[16:], "little") - 24
            if head[:4] == b"data":
                return WavData(size, min(size, end - file.tell())) if 0 < size < _UNKNOWN_64 else None
            if not 0 <= size <= end:
                return None
            file.seek(size + -size % 8, 1)
    return None


def read_caf_data(path: Path) -> WavData | None:
    """The same of Apple's Core Audio Format, whose chunks have 4 bytes of name and 8 of their size."""
    with open_content(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.seek(8)  # caff, its version
        while len(head := file.read(12)) == 12:
            size = int.from_bytes(head[4:], "big", signed=True)
            if head[:4] == b"data":
                return WavData(size, min(size, end - file.tell())) if size > 0 else None
            if not 0 <= size <= end:
                return None
            file.seek(size, 1)
    return None


def read_avi_data(path: Path) -> WavData | None:
    """The same of AVI, for all streams together: of the size of its first RIFF chunk."""
    with open_content(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    return WavData(size, min(size, end - 8)) if head[:4] == b"RIFF" and 0 < size < _UNKNOWN_SIZE else None


READERS = {
    "wav": read_wav_data,
    "w64": read_w64_data,
    "caf": read_caf_data,
    "avi": read_avi_data,
}  # by FFmpeg's name of the format


def _is_metadata(file: IO[bytes], position: int, end: int) -> bool:
    """Whether chunks follow, or nothing but zeros."""
    file.seek(position)
    head = file.read(8)
    name, size = head[:4], int.from_bytes(head[4:], "little")
    if name in _KNOWN or (name.isalnum() and name.isascii() and position + 8 + size <= end):
        return True
    file.seek(position)
    while block := file.read(_BLOCK):
        if block.count(0) != len(block):
            return False
    return True
