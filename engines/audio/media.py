"""Which files are recordings, by their names. Of any other name FFmpeg says whether it is one, in `container`.

A file with one of these suffixes promises to be a recording: if it is none, that is an error.
"""

from __future__ import annotations

from pathlib import Path

_AUDIO = (
    ".wav .flac .mp3 .m4a .aac .ogg .oga .opus .wma .aif .aiff .aifc .amr .awb .mka .m4b .au .snd .sph .mp2 .mpga .ac3 "
    ".eac3 .w64 .rf64 .wv .weba .spx .caf .tta .voc .ape .gsm .mpc .3ga"
)
_VIDEO = ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .wmv .asf .3gp .3g2 .flv .f4v .ts .mts .m2ts .vob .ogv .mxf .dv"
AUDIO_SUFFIXES = frozenset(_AUDIO.split())
VIDEO_SUFFIXES = frozenset(_VIDEO.split())
MEDIA_SUFFIXES = AUDIO_SUFFIXES | VIDEO_SUFFIXES


def is_video(path: Path | None) -> bool:
    """Whether it has pictures."""
    if path is None or path.suffix.lower() in MEDIA_SUFFIXES:
        return path is not None and path.suffix.lower() in VIDEO_SUFFIXES
    from prefork.engines.audio.container import has_pictures

    return has_pictures(path)
