"""CHAT, TalkBank's transcripts (https://talkbank.org/0info/manuals/CHAT.html), as they are read.

rustling parses and judges main lines and their tiers. What it has against headers costs a warning, and a word that CHAT
has given up (`xx`) the utterance that it stands in: both stay as they are.

Words are everything that the speaker utters: retraced words, fillers (&-um), fragments (&+fr), nonwords (&~gaga),
untranscribed speech (xxx, yyy, www), and of `gonna [: going to]` and `(be)cause` what was said: gonna, cause. They all
take time in the recording. Omitted words (0is), events (&=laughs), pauses and other speakers' asides (&*MOT:mhm) are
none; a word that is repeated by `[x 3]` is one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from rustling.chat import CHAT
from rustling.chat import Utterance as Parsed

from prefork.engines.errors import InputError
from prefork.engines.text.document import Document, Utterance, Word
from prefork.engines.text.formats.chat_grammar import (
    STRESS_MARKS,
    TAG_MARKERS,
    UNTRANSCRIBED,
    WORD_TIERS,
    find_glued_terminator,
    list_tokens,
)
from prefork.engines.text.formats.chat_lines import (
    BULLET,
    BULLETS,
    FINAL_BULLET,
    Tier,
    find_times,
    list_tiers,
    read_languages,
    read_media,
)

_OLD_BULLET = re.compile(rf"{BULLET}%(?:snd|mov|txt|pic):")
_OBSOLETE = re.compile(r"(?<![^\s<“\"])(xx|yy)(?![^\s>.?!,”\"])")  # what xxx and yyy were called
_ETHNICITIES = "White|Black|Asian|Latino|Pacific|Native|Multiple|Unknown"
_CLASSES = "UC|MC|WC|LI"
_SES = re.compile(  # of an @ID, as chatter has it; rustling knows a few of these, and one of them
    rf"^((?:[^|]*\|){{6}})\s*(?:(?:{_ETHNICITIES})(?:\s*[ ,]\s*(?:{_CLASSES}))?|{_CLASSES})\s*(?=\|)"
)
_TIMES = re.compile(r"\[x \d+\]")
_SOUND = "\ufdd0"  # a character that no text has; marks what is a sound, but no word of %wor
_INNER_BULLET = "&=\ufdd1"
_IN_WORDS = frozenset("'\u2019-_.·\u200c\u200d")  # besides letters, their marks, and digits


class ChatKind(Enum):
    """What a token of a main line is to %wor."""

    WORD = auto()
    SOUND = auto()  # uttered, but not for %wor
    TAG_MARKER = auto()
    BULLET = auto()  # between words


@dataclass(frozen=True, slots=True)
class ChatToken:
    """What was uttered, or a mark that counts. text: of a word, without CHAT's marks."""

    text: str
    kind: ChatKind


def parse(source: str, name: str) -> Document:
    """Raises InputError if rustling's strict reader does not take its main lines for CHAT. name: the file's, for the
    error."""
    tiers = list(list_tiers(source))
    if not any(tier.name == "@Begin" for tier in tiers):
        raise InputError(f"{name}: is not CHAT: it has no @Begin; save plain text as .txt, one utterance per line")
    parsed = _read_strictly(tiers, name)
    mains = [tier for tier in tiers if tier.is_main]
    if [tier.name for tier in mains] != [f"*{utterance.participant}" for utterance in parsed]:
        raise InputError(f"{name}: is not valid CHAT: {_explain_turns(source, mains)}")
    languages = read_languages(tiers)
    utterances = tuple(
        _make_utterance(tier, dependents, utterance, languages)
        for (tier, dependents), utterance in zip(_list_mains(tiers), parsed, strict=True)
    )
    warnings = (*_warn_of_headers(tiers), *_warn_of_obsolete(mains))
    return Document(utterances, source, "chat", read_media(tiers), languages, warnings=warnings)


def _explain_turns(source: str, mains: Sequence[Tier]) -> str:
    """Why there are other turns than lines that begin with `*`."""
    indented = re.search(r"^[ \t]+\*", source, re.MULTILINE)
    if indented:
        line = source.count("\n", 0, indented.start()) + 1
        return f"line {line}: a turn begins with white space, like a continuation line; remove the white space"
    bare = next((tier.line for tier in mains if not re.match(r"\*\w+:", tier.text)), None)
    if bare is not None:
        return f"line {bare}: a turn without a colon after its speaker; add it"
    return "its turns cannot be told apart from other lines; CLAN's CHECK shows what to correct"


