"""Which files are recordings, by their names."""

from __future__ import annotations

from pathlib import Path

AUDIO_SUFFIXES = frozenset(
    [".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".amr", ".caf"]
)
VIDEO_SUFFIXES = frozenset([".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp"])
MEDIA_SUFFIXES = AUDIO_SUFFIXES | VIDEO_SUFFIXES


def is_video(path: Path | None) -> bool:
    """Whether it has pictures."""
    return path is not None and path.suffix.lower() in VIDEO_SUFFIXES
