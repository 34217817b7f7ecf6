"""The document: what was said, by whom and when, whatever format it came from or goes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Timing(StrEnum):
    """Where a word's time comes from."""

    ALIGNED = "aligned"  # every character was found in the audio
    WILDCARD = "wildcard"  # the model cannot spell it: the stretch of speech between its neighbours
    INTERPOLATED = "interpolated"  # shared out between its neighbours' times
    NONE = "none"  # no time: nothing in the recording to put it on


@dataclass(frozen=True, slots=True)
class Character:
    """One aligned character of a word."""

    text: str
    start: float  # seconds
    end: float  # seconds
    score: float  # mean posterior probability, 0 to 1


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word of an utterance.

    text: as the transcript writes it. start, end: seconds in the recording, None without a time.
    score: mean posterior probability of its characters, 0 to 1, None if it was not aligned.
    """

    text: str
    start: float | None = None
    end: float | None = None
    score: float | None = None
    timing: Timing = Timing.NONE
    characters: tuple[Character, ...] = ()


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn: a CHAT main line, or a line of a plain text.

    text: the line as it is written, without speaker and times. start, end: seconds, None without times.
    """

    text: str
    words: tuple[Word, ...]
    speaker: str | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A transcript. `source` is the text it was read from, which a writer of the same format keeps
    byte for byte except for what it has to add."""

    utterances: tuple[Utterance, ...]
    source: str = ""
    format: str = "text"  # the format `source` is in, a name of engines.formats
    media: str | None = None  # what the transcript calls its recording
    languages: tuple[str, ...] = ()  # ISO 639-3 codes
    seconds: float | None = None  # length of the recording
    warnings: tuple[str, ...] = ()  # what the user should know about this file