def _list_mains(tiers: Sequence[Tier]) -> list[tuple[Tier, set[str]]]:
    """The main lines, and the names of their dependent tiers."""
    mains: list[tuple[Tier, set[str]]] = []
    for tier in tiers:
        if tier.is_main:
            mains.append((tier, set()))
        elif tier.name.startswith("%") and mains:
            mains[-1][1].add(tier.name)
    return mains


def _read_strictly(tiers: Sequence[Tier], name: str) -> list[Parsed]:
    try:
        return read_utterances(tiers)
    except ValueError as error:
        line, reason = _find_culprit(tiers) or (None, _explain(error))
        where = f"line {line}: " if line else ""
        raise InputError(f"{name}: is not valid CHAT: {where}{reason}; CLAN's CHECK shows what to correct") from error


def read_utterances(tiers: Sequence[Tier]) -> list[Parsed]:
    """The file's utterances as rustling reads them, whatever its headers and its %mor tiers hold. Raises ValueError."""
    return list_utterances(read_lines(tiers, _make_readable))


def read_lines(tiers: Sequence[Tier], change: Callable[[str], str]) -> CHAT:
    """A file without its headers, and with its main lines changed. Raises ValueError."""
    lines = [
        change(tier.text) if tier.is_main else tier.text
        for tier in tiers
        if not tier.name.startswith("@") or tier.name == "@End"
    ]
    return _read(lines, is_ca(tiers))


def is_ca(tiers: Sequence[Tier]) -> bool:
    """Whether main lines may be without a terminator: conversation analysis."""
    return any(tier.name == "@Options" and re.search(r"\bCA\b", tier.content) for tier in tiers)


def _read(lines: Sequence[str], ca: bool) -> CHAT:
    return read_chat("".join(["@UTF8\n@Begin\n", "@Options:\tCA\n" * ca, *lines]))


def read_chat(source: str) -> CHAT:
    """By rustling's strict reader, without threads of its own, which would not survive a fork. Raises ValueError."""
    try:
        return CHAT.from_strs([source], ids=["transcript"], parallel=False, strict=True, mor_tier=None, gra_tier=None)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust: no Exception, and in no module that could be imported
            raise
        raise ValueError("the parser of CHAT cannot read it") from error


def list_utterances(chat: CHAT) -> list[Parsed]:
    """Those of main lines."""
    return [utterance for utterance in chat.utterances() if utterance.changeable_header is None]


def _make_readable(main: str) -> str:
    """A main line whose words rustling tells as they are wanted here, without what it refuses and CHAT has."""
    final = FINAL_BULLET.search(main)
    if final:
        main = f"{main[: final.start()]} {main[final.end() :]}"
    main = make_countable(BULLETS.sub(f" {_INNER_BULLET} ", main))
    main = _OBSOLETE.sub(lambda word: word[1][0] * 3, main)
    main = re.sub(r"(?<!\w)&[+~](?=\S)", _SOUND, main)
    main = re.sub(r"&\*\w+:[\w:+-]*", "&=said", main)
    main = re.sub(r"(&=\w+):[^\s<>\[\]]+", r"\1", main)  # rustling hears nothing of `&=imit:dog`
    main = _TIMES.sub("[= times]", main)
    return re.sub(r"([⌈⌉⌊⌋])[2-9](?!\d)", r"\1", main)  # the number of an overlap, which may touch a word


def make_countable(main: str) -> str:
    """A main line without what rustling alone refuses or takes for something else: reversed bullets, a terminator that
    touches a word, `+!?`, a pause or a form marker that touches a mark (`(.)‡`, `b@l,`), several letters that are
    spelled (`ab@l`)."""
    main = BULLETS.sub(lambda bullet: bullet[0] if int(bullet[1]) < int(bullet[2]) else " ", main)
    glued = find_glued_terminator(main)
    if glued is not None:
        main = f"{main[:glued]} {main[glued:]}"
    main = re.sub(r"\+!\?", "+..?", main)
    main = re.sub(r"(\([\d:]*\.[\d:.]*\)|@[a-z]+(?::[a-z]+)?)(?=[,„‡<“”])", r"\1 ", main)
    return re.sub(r"(?<=\w\w)@l\b", "@k", main)


def _explain(error: ValueError) -> str:
    reason = str(error).replace(_SOUND, "&+")
    return reason.partition("transcript: ")[2] or reason


