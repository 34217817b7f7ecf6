"""What of a CHAT main line takes part in its grammar: the tokens that %mor counts, and how they stand in the line.

Where the rules stand:

[manual]   https://talkbank.org/0info/manuals/CHAT.html, chapters Words, Utterances, Scoped Symbols, Dependent Tiers
[chatter]  https://github.com/TalkBank/chatter, talkbank-model/src/alignment/helpers (rules.rs, count.rs) and
           book/src/chat-format (word-internals.md, retraces.md, replacements.md): TalkBank's own reading of it

The rules:

- Words count, and the tag markers `,` `„` `‡`, and the terminator.
- What was said and taken back does not: `[/] [//] [///] [/-] [/?]` with the word or the `<group>` before them, nor
  what is excluded by `[e]`. A code belongs to what stands before it, other codes between them included.
- Of `gonna [: going to]` the replacement's words count, of `[:: ...]` the word itself.
- No words are fillers (&-um), fragments (&+fr), nonwords (&~ga), events (&=laughs), other speakers (&*MOT:mhm), ends of
  long features, pauses, omitted words (0is; in CA also `(is)`), what is not transcribed (xxx, yyy, www), linkers,
  contours (→), codes in brackets, and bullets.
- A word is analysed without CHAT's marks, with the letters in its parentheses: (be)cause is `because`, ice+cream
  `icecream`, no: `no`, °soft° `soft`, New_York `New_York` [chatter, word-internals: cleaned_text].
- `@s` is of the other one of the first two @Languages, `@s:spa` of that; of several (`@s:eng&spa`) of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, pairwise

from prefork.engines.text.document import Token, TokenKind

TIERS = frozenset({"%mor", "%gra", "%umor", "%ugra"})  # those with u are what batchalign2 wrote
# Tiers that have an item for each word of the main line; they would no longer agree with a line that is cut anew.
WORD_TIERS = frozenset({"%wor", "%pho", "%mod", "%sin", "%xphosyl", "%xmodsyl", "%xphoaln", "%xphoint"})

TAG_MARKERS = frozenset(",„‡")
UNTRANSCRIBED = frozenset({"xxx", "yyy", "www"})
_ENDS = r"\+(?:\.\.[.?]|//?[.?]|!\?|\"/?\.|\.)|\.\.\.|[.?!]"
_LEXEME = re.compile(
    rf"""
      (?P<bullet> \x15[^\x15]*\x15 )
    | (?P<code> \[[^\]]*\] )
    | (?P<end> (?:{_ENDS})(?=[\s\[\]<>\x15“”"]|$) )
    | (?P<linker> \+[<"^,+≈≋] )
    | (?P<pause> \((?:[\d:]*\.[\d:.]*|\d+)\) )
    | (?P<open> < )
    | (?P<close> > )
    | (?P<separator> [,„‡] )
    | (?P<word> [^\s\[\]<>,„‡“”"\u2039\u203a\u3014\u3015\x15]+ )
    """,
    re.VERBOSE,
)
STRESS_MARKS = frozenset("ˈˌ")
_LETTER_MARKS = "ˈˌἩΫ"  # marks that are letters to Unicode
_PLAIN_WORD = rf"[^\W\d_{_LETTER_MARKS}]+(?:['-][^\W\d_{_LETTER_MARKS}]+)*"
_PLAIN_MAIN = re.compile(rf"[^:]*:\s*({_PLAIN_WORD}(?: {_PLAIN_WORD})*) ([.?!]) *(?:\x15\d+_\d+\x15)?\s*")
_FITTING = re.compile(r"[^\W\d_](?:[\w'-]*[^\W_])?'?|'[^\W\d_][\w'-]*")
_TAKEN_BACK = re.compile(r"\[(?:/{1,3}|/-|/\?|e)\]")
_REPLACEMENT = re.compile(r"\[:\s(.*)\]", re.DOTALL)
_PRECODE = re.compile(r"\[- ([a-z]{2,8})[^\]]*\]")
_LANGUAGE = re.compile(r"s:([a-z]{2,8})")
_OMITTED = re.compile(r"0(?!\d).*|\([^()]*\)")
_TAIL = re.compile(r"(?:\s|\x15[^\x15]*\x15|\[\+[^\]]*\])*$")  # bullets, and postcodes
_GLUED_END = re.compile(rf"(?<=[^\s.?!+/\"])(?!\.\.\.)(?:{_ENDS})(?={_TAIL.pattern})")
_PART_OF_SPEECH = re.compile(r"(?<=.)\$[a-z:]+$")

_REPEATED_SOUNDS = re.compile("↫[^↫]*↫")
_OVERLAP = re.compile(r"[⌈⌉⌊⌋](?:[2-9](?!\d))?")
_ACCENTS = "ˈˌ"
_VOICE = "↑↓≠∾⁑⤇∙↻⤆∆∇°▁▔☺♋⁇∬∮↫\u204e◉§"
_CONTOURS = "⇗↗→↘⇘↖↙←≈≋∞≡"
_UNSEEN = "\x01\x02\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\u061c\ufeff"
_JOINTS = "+^~();"
_MARKS = str.maketrans("", "", _ACCENTS + _VOICE + _CONTOURS + _UNSEEN)
_WORD_MARKS = str.maketrans("", "", _JOINTS)
_GREEK_MARKS = re.compile(r"[ἩΫ]")  # laughter and a yawn, unless the word is Greek
_GREEK = re.compile(r"(?![ἩΫ])[\u0370-\u03ff\u1f00-\u1fff]")
_LENGTH = re.compile(r"(?<!\d):+|:+(?!\d)")
_QUOTES = "¿¡«»"


@dataclass(frozen=True, slots=True)
class Placed:
    """A token, and where all that stands for it in the main line begins and ends."""

    token: Token
    start: int
    end: int


@dataclass(slots=True)
class _LineItem:
    """What may yet be taken back. token: none for what is no word, but may be replaced by one."""

    token: Token | None
    start: int
    end: int
    plain: bool = False  # whether the line has it as it is analysed, and no code that belongs to it alone


def list_tokens(main: str, languages: Sequence[str], *, fixed: bool = False) -> tuple[tuple[Token, ...], str]:
    """The tokens of a main line, and its language, if that is not the first of the file's.

    languages: the file's, ISO 639-3. fixed: no tokens may be cut or joined.
    """
    plain = _PLAIN_MAIN.fullmatch(main)
    words = plain[1].split(" ") if plain else []
    if plain and UNTRANSCRIBED.isdisjoint(words):
        run = 0 if fixed else 1
        return (*[_make_plain(word, run) for word in words], _make_terminator(plain[2])), ""
    placed, language = place_tokens(main, languages)
    return tuple(replace(one.token, run=0) if fixed and one.token.run else one.token for one in placed), language


def place_tokens(main: str, languages: Sequence[str]) -> tuple[list[Placed], str]:
    """The same tokens with their places."""
    glued = find_glued_terminator(main)
    if glued is None:
        return _place(main, languages)
    placed, language = _place(f"{main[:glued]} {main[glued:]}", languages)
    return [
        replace(one, start=one.start - (one.start > glued), end=one.end - (one.end > glued)) for one in placed
    ], language


def find_glued_terminator(main: str) -> int | None:
    """Where the terminator of a main line begins, if it touches what stands before it; else None.

    >>> find_glued_terminator("*CHI:\\tto+..."), find_glued_terminator("*CHI:\\tno .")
    (8, None)
    """
    glued = _GLUED_END.search(main, main.find(":") + 1)
    return glued.start() if glued else None


def find_terminator(main: str) -> str:
    """What ends a main line; empty if nothing does, as in conversation analysis."""
    body = _TAIL.sub("", main)
    glued = find_glued_terminator(main)
    if glued is not None:
        return body[glued:]
    last = body.rsplit(None, 1)[-1]
    return last if re.fullmatch(_ENDS, last) else ""


def _place(main: str, languages: Sequence[str]) -> tuple[list[Placed], str]:
    start = main.find(":") + 1
    language = _find_language(main, start, languages)
    items = [item for item in _read(main, start, len(main), language, languages) if item.token is not None]
    return list(_number_runs(main, list(_end(items)))), "" if languages and language == languages[0] else language


def _find_language(main: str, start: int, languages: Sequence[str]) -> str:
    """By the code at the beginning, before which only linkers may stand."""
    for lexeme in _LEXEME.finditer(main, start):
        precode = _PRECODE.fullmatch(lexeme[0])
        if precode:
            return precode[1]
        if lexeme.lastgroup != "linker":
            break
    return languages[0] if languages else ""


def _read(main: str, start: int, end: int, language: str, languages: Sequence[str]) -> list[_LineItem]:
    items: list[_LineItem] = []
    opened: list[int] = []
    scope = (0, 0)  # what a code would belong to
    for lexeme in _LEXEME.finditer(main, start, end):
        kind, text = lexeme.lastgroup, lexeme[0]
        if kind == "code":
            replacement = _REPLACEMENT.fullmatch(text)
            if replacement:
                inner = lexeme.start() + replacement.start(1)
                new = _read(main, inner, inner + len(replacement[1]), language, languages)
                first = items[scope[0]].start if scope[0] < len(items) else lexeme.start()
                items[slice(*scope)] = [_LineItem(item.token, first, lexeme.end()) for item in new]
                scope = (scope[0], len(items))
            elif _TAKEN_BACK.fullmatch(text):
                for item in items[slice(*scope)]:
                    item.token = None
            elif scope[1] - scope[0] == 1:
                items[scope[0]].plain = False
            continue
        if kind == "bullet":
            if items and not main[items[-1].end : lexeme.start()].strip():
                items[-1].plain = False
            continue
        if kind == "close":
            scope = (opened.pop() if opened else len(items), len(items))
            continue
        if kind == "open":
            opened.append(len(items))
        elif kind == "word":
            items.append(_make_item(text, lexeme.start(), language, languages))
        elif kind in ("separator", "end"):
            token = Token(text, TokenKind.SEPARATOR) if kind == "separator" else _make_terminator(text)
            items.append(_LineItem(token, lexeme.start(), lexeme.end()))
        scope = (len(items) - 1 if kind == "word" else len(items), len(items))
    return items


def _make_item(text: str, start: int, language: str, languages: Sequence[str]) -> _LineItem:
    token = _make_token(text, language, languages)
    return _LineItem(token, start, start + len(text), token is not None and token.text == text and not token.marker)


def _make_token(text: str, language: str, languages: Sequence[str]) -> Token | None:
    """The token that a word of the main line is; None if it is no word of the grammar.

    >>> _make_token("(be)cause:", "eng", ["eng"]).text, _make_token("&-um", "eng", ["eng"])
    ('because', None)
    """
    if text.isalpha() and not any(mark in text for mark in _LETTER_MARKS):
        return None if text in UNTRANSCRIBED else Token(text)
    text = _OVERLAP.sub("", _REPEATED_SOUNDS.sub("", text)).translate(_MARKS)
    if _GREEK_MARKS.search(text) and not _GREEK.search(text):
        text = _GREEK_MARKS.sub("", text)
    if text.startswith("&") or _OMITTED.fullmatch(text):
        return None
    body, _, marker = text.partition("@")
    body, marker = _PART_OF_SPEECH.sub("", body), _PART_OF_SPEECH.sub("", marker)
    body = _LENGTH.sub("", body.translate(_WORD_MARKS)).strip(_QUOTES)
    if not body or body in UNTRANSCRIBED:
        return None
    return Token(body, language=_find_word_language(marker, language, languages), marker=marker)


def _find_word_language(marker: str, language: str, languages: Sequence[str]) -> str:
    """The language of a word, if it is not that of its utterance; nothing, if only the corpus could say which."""
    named = _LANGUAGE.match(marker)
    if named:
        return named[1] if named[1] != language else ""
    if marker != "s" or not languages:
        return ""
    if language != languages[0]:
        return languages[0] if language in languages[:2] or len(languages) == 1 else ""
    return languages[1] if len(languages) > 1 else ""


def _end(items: Sequence[_LineItem]) -> Iterator[_LineItem]:
    """Only the last item ends the utterance."""
    for item in items[:-1]:
        if item.token is not None and item.token.kind is TokenKind.TERMINATOR:  # within a quotation
            item.token = replace(item.token, kind=TokenKind.SEPARATOR)
    yield from items


def _number_runs(main: str, items: Sequence[_LineItem]) -> Iterator[Placed]:
    run = 0
    previous: _LineItem | None = None
    for item in items:
        assert item.token is not None
        if not (item.plain and item.token.kind is TokenKind.WORD):
            yield Placed(item.token, item.start, item.end)
            previous = None
            continue
        if previous is None or main[previous.end : item.start].strip():
            run += 1
        yield Placed(replace(item.token, run=run), item.start, item.end)
        previous = item


@lru_cache(maxsize=20_000)
def _make_plain(text: str, run: int) -> Token:
    return Token(text, run=run)


@lru_cache(maxsize=100)
def _make_terminator(text: str) -> Token:
    return Token(text, TokenKind.TERMINATOR)


def is_analysed(tokens: Sequence[Token]) -> bool:
    """Whether %mor and %gra can be written: there are words, and all that they need is known."""
    return any(token.kind is TokenKind.WORD for token in tokens) and all(
        token.words or token.kind is TokenKind.TERMINATOR for token in tokens
    )


def _may_become(old: Sequence[Token], texts: Sequence[str]) -> bool:
    runs = {token.run for token in old}
    whole = "_".join(token.text for token in old)
    return len(runs) == 1 and 0 not in runs and (list(texts) == [whole] or all(map(fits_main, texts)))


def settle(old: Sequence[Token], new: Sequence[Token]) -> tuple[Token, ...]:
    """New tokens, each with its `source`, as a main line can hold them.

    Of those that cannot stand there (the hyphen of mm-hmm) the old word remains, and has all their words as its parts.
    """
    result: list[Token] = []
    for source, group in groupby(new, key=lambda token: token.source):
        tokens = [replace(token, text="_".join(token.text.split())) for token in group]
        if source is None or len(tokens) == 1 == source[1] - source[0] or all(fits_main(t.text) for t in tokens):
            result += tokens
            continue
        text = "_".join(token.text for token in old[slice(*source)])
        words = tuple(word for token in tokens for word in token.words)
        result.append(replace(old[source[0]], text=text, words=words, source=source))
    return tuple(result)


def fits_main(text: str) -> bool:
    """Whether a main line may have this as a word that means nothing else.

    >>> [fits_main(text) for text in ("n't", "'s", "gon", "-", "0is", "xxx")]
    [True, True, True, False, False, False]
    """
    return bool(_FITTING.fullmatch(text)) and text.lower() not in UNTRANSCRIBED


def retokenize_main(main: str, old: Sequence[Placed], new: Sequence[Token]) -> str:
    """The main line with the new tokens in place of the old ones that they come from.

    new: in order, each with its `source`; those of the same source stand for it together. Raises ValueError if these
    leave something out, or change what may not be changed.
    """
    edges = [0]
    for source, tokens in groupby(new, key=lambda token: token.source):
        texts = [token.text for token in tokens]
        if source is None or source[0] != edges[-1] or source[1] <= source[0] or source[1] > len(old):
            raise ValueError(f"tokens {texts} come from {source}, after {edges[-1]} of {len(old)}")
        edges.append(source[1])
    if edges[-1] != len(old):
        raise ValueError(f"nothing comes from the tokens {edges[-1]} to {len(old)}")
    parts: list[str] = []
    position = 0
    for first, last in pairwise(edges):
        texts = [token.text for token in new if token.source == (first, last)]
        if len(texts) == 1 == last - first:
            continue
        if not _may_become([placed.token for placed in old[first:last]], texts):
            raise ValueError(f"{[placed.token.text for placed in old[first:last]]} may not become {texts}")
        parts += [main[position : old[first].start], " ".join(texts)]
        position = old[last - 1].end
    return "".join([*parts, main[position:]])
