"""Text normalisation: what of a plain text is spoken, in which words, by whom, and what stands in it besides.

Other tools and subtitles write speakers (`SPEAKER_00: yes`), events (`[Music]`, `(laughs)`, `*coughs*`), markup (`<i>`,
`[00:01:02]`) and figures (`3.5%`, `$12.50`, `5:30`) into the lines of their transcripts. The classes of figures are
those of R. Sproat et al., Normalization of non-standard words, Computer Speech and Language 15(3), 2001.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from prefork.engines.text.spoken_numbers import spell_numbers, spell_sign
from prefork.engines.text.utterances import strip_punctuation

_MARKUP = re.compile(r"</[^<>]*>|\{\\[^{}]*\}|[<\[(]\d+(?::\d+)+(?:[.,]\d+)?[>\])]|^\s*>>+|[♪♫]")
_ASIDE = re.compile(
    r"\[(?P<bracketed>[^\[\]]*)\]|<(?P<tag>[A-Za-z][^<>]*)>|\((?P<aside>[^()]*)\)"
    r"|(?<![*\w])\*(?P<starred>[^*\s](?:[^*]*[^*\s])?)\*(?![*\w])"
)
_VOICE = re.compile(r"\s*<v(?:\.\S+)? ([^<>]+)>")  # WebVTT's
_LABEL = re.compile(r"\s*(\*?)(\[?)([^\W\d_][\w.'-]*(?: [\w.'-]+){0,2})(\]?):(?:\s+|$)")
_SURE_LABEL = re.compile(r"(?:SPEAKER|SPK|Speaker|PAR|Participant|S)[ _-]?\d+|Speaker [A-Z]")
# What is heard besides words, by the beginnings of what it is called.
_EVENTS = """
applau audience bang bark beep birds breath buzz chatter cheer chuckl clap clears clearing click cough cries cry door
exhal footsteps gasp giggl groan grunt growl hiccup hums humming inhal instrumental knock laugh meow moan mumbl murmur
music mutter noise pants panting paus phone rings ringing scream shout sigh silen sings singing slam snap sneez sniff
snor sob static theme thud weep wheez whimper whisper whistl yawn yell
"""
_EVENT = re.compile(rf"\b(?:{'|'.join(_EVENTS.split())})", re.IGNORECASE)
_MOST_WORDS = 4  # of an event that is not in brackets
_NOT_UNDERSTOOD = re.compile(
    r"\s*(?:unk|unknown|inaudible|unintelligible|indistinct|crosstalk|overlap|foreign)\b", re.IGNORECASE
)
_UNTRANSCRIBED = "xxx"
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])[/\\|\u2013\u2014\u2026]+(?=[^\W\d_])|--+|\u2014")  # and/or, well--you
_QUOTES = "'\u2018\u2019"
_LETTERS = re.compile(r"(?:[^\W\d_]\.){2,}|(?:[^\W\d_]\.)+[^\W\d_]")  # p.m., U.S.A
_TITLES = {"mr": "Mister", "mrs": "Missus", "ms": "Miss", "dr": "Doctor", "st": "Saint", "vs": "versus",
           "etc": "etcetera"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """A line of a plain text. text: without its label, its events and its markup. words: as they are spoken, without
    the punctuation around them. events: what is heard besides, each behind so many of the words."""

    text: str
    words: tuple[str, ...]
    speaker: str | None = None
    events: tuple[tuple[int, str], ...] = field(default=())


def normalize(lines: Sequence[str], language: str) -> list[SpokenLine]:
    """The lines of a text. language: ISO 639-1 or 639-3, whose numerals it has.

    A label is a speaker's if it is numbered (`SPEAKER_00`, `Speaker 1`), or if half of the lines have one.

    >>> [line.words for line in normalize(["[Music] It's 3.5%"], "eng")]
    [("It's", 'three', 'point', 'five', 'percent')]
    """
    lines = [_MARKUP.sub(" ", html.unescape(line)) for line in lines]
    labels = [_LABEL.match(line) for line in lines]
    written = sum(bool(line.strip()) for line in lines)
    usual = 2 * sum(map(bool, labels)) >= written and sum(map(bool, labels)) > 1
    result = []
    for line, label in zip(lines, labels, strict=True):
        voice = _VOICE.match(line)
        if voice:
            result.append(_normalize_line(line[voice.end() :], voice[1].strip(), language))
        elif label and (usual or label[1] or label[2] or _SURE_LABEL.fullmatch(label[3])):
            result.append(_normalize_line(line[label.end() :], label[3], language))
        else:
            result.append(_normalize_line(line, None, language))
    return result


def list_unread(text: str, language: str) -> list[str]:
    """The tokens of a line's text with figures or signs of which it is not known how they are read."""
    tokens = [token for token in _BETWEEN_WORDS.sub(" ", text).split() if any(c.isdigit() or c == "%" for c in token)]
    return [strip_punctuation(token) for token in tokens if not spell_numbers(token, language)]