def _find_culprit(tiers: Sequence[Tier]) -> tuple[int, str] | None:
    """The first main line that is not valid by itself, and what rustling has against it."""
    ca = is_ca(tiers)
    for tier in tiers:
        if not tier.is_main:
            continue
        if _OLD_BULLET.search(tier.text):
            return tier.line, "a bullet in the old format, which CLAN's FIXBULLETS converts"
        try:
            _read([_make_readable(tier.text).rstrip(), "\n@End\n"], ca)
        except ValueError as error:
            return tier.line, _explain(error)
    return None


def _warn_of_headers(tiers: Sequence[Tier]) -> Iterator[str]:
    """What rustling has against them."""
    headers = [
        _SES.sub(r"\1", tier.text.lstrip("\ufeff"))
        for tier in tiers
        if tier.name.startswith("@") and tier.name != "@End"
    ]
    try:
        read_chat("".join([*headers, "" if headers[-1].endswith("\n") else "\n", "@End\n"]))
    except ValueError as error:
        yield f"its headers are not valid CHAT: {_explain(error)}; they stay as they are; CLAN's CHECK shows more"


def _warn_of_obsolete(mains: Sequence[Tier]) -> Iterator[str]:
    found = [(tier.line, obsolete[1]) for tier in mains if (obsolete := _OBSOLETE.search(tier.text))]
    if found:
        line, word = found[0]
        more = f", and {len(found) - 1} more such lines" if len(found) > 1 else ""
        yield f"line {line}{more}: {word!r} is no longer CHAT, so the utterance stays as it is; write {word[0] * 3!r}"


def _make_utterance(tier: Tier, dependents: set[str], parsed: Parsed, languages: Sequence[str]) -> Utterance:
    text = " ".join(BULLETS.sub(" ", tier.text.partition(":")[2]).split())
    start, end = find_times(tier.text)
    analysed = "%mor" in dependents
    if _OBSOLETE.search(tier.text):
        return Utterance(text, (), parsed.participant, start, end, analysed=analysed)
    words = tuple(
        Word(token.text) for token in list_chat_tokens(parsed) if token.kind in (ChatKind.WORD, ChatKind.SOUND)
    )
    tokens, language = list_tokens(tier.text, languages, fixed=not dependents.isdisjoint(WORD_TIERS))
    events = tuple(_list_events(parsed, len(words) if _TIMES.search(tier.text) else 0))
    return Utterance(
        text,
        words,
        parsed.participant,
        start,
        end,
        tokens=tokens,
        language=language,
        analysed=analysed,
        events=events,
    )


def _list_events(parsed: Parsed, repeated: int) -> Iterator[tuple[int, str]]:
    """What is heard besides the words, each behind so many of them. repeated: words among which some are said more
    often than they are written."""
    words = 0
    for text in (parsed.audible or "").split():
        if text.startswith("&=") and text != _INNER_BULLET:
            yield words, text.removeprefix("&=")
        elif not text.startswith(("&", "{", "}")) and _clean(text):
            words += 1
    if repeated:
        yield from ((place, "repetition") for place in range(repeated + 1))


def list_chat_tokens(parsed: Parsed) -> list[ChatToken]:
    """What was uttered, the marks that %wor keeps, and the bullets between them, in order."""
    tokens: list[ChatToken] = []
    for text in (parsed.audible or "").split():
        word = _clean(text)
        if text == _INNER_BULLET:
            tokens.append(ChatToken(text, ChatKind.BULLET))
        elif text.startswith(("&", "{", "}")):  # events, and the ends of long features
            continue
        elif word:
            sound = _SOUND in text or word in UNTRANSCRIBED
            tokens.append(ChatToken(word, ChatKind.SOUND if sound else ChatKind.WORD))
        elif text in TAG_MARKERS:
            tokens.append(ChatToken(text, ChatKind.TAG_MARKER))
    return tokens


def _clean(token: str) -> str:
    """A word without CHAT's marks: letters of any script, digits, and what stands between them; else nothing.

    >>> _clean('ice+cream'), _clean("°'cause°"), _clean("ˈgo"), _clean('+/.')
    ('icecream', "'cause", 'go', '')
    """
    if token.isalnum() and STRESS_MARKS.isdisjoint(token):  # most are, and this is where the time goes
        return token
    kept = "".join(
        c for c in token if (unicodedata.category(c)[0] in "LMN" and c not in STRESS_MARKS) or c in _IN_WORDS
    ).strip("-_.·")
    return kept if any(character.isalnum() for character in kept) else ""
