"""Which of the sound that a recording holds is meant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selection:
    """What is read of a recording.

    track: number of the audio stream among the file's audio streams, from 1; None for the one that FFmpeg deems best.
    channels: numbers of the channels that are mixed, from 1; empty for all of them; None for those that do not cancel
    each other out.
    """

    track: int | None = None
    channels: tuple[int, ...] | None = None
