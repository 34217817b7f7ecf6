"""CHAT, TalkBank's transcripts (https://talkbank.org/0info/manuals/CHAT.html).

rustling parses and judges; what is written is the source itself, with nothing touched but the bullets at the ends of
main lines and the %wor tiers.

%wor mirrors the words of the main line, flat, each with its time behind it: retraced words, fillers, fragments and
untranscribed words (xxx) are in it, a replaced word as it was said, events and pauses are not; the tag markers
`,`, `„` and `‡` stand in it without a time. So do TalkBank's own tools (TalkBank/batchalign3, tier domain Wor).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rustling.chat import CHAT
from rustling.chat import Utterance as Parsed

from engines.base import InputError
from engines.document import Document, Utterance, Word

BULLET = "\x15"
_FINAL_BULLET = re.compile(rf"[ \t]*{BULLET}(\d+)_(\d+){BULLET}(?=\s*$)")
_TERMINATOR = re.compile(r"[.?!]|\+[./?!\"]+|\+\.\.\.")
_TAG_MARKERS = frozenset(",„‡")


@dataclass(frozen=True, slots=True)
class _Tier:
    """A line of the file with its continuation lines. name: `*CHI`, `%wor`, `@Begin`."""

    name: str
    text: str  # as it stands in the file, line ends included
    line: int  # from 1


def parse(source: str, name: str) -> Document:
    """Raises InputError if rustling's strict reader does not take it for CHAT."""
    tiers = list(_list_tiers(source))
    if not any(tier.name == "@Begin" for tier in tiers):
        raise InputError(f"{name}: is not CHAT: it has no @Begin; plain text goes in as .txt, one utterance a line")
    chat = _read_strictly(source, tiers, name)
    header = chat.headers()[0]
    parsed = [utterance for utterance in chat.utterances() if utterance.changeable_header is None]
    mains = [tier for tier in tiers if tier.name.startswith("*")]
    if len(parsed) != len(mains):
        raise InputError(f"{name}: {len(mains)} main lines, but {len(parsed)} utterances in them; check it with CLAN")
    media = header.media.get("filename") if header.media else None
    utterances = tuple(_make_utterance(utterance) for utterance in parsed)
    return Document(utterances, source, "chat", media, tuple(header.languages))


def _read_strictly(source: str, tiers: list[_Tier], name: str) -> CHAT:
    try:
        return _read(source)
    except ValueError as error:
        line, reason = _find_culprit(tiers) or (None, str(error).partition(": ")[2] or str(error))
        where = f"line {line}: " if line else ""
        raise InputError(f"{name}: is not valid CHAT: {where}{reason}; mend it, CLAN's CHECK shows how") from error


def _read(source: str) -> CHAT:
    """Without rustling's own threads, and whatever a %mor tier holds."""
    return CHAT.from_strs([source], ids=["transcript"], parallel=False, strict=True, mor_tier=None, gra_tier=None)


def _find_culprit(tiers: list[_Tier]) -> tuple[int, str] | None:
    """The first main line that is not valid by itself, and what rustling has against it."""
    for tier in tiers:
        if tier.name.startswith("*"):
            try:
                _read(f"@UTF8\n@Begin\n{tier.text.rstrip()}\n@End\n")
            except ValueError as error:
                return tier.line, str(error).partition(": ")[2]
    return None


def _make_utterance(parsed: Parsed) -> Utterance:
    start, end = parsed.time_marks or (None, None)
    words = tuple(Word(text) for text in _list_tokens(parsed.audible or "") if _is_word(text))
    text = _FINAL_BULLET.sub("", parsed.annotated or "")
    seconds = (None, None) if start is None or end is None else (start / 1000, end / 1000)
    return Utterance(text, words, parsed.participant, *seconds)


def _list_tokens(audible: str) -> list[str]:
    """What was said, events left out: words, tag markers, the terminator."""
    return [token for token in audible.split() if not token.startswith(("&", "{", "}"))]


def _is_word(token: str) -> bool:
    return any(character.isalnum() for character in token)


