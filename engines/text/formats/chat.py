"""CHAT, TalkBank's transcripts (https://talkbank.org/0info/manuals/CHAT.html).

rustling parses and judges; what is written is the source itself, with nothing touched but the bullets of main lines
and the %wor tiers, and `unlinked` in @Media, which CHECK refuses in a transcript that has bullets; and, if there is an
analysis, the %mor and %gra tiers, each in one line, right behind the main line, and words of it that were cut anew.

Words are everything that the speaker utters: retraced words, fillers (&-um), fragments (&+fr), nonwords (&~gaga),
untranscribed speech (xxx, yyy, www), and of `gonna [: going to]` and `(be)cause` what was said: gonna, cause. They all
take time in the recording. Omitted words (0is), events (&=laughs), pauses and other speakers' asides (&*MOT:mhm) are
none; a word that is repeated by `[x 3]` is one.

%wor holds fewer, by the rule of TalkBank's own aligner (https://github.com/TalkBank/chatter,
talkbank-model/src/alignment/helpers/rules.rs): no fragments, no nonwords, nothing untranscribed. Words stand in it
without CHAT's marks (ice+cream: icecream), each with its bullet, if it has a time; the tag markers `,`, `„` and `‡`
and the terminator without one; and before them a `[- spa]` of the main line. It is put where the utterance's %wor
tier was, or behind its other tiers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from rustling.chat import CHAT
from rustling.chat import Utterance as Parsed

from prefork.engines.errors import InputError
from prefork.engines.text.document import Document, Token, Utterance, Word
from prefork.engines.text.formats.chat_grammar import (
    TAG_MARKERS,
    TIERS,
    UNTRANSCRIBED,
    WORD_TIERS,
    is_analysed,
    list_tokens,
    place_tokens,
    retokenize_main,
    settle,
)
from prefork.engines.text.mor import render_gra, render_mor

BULLET = "\x15"
_BULLET = re.compile(rf"{BULLET}(\d{{1,12}})_(\d{{1,12}})-?{BULLET}")
_FINAL_BULLET = re.compile(rf"{_BULLET.pattern}(?=(?:\s|\[\+[^\]]*\])*$)")  # postcodes may stand behind it
_OLD_BULLET = re.compile(rf"{BULLET}%(?:snd|mov|txt|pic):")
_LANGUAGE = re.compile(r"^[^:]*:\s*(\[- [^\]]+\])")
_UNLINKED = re.compile(r",[ \t]*unlinked\b")
_LINE_END = re.compile(r"\n(?![ \t])")  # the next line continues this one if it begins with white space
_TERMINATOR = re.compile(r"[.?!]|\+[./?!\"]+")
_SOUND = "\ufdd0"  # a character that no text has; marks what is a sound, but no word of %wor
_IN_WORDS = frozenset("'\u2019-_.·\u200c\u200d")  # besides letters, their marks, and digits


class _Kind(Enum):
    WORD = auto()
    SOUND = auto()  # uttered, but not for %wor
    TAG_MARKER = auto()
    TERMINATOR = auto()


@dataclass(frozen=True, slots=True)
class _ChatToken:
    text: str
    kind: _Kind


@dataclass(frozen=True, slots=True)
class _Tier:
    """A line of the file with its continuation lines. name: `*CHI`, `%wor`, `@Begin`."""

    name: str
    text: str  # as it stands in the file, line ends included
    line: int  # from 1

    @property
    def is_main(self) -> bool:
        return self.name.startswith("*")


def parse(source: str, name: str) -> Document:
    """Raises InputError if rustling's strict reader does not take it for CHAT. name: the file's, for the error."""
    tiers = list(_list_tiers(source))
    if not any(tier.name == "@Begin" for tier in tiers):
        raise InputError(f"{name}: is not CHAT: it has no @Begin; save plain text as .txt, one utterance per line")
    chat = _read_strictly(tiers, name)
    mains = [tier for tier in tiers if tier.is_main]
    parsed = _list_utterances(chat)
    if [tier.name for tier in mains] != [f"*{utterance.participant}" for utterance in parsed]:
        raise InputError(f"{name}: is not valid CHAT: {_explain_turns(source, mains)}")
    header = chat.headers()[0]
    languages = tuple(header.languages)
    utterances = tuple(
        _make_utterance(tier, dependents, utterance, languages)
        for (tier, dependents), utterance in zip(_list_mains(tiers), parsed, strict=True)
    )
    media = header.media.get("filename") if header.media else None
    return Document(utterances, source, "chat", media, languages)


def _explain_turns(source: str, mains: Sequence[_Tier]) -> str:
    """Why there are other turns than lines that begin with `*`."""
    indented = re.search(r"^[ \t]+\*", source, re.MULTILINE)
    if indented:
        line = source.count("\n", 0, indented.start()) + 1
        return f"line {line}: a turn begins with white space, like a continuation line; remove the white space"
    bare = next((tier.line for tier in mains if not re.match(r"\*\w+:", tier.text)), None)
    if bare is not None:
        return f"line {bare}: a turn without a colon after its speaker; add it"
    return "its turns cannot be told apart from other lines; CLAN's CHECK shows what to correct"


def _list_mains(tiers: Sequence[_Tier]) -> list[tuple[_Tier, set[str]]]:
    """The main lines, and the names of their dependent tiers."""
    mains: list[tuple[_Tier, set[str]]] = []
    for tier in tiers:
        if tier.is_main:
            mains.append((tier, set()))
        elif tier.name.startswith("%") and mains:
            mains[-1][1].add(tier.name)
    return mains


def _read_strictly(tiers: Sequence[_Tier], name: str) -> CHAT:
    try:
        return _read(tiers)
    except ValueError as error:
        line, reason = _find_culprit(tiers) or (None, _explain(error))
        where = f"line {line}: " if line else ""
        raise InputError(f"{name}: is not valid CHAT: {where}{reason}; CLAN's CHECK shows what to correct") from error


def _read(tiers: Sequence[_Tier]) -> CHAT:
    """Without rustling's own threads, which would not survive a fork, and whatever a %mor tier holds."""
    source = "".join(_make_readable(tier.text) if tier.is_main else tier.text for tier in tiers).lstrip("\ufeff")
    return CHAT.from_strs([source], ids=["transcript"], parallel=False, strict=True, mor_tier=None, gra_tier=None)


