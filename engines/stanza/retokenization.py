"""Where a tokeniser and a transcript do not agree: whose tokens stand, and what each comes from.

Words of the same run (`Token.run`) may be cut and joined with one another; those of run 0 are kept as they are,
whatever the tokeniser makes of them; WHOLE ones do not even hold several syntactic words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefork.engines.text.document import SyntacticWord, Token, TokenKind

WHOLE = -1


@dataclass(frozen=True, slots=True)
class RawToken:
    """A token as a tokeniser has it. start, end: in the words, joined by spaces. several: whether it holds several
    syntactic words."""

    text: str
    start: int
    end: int
    several: bool = False


@dataclass(frozen=True, slots=True)
class Recut:
    """A token that stands. first, last: the first of the words that it comes from, and the last + 1."""

    text: str
    first: int
    last: int
    several: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Analysis:
    """A token that stands, with the words it holds. first, last: as in Recut."""

    text: str
    first: int
    last: int
    words: tuple[SyntacticWord, ...]

    @classmethod
    def read(cls, content: Sequence[Any]) -> Analysis:
        text, first, last, words = content
        return cls(text, first, last, tuple(SyntacticWord(*word) for word in words))

    def make_token(self, is_last: bool) -> Token:
        """For a text that had no tokens."""
        spoken = any(character.isalnum() for character in self.text) or self.words[0].upos not in ("PUNCT", "SYM")
        mark = TokenKind.TERMINATOR if is_last else TokenKind.SEPARATOR
        return Token(self.text, TokenKind.WORD if spoken else mark, words=self.words)


def merge(words: Sequence[str], runs: Sequence[int], found: Sequence[RawToken]) -> Iterator[Recut]:
    """The tokeniser's tokens where they may take the place of the words, the words everywhere else.

    >>> found = [RawToken("gon", 0, 3), RawToken("na", 3, 5), RawToken("do n't", 6, 12)]
    >>> [(token.text, token.first, token.last) for token in merge(["gonna", "do", "n't"], [1, 2, 0], found)]
    [('gon', 0, 1), ('na', 0, 1), ('do', 1, 2), ("n't", 2, 3)]
    """
    places = _place(words)
    several = {(piece.start, piece.end) for piece in found if piece.several}
    begun = {piece.start for piece in found}
    firsts = [number for number, place in enumerate(places) if number == 0 or place.start in begun]
    for first, last in zip(firsts, [*firsts[1:], len(places)], strict=True):
        inside = [piece for piece in found if places[first].start <= piece.start < places[last - 1].end]
        changed = [piece.text for piece in inside] != list(words[first:last])
        run = set(runs[first:last])
        if inside and changed and len(run) == 1 and max(run) > 0:
            yield from (Recut(piece.text, first, last, piece.several) for piece in inside)
            continue
        for number in range(first, last):
            place = places[number]
            whole = runs[number] == WHOLE
            yield Recut(place.text, number, number + 1, (place.start, place.end) in several and not whole, whole)


def _place(words: Sequence[str]) -> list[RawToken]:
    places: list[RawToken] = []
    start = 0
    for word in words:
        places.append(RawToken(word, start, start + len(word)))
        start += len(word) + 1
    return places


def fill(tokens: Sequence[Token], found: Sequence[Analysis]) -> tuple[Token, ...]:
    """The tokens with what was found; where there were none, or others, the tokeniser's own."""
    if not tokens:
        return tuple(one.make_token(place == len(found) - 1) for place, one in enumerate(found))
    if [(one.first, one.last) for one in found] == [(place, place + 1) for place in range(len(tokens))]:
        return tuple(replace(token, words=one.words) for token, one in zip(tokens, found, strict=True))
    sources = Counter((one.first, one.last) for one in found)
    return tuple(
        replace(tokens[one.first], words=one.words, source=source)
        if source[1] - source[0] == 1 == sources[source]
        else Token(one.text, words=one.words, source=source)
        for one in found
        for source in [(one.first, one.last)]
    )
