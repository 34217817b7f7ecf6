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
    """One aligned character of a word, or one of its phones."""

    text: str
    start: float  # seconds
    end: float  # seconds
    score: float  # mean posterior probability, 0 to 1

    def clip(self, start: float, end: float) -> Character:
        first = min(max(self.start, start), end)
        return replace(self, start=first, end=min(max(self.end, first), end))


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word of an utterance.

    text: as the transcript writes it. start, end: seconds in the recording, None without a time.
    score: 0 to 1, None if it was not aligned: the mean posterior probability of its characters; with phones, how likely
    it is that it is said there. phones: in ARPAbet without stress, AX for its unstressed AH, where the model tells them
    apart.
    """

    text: str
    start: float | None = None
    end: float | None = None
    score: float | None = None
    timing: Timing = Timing.NONE
    characters: tuple[Character, ...] = ()
    phones: tuple[Character, ...] = ()

    def end_by(self, time: float) -> Word:
        """The word, ended at that time if it goes on beyond; the same without times. time: seconds."""
        if self.start is None or self.end is None or self.end <= time:
            return self
        return replace(self, start=min(self.start, time), end=time).keep_parts_within(min(self.start, time), time)

    def keep_parts_within(self, start: float, end: float) -> Word:
        """The word with its characters and phones cut at these seconds."""
        return replace(
            self,
            characters=tuple(character.clip(start, end) for character in self.characters),
            phones=tuple(phone.clip(start, end) for phone in self.phones),
        )


@dataclass(frozen=True, slots=True)
class SyntacticWord:
    """A word of Universal Dependencies: what has a part of speech and a place in the tree.

    upos, feats, deprel: as CoNLL-U writes them; feats sorted, empty without any. head: the number of the word that it
    depends on, among the utterance's syntactic words from 1; 0 for the root.
    """

    form: str
    lemma: str
    upos: str
    xpos: str = ""
    feats: str = ""
    head: int = 0
    deprel: str = "root"


class TokenKind(StrEnum):
    """What a token is to the grammar."""

    WORD = "word"
    SEPARATOR = "separator"  # CHAT's , „ ‡ and other punctuation within the utterance
    TERMINATOR = "terminator"


@dataclass(frozen=True, slots=True)
class Token:
    """What of an utterance takes part in its grammar: one item of CHAT's %mor, one token of CoNLL-U.

    text: as it is to be analysed: `because` where CHAT has `(be)cause`, `going` and `to` where it has `gonna [: going
    to]`. language: ISO 639-3 code, if it is not the utterance's. marker: CHAT's special form marker without its `@`
    (`l`, `s:spa`). words: the analysis; several where one token holds more (don't: do, n't); none as long as it was not
    analysed. run: tokens of the same run, a number from 1, stand side by side in the transcript and may be cut and
    joined with one another; those of run 0 stay as they are. source: first and last + 1 of the transcript's tokens,
    counted from 0, that this one comes from, if they were cut or joined in this utterance; those with the same stand
    for it together.
    """

    text: str
    kind: TokenKind = TokenKind.WORD
    language: str = ""
    marker: str = ""
    words: tuple[SyntacticWord, ...] = ()
    run: int = 0
    source: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn: a CHAT main line, or a line of a plain text.

    text: the line as it is written, without speaker and times. start, end: seconds, None without times. missing: it
    was looked for in the recording and is not there; it stays without times. tokens: what its grammar is made of; none
    where the text has yet to be tokenised, or has no words. language: ISO 639-3 code, if it is not the document's
    first. analysed: the transcript had its grammar already when it was read. events: what the transcript says is heard
    besides, each behind so many of the words: (0, "music").
    """

    text: str
    words: tuple[Word, ...]
    speaker: str | None = None
    start: float | None = None
    end: float | None = None
    missing: bool = False
    tokens: tuple[Token, ...] = ()
    language: str = ""
    analysed: bool = False
    events: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of the recording in which one speaker talks; those of two speakers may overlap."""

    speaker: str
    start: float  # seconds
    end: float  # seconds


@dataclass(frozen=True, slots=True)
class RecoveryCounts:
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
    format: str = "text"  # the format `source` is in, a name of prefork.engines.text.formats
    media: str | None = None  # what the transcript calls its recording
    languages: tuple[str, ...] = ()  # ISO 639-3 codes
    seconds: float | None = None  # length of the recording
    warnings: tuple[str, ...] = ()  # what the user should know about this file
    heard: tuple[Word, ...] = ()
    turns: tuple[Turn, ...] = ()
    recovery: RecoveryCounts | None = None  # what became of utterances without times, if that was looked for
    video: bool = False  # whether the recording is one with pictures

    def count_tagged(self) -> dict[str, int]:
        """How many utterances, and words of them, have an analysis."""
        tagged = [[t for t in u.tokens if t.words and t.kind is TokenKind.WORD] for u in self.utterances]
        return {"utterances": sum(map(bool, tagged)), "words": sum(map(len, tagged))}