def _make_readable(main: str) -> str:
    """A main line whose words rustling tells as they are wanted here, without the reversed bullets that it refuses."""
    main = _drop_reversed(main)
    main = re.sub(r"(?<!\w)&[+~](?=\S)", _SOUND, main)
    main = re.sub(r"&\*\w+:[\w:+-]*", "&=said", main)
    main = re.sub(r"\[x \d+\]", "[= times]", main)
    return re.sub(r"([⌈⌉⌊⌋])[2-9](?!\d)", r"\1", main)  # the number of an overlap, which may touch a word


def _drop_reversed(main: str) -> str:
    return _BULLET.sub(lambda bullet: bullet[0] if int(bullet[1]) < int(bullet[2]) else " ", main)


def _explain(error: ValueError) -> str:
    reason = str(error).replace(_SOUND, "&+")
    return reason.partition("transcript: ")[2] or reason


def _find_culprit(tiers: Sequence[_Tier]) -> tuple[int, str] | None:
    """The first main line that is not valid by itself, and what rustling has against it."""
    ends = ("@UTF8\n@Begin\n", "\n@End\n")
    for tier in tiers:
        if not tier.is_main:
            continue
        if _OLD_BULLET.search(tier.text):
            return tier.line, "a bullet in the old format, which CLAN's FIXBULLETS converts"
        try:
            _read([_Tier("", ends[0], 0), _Tier(tier.name, tier.text.rstrip(), 0), _Tier("", ends[1], 0)])
        except ValueError as error:
            return tier.line, _explain(error)
    return None


def _list_utterances(chat: CHAT) -> list[Parsed]:
    return [utterance for utterance in chat.utterances() if utterance.changeable_header is None]


def _make_utterance(tier: _Tier, dependents: set[str], parsed: Parsed, languages: Sequence[str]) -> Utterance:
    words = tuple(Word(token.text) for token in _list_tokens(parsed) if token.kind in (_Kind.WORD, _Kind.SOUND))
    text = " ".join(_BULLET.sub(" ", tier.text.partition(":")[2]).split())
    tokens, language = list_tokens(tier.text, languages, fixed=not dependents.isdisjoint(WORD_TIERS))
    start, end = _find_times(tier.text)
    return Utterance(
        text, words, parsed.participant, start, end, tokens=tokens, language=language, analysed="%mor" in dependents
    )


def _find_times(main: str) -> tuple[float, float] | tuple[None, None]:
    """By the bullet at the end, even if it is reversed, else by those between the words. Seconds."""
    final = _FINAL_BULLET.search(main)
    if final:
        return int(final[1]) / 1000, int(final[2]) / 1000
    times = [(int(bullet[1]), int(bullet[2])) for bullet in _BULLET.finditer(main)]
    times = [(start, end) for start, end in times if end > start]
    if not times:
        return None, None
    return min(start for start, _ in times) / 1000, max(end for _, end in times) / 1000


