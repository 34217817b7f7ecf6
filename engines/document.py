"""The document: what was said, by whom and when, whatever format it came from or goes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Timing(StrEnum):
    """Where a word's time comes from."""

    ALIGNED = "aligned"  # every character was found in the audio
    WILDCARD = "wildcard"  # the model cannot spell it: the stretch of speech between its neighbours
    ATTENTION = "attention"  # where a speech model's cross-attention looked when it wrote the word
    SERVICE = "service"  # as a remote service says
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

    def end_by(self, time: float) -> Word:
        """The word, ended at that time if it goes on beyond; the same without times. time: seconds."""
        if self.start is None or self.end is None or self.end <= time:
            return self
        characters = tuple(replace(c, start=min(c.start, time), end=min(c.end, time)) for c in self.characters)
        return replace(self, start=min(self.start, time), end=time, characters=characters)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn: a CHAT main line, or a line of a plain text.

    text: the line as it is written, without speaker and times. start, end: seconds, None without times. missing: it
    was looked for in the recording and is not there; it stays without times.
    """

    text: str
    words: tuple[Word, ...]
    speaker: str | None = None
    start: float | None = None
    end: float | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of the recording in which one speaker talks; those of two speakers may overlap."""

    speaker: str
    start: float  # seconds
    end: float  # seconds


@dataclass(frozen=True, slots=True)
class Recovery:
    """How many utterances had times, were given times, and were not found in the recording."""

    timed: int = 0
    found: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A transcript, and what the stages of a pipeline have found out for it. `source` is the text it was read from,
    which a writer of the same format keeps byte for byte except for what it has to add.

    heard: the words that a recogniser heard, in order, as it writes them, punctuation included. turns: who speaks when,
    by their starts.
    """

    utterances: tuple[Utterance, ...]
    source: str = ""
    format: str = "text"  # the format `source` is in, a name of engines.formats
    media: str | None = None  # what the transcript calls its recording
    languages: tuple[str, ...] = ()  # ISO 639-3 codes
    seconds: float | None = None  # length of the recording
    warnings: tuple[str, ...] = ()  # what the user should know about this file
    heard: tuple[Word, ...] = ()
    turns: tuple[Turn, ...] = ()
    recovery: Recovery | None = None  # what became of utterances without times, if that was looked for
    video: bool = False  # whether the recording is one with pictures