def _normalize_line(line: str, speaker: str | None, language: str) -> SpokenLine:
    words: list[str] = []
    kept: list[str] = []
    events: list[tuple[int, str]] = []
    position = 0
    for aside in [*_ASIDE.finditer(line), None]:
        name = _find_event(aside) if aside else None
        if aside and name is None:
            continue
        before = line[position : aside.start() if aside else None]
        kept.append(before)
        words += _list_words(before, language)
        if aside:
            position = aside.end()
            if name == _UNTRANSCRIBED:
                kept.append(f" {name} ")
                words.append(name)
            elif name:
                events.append((len(words), name))
    return SpokenLine(" ".join("".join(kept).split()), tuple(words), speaker, tuple(events))


def _find_event(aside: re.Match[str]) -> str | None:
    """What CHAT calls it; empty if it is nothing that is heard, None if it is spoken."""
    kind, text = aside.lastgroup, aside[aside.lastgroup or 0]
    if _NOT_UNDERSTOOD.match(text):
        return _UNTRANSCRIBED
    if kind != "bracketed" and not (_EVENT.search(text) and len(text.split()) <= _MOST_WORDS):
        return "" if kind == "tag" else None
    return ":".join(re.findall(r"[^\W\d_]+", text.lower()))


def _list_words(text: str, language: str) -> list[str]:
    tokens = _BETWEEN_WORDS.sub(" ", text).split()
    quoted = _find_quoted(tokens)
    words: list[str] = []
    for place, token in enumerate(tokens):
        if any(c.isdigit() or c in "%&+=@" for c in token):
            said = say(token.rstrip(",;:!?\u2026)]}\"'").lstrip("([{\"'"), language)
        else:
            said = say(_strip(token, place in quoted), language)
        words += [word for word in said if any(c.isalnum() for c in word)]
    return words


def _strip(token: str, quoted: bool) -> str:
    """Without the punctuation around it, but with the apostrophes at its edges, if they are no quotation marks."""
    core = strip_punctuation(token)
    if quoted or not core:
        return core
    start = token.find(core)
    end = start + len(core)
    before, after = token[:start][-1:], token[end:][:1]
    return (before if before and before in _QUOTES else "") + core + (after if after and after in _QUOTES else "")


def _find_quoted(tokens: Sequence[str]) -> set[int]:
    """Tokens whose apostrophes at the edge are quotation marks: one that opens, and the next that closes."""
    quoted: set[int] = set()
    opened: int | None = None
    for place, token in enumerate(tokens):
        before, core, after = token.partition(strip_punctuation(token) or token)
        if core != token and opened is None and any(mark in _QUOTES for mark in before):
            opened = place
        if core != token and opened is not None and any(mark in _QUOTES for mark in after):
            quoted |= {opened, place}
            opened = None
    return quoted


def say(text: str, language: str) -> Sequence[str]:
    """A token as it is spoken: numbers and signs in words; letters that are named, such as p.m., joined as p_m."""
    if not language:
        return [text]
    if text in ("&", "+", "=", "@"):
        return [spell_sign(text, language)]
    if any(character.isdigit() or character == "%" for character in text):
        return spell_numbers(text, language) or ["xxx" if text.startswith("0") else text]
    if _LETTERS.fullmatch(text):
        return [text.strip(".").replace(".", "_")]
    if "&" in text.strip("&"):  # R&B
        parts = [part for part in text.split("&") if part]
        return [
            said for index, part in enumerate(parts) for said in ([spell_sign("&", language)] if index else []) + [part]
        ]
    title = _TITLES.get(text.rstrip(".").lower()) if language == "eng" else None
    return [title] if (title and text[:1].isupper()) or title in ("etcetera", "versus") else [text]