def _list_tokens(parsed: Parsed) -> list[_ChatToken]:
    """What was uttered, and the marks that %wor keeps, in order."""
    texts = (parsed.audible or "").split()
    tokens: list[_ChatToken] = []
    for index, text in enumerate(texts):
        word = _clean(text)
        if text.startswith(("&", "{", "}")):  # events, and the ends of long features
            continue
        if word:
            sound = _SOUND in text or word in UNTRANSCRIBED
            tokens.append(_ChatToken(word, _Kind.SOUND if sound else _Kind.WORD))
        elif text in TAG_MARKERS:
            tokens.append(_ChatToken(text, _Kind.TAG_MARKER))
        elif index == len(texts) - 1 and _TERMINATOR.fullmatch(text):
            tokens.append(_ChatToken(text, _Kind.TERMINATOR))
    return tokens


def _clean(token: str) -> str:
    """A word without CHAT's marks: letters of any script, digits, and what stands between them; else nothing.

    >>> _clean('ice+cream'), _clean("°'cause°"), _clean('+/.')
    ('icecream', "'cause", '')
    """
    if token.isalnum():  # most are, and this is where the time goes
        return token
    kept = "".join(c for c in token if unicodedata.category(c)[0] in "LMN" or c in _IN_WORDS).strip("-_.·")
    return kept if any(character.isalnum() for character in kept) else ""


def render(document: Document) -> str:
    """The source of a CHAT document with the document's times and grammar."""
    tiers = list(_list_tiers(document.source))
    parsed = iter(_list_utterances(_read(tiers)))
    pairs = iter(zip(document.utterances, parsed, _list_grammar(document, tiers), strict=True))
    linked = any(_make_bullet(utterance.start, utterance.end) for utterance in document.utterances)
    result: list[str] = []
    newline = _get_line_end(tiers[0].text) if tiers else ""
    block: list[_Tier] = []  # a main line, its dependent tiers, and empty lines among them
    for tier in tiers:
        if block and tier.text.strip() and not tier.name.startswith("%"):
            result.append(_render_block(block, newline, *next(pairs)))
            block = []
        if tier.is_main or block:
            block.append(tier)
        elif tier.name == "@Media" and linked:
            result.append(_UNLINKED.sub("", tier.text))
        else:
            result.append(tier.text)
    if block:
        result.append(_render_block(block, newline, *next(pairs)))
    return "".join(result)


@dataclass(frozen=True, slots=True)
class _Grammar:
    """What is to stand in a main line's block. main: the line, if its words were cut anew."""

    mor: str
    gra: str
    main: str | None = None


def _list_grammar(document: Document, tiers: Sequence[_Tier]) -> Iterator[_Grammar | None]:
    """For each utterance its tiers, without the line ends; None where there is nothing to write."""
    analysed = [is_analysed(utterance.tokens) for utterance in document.utterances]
    left = find_uncountable(document) if any(analysed) else frozenset()
    mains = [tier.text for tier in tiers if tier.is_main]
    for number, (main, utterance) in enumerate(zip(mains, document.utterances, strict=True)):
        if analysed[number] and number not in left:
            yield _make_grammar(main, utterance.tokens, document.languages)
        else:
            yield None


def _make_grammar(main: str, tokens: Sequence[Token], languages: Sequence[str]) -> _Grammar:
    placed, language = place_tokens(main, languages)
    cut = any(token.source is not None for token in tokens)
    if cut:
        tokens = settle([one.token for one in placed], tokens)
    elif len(tokens) != len(placed):
        raise ValueError(f"{len(tokens)} tokens without a source for the {len(placed)} of {main!r}")
    mor = render_mor(tokens, language or (languages[0] if languages else ""))
    written = retokenize_main(main, placed, tokens) if cut else None
    return _Grammar(f"%mor:\t{mor}", f"%gra:\t{render_gra(tokens)}", written)