def render(document: Document) -> str:
    """The source with the document's times; a document that was no CHAT becomes a new, minimal file."""
    if document.format != "chat":
        return _compose(document)
    chat = _read(document.source)
    parsed = [utterance for utterance in chat.utterances() if utterance.changeable_header is None]
    pairs = iter(zip(document.utterances, parsed, strict=True))
    result: list[str] = []
    wor: str | None = None  # the %wor tier of the utterance that the tiers now belong to
    for tier in _list_tiers(document.source):
        if tier.name.startswith("*"):
            utterance, original = next(pairs)
            result.append(_set_bullet(tier.text, utterance))
            wor = _make_wor(utterance, _list_tokens(original.audible or ""))
            if wor is not None:
                result.append(_end_line(result.pop()) + wor + _newline_of(tier.text))
        elif tier.name != "%wor" or wor is None:
            result.append(tier.text)
    return "".join(result)


def _set_bullet(text: str, utterance: Utterance) -> str:
    if utterance.start is None or utterance.end is None:
        return text
    bullet = f" {_bullet(utterance.start, utterance.end)}"
    if _FINAL_BULLET.search(text):
        return _FINAL_BULLET.sub(bullet, text)
    body = text.rstrip()
    return body + bullet + text[len(body) :]


def _bullet(start: float, end: float) -> str:
    return f"{BULLET}{round(start * 1000)}_{round(end * 1000)}{BULLET}"


def _make_wor(utterance: Utterance, tokens: list[str]) -> str | None:
    """The %wor tier, without its line end; None if nothing in the utterance has a time."""
    if not any(word.start is not None for word in utterance.words):
        return None
    words = iter(utterance.words)
    parts: list[str] = []
    for token in tokens:
        if _is_word(token):
            word = next(words)
            timed = word.start is not None and word.end is not None
            parts += [word.text, _bullet(word.start or 0.0, word.end or 0.0)] if timed else [word.text]
        elif token in _TAG_MARKERS or _TERMINATOR.fullmatch(token):
            parts.append(token)
    return "%wor:\t" + " ".join(parts)


def _end_line(text: str) -> str:
    return text if text.endswith(("\n", "\r")) else text + "\n"


def _newline_of(text: str) -> str:
    return text[len(text.rstrip("\r\n")) :][:2] or "\n"


def _list_tiers(source: str) -> Iterator[_Tier]:
    """The file's tiers, which put together again are the file."""
    start, line = 0, 1
    for match in re.finditer(r"(?:\r\n|\n|\r)(?![ \t])", source):
        text = source[start : match.end()]
        yield _Tier(_name(text), text, line)
        start, line = match.end(), line + text.count("\n")
    if start < len(source):
        yield _Tier(_name(source[start:]), source[start:], line)


def _name(text: str) -> str:
    return text.lstrip("\ufeff").partition(":")[0].split("\t")[0].rstrip()


def _compose(document: Document) -> str:
    """A minimal CHAT file from a transcript in another format."""
    language = document.languages[0] if document.languages else "eng"
    lines = ["@UTF8", "@Begin", f"@Languages:\t{language}", "@Participants:\tSPK Speaker Unidentified"]
    lines.append(f"@ID:\t{language}|prefork|SPK|||||Unidentified|||")
    if document.media:
        lines.append(f"@Media:\t{document.media}, audio")
    for utterance in document.utterances:
        words = [(_clean(word.text), word) for word in utterance.words]
        words = [(text, word) for text, word in words if text]
        if not words:
            continue
        end = utterance.text.rstrip()[-1:]
        terminator = end if end in {".", "?", "!"} else "."
        main = f"*SPK:\t{' '.join(text for text, _ in words)} {terminator}"
        lines.append(_set_bullet(main, utterance))
        flat = Utterance(main, tuple(Word(text, word.start, word.end) for text, word in words))
        wor = _make_wor(flat, [*(text for text, _ in words), terminator])
        lines += [wor] if wor is not None else []
    return "\n".join([*lines, "@End", ""])


def _clean(word: str) -> str:
    """A word as a CHAT main line can hold it: letters, digits, and apostrophes and hyphens between them."""
    return re.sub(r"[^\w'’-]|_", "", word).strip("'’-") if _is_word(word) else ""