def find_uncountable(document: Document) -> frozenset[int]:
    """Utterances, counted from 0, that get no %mor: rustling's strict reader would want another number of items than
    TalkBank's rules. These are lines with contours or marks of their own (`↗`, `+≈`, `°xxx°`), or that are no CHAT.
    """
    tiers = list(_list_tiers(document.source))
    source = "".join(_drop_reversed(tier.text) if tier.is_main else tier.text for tier in tiers).lstrip("\ufeff")
    try:
        chat = CHAT.from_strs([source], parallel=False, strict=True, mor_tier=None, gra_tier=None)
    except ValueError:  # it is CHAT to `parse` alone, and no reader's count is to be met
        return frozenset()
    mains = [tier.text for tier in tiers if tier.is_main]
    return frozenset(
        number
        for number, (main, read) in enumerate(zip(mains, _list_utterances(chat), strict=True))
        if len(list_tokens(main, document.languages)[0]) != len(read.tokens or ())
    )


def _render_block(
    block: Sequence[_Tier], newline: str, utterance: Utterance, parsed: Parsed, grammar: _Grammar | None
) -> str:
    main = grammar.main if grammar and grammar.main is not None else block[0].text
    texts = [_set_bullet(main, utterance), *(tier.text for tier in block[1:])]
    names = [tier.name for tier in block]
    wor = _make_wor(utterance, _list_tokens(parsed), block[0].text)
    if wor is not None:
        known = names.index("%wor") if "%wor" in names else None
        if known is not None:
            texts[known] = wor + _get_line_end(texts[known])
        else:
            last = max(index for index, text in enumerate(texts) if text.strip())
            _insert(texts, last + 1, wor, newline)
            names.insert(last + 1, "%wor")
    if grammar is None and (utterance.analysed or "%mor" not in names):
        return "".join(texts)
    ended = _get_line_end(texts[-1])
    texts = [text for text, name in zip(texts, names, strict=True) if name not in TIERS]
    if grammar is not None:
        _insert(texts, 1, grammar.mor, newline)
        _insert(texts, 2, grammar.gra, newline)
    result = "".join(texts)
    return result if ended else result[: len(result) - len(_get_line_end(result))]


def _insert(texts: list[str], index: int, tier: str, newline: str) -> None:
    """Puts a tier behind those before it, of which the last may end with the file, and not with its line."""
    end = _get_line_end(texts[index - 1])
    if end:
        texts.insert(index, tier + end)
    else:
        texts.insert(index, newline + tier)


def _set_bullet(main: str, utterance: Utterance) -> str:
    """The main line with the utterance's times; the same, if it has none, but for times that are not to be believed."""
    bullet = _make_bullet(utterance.start, utterance.end)
    known = _FINAL_BULLET.search(main)
    if known is not None and utterance.missing:
        return main[: known.start()].rstrip() + main[known.end() :]
    if not bullet:
        return main
    if known is None:
        body = main.rstrip()
        return f"{body} {bullet}{main[len(body) :]}"
    if bullet == f"{BULLET}{int(known[1])}_{int(known[2])}{BULLET}":
        return main
    return main[: known.start()] + bullet + main[known.end() :]


def _make_bullet(start: float | None, end: float | None) -> str:
    """Empty without times, or if they are the same to the millisecond: CHAT has no bullet without a length."""
    if start is None or end is None or round(end * 1000) <= round(start * 1000):
        return ""
    return f"{BULLET}{round(start * 1000)}_{round(end * 1000)}{BULLET}"


def _make_wor(utterance: Utterance, tokens: Sequence[_ChatToken], main: str = "") -> str | None:
    """The %wor tier, without its line end; None if no word that it would hold has a time."""
    words = iter(utterance.words)
    language = _LANGUAGE.match(main)
    parts = [language[1]] if language else []
    timed = False
    for token in tokens:
        word = next(words) if token.kind in (_Kind.WORD, _Kind.SOUND) else None
        if token.kind is _Kind.SOUND:
            continue
        parts.append(word.text if word else token.text)
        if word and (bullet := _make_bullet(word.start, word.end)):
            parts.append(bullet)
            timed = True
    return "%wor:\t" + " ".join(parts) if timed else None


def _get_line_end(text: str) -> str:
    """Empty where the file ends without one."""
    return "\r\n" if text.endswith("\r\n") else "\n" if text.endswith("\n") else ""


def _list_tiers(source: str) -> Iterator[_Tier]:
    """The file's tiers, which put together again are the file."""
    start, line = 0, 1
    for match in _LINE_END.finditer(source):
        text = source[start : match.end()]
        yield _Tier(_name(text), text, line)
        start, line = match.end(), line + text.count("\n")
    if start < len(source):
        yield _Tier(_name(source[start:]), source[start:], line)


def _name(text: str) -> str:
    return text.lstrip("\ufeff").partition(":")[0].split("\t")[0].rstrip()
