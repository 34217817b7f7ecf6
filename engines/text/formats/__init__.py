"""Transcripts as files: what can be read, what can be written, and how.

`read` chooses by suffix, `render` by name:

    chat      .cha        in and out   times and %wor tiers; everything else stays byte for byte
    text      .txt .lab   in           one utterance a line
    conllu    .conllu     in and out   Universal Dependencies: a sentence is an utterance; nothing to align
    textgrid  .TextGrid   out          Praat: per speaker a tier of utterances, of words, of characters, of phones
    srt       .srt        out          subtitles
    vtt       .vtt        out          the same, with word times
    ctm       .ctm        out          NIST: file, channel, start, duration, word, confidence
    rttm      .rttm       out          NIST: who speaks when
    json      .json       out          everything that is known
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefork.engines.audio.media import is_video
from prefork.engines.errors import InputError
from prefork.engines.text.cues import CueLayout
from prefork.engines.text.document import Document
from prefork.engines.text.formats import chat, chat_file, chat_output, conllu, rttm, subtitles, tables, text, textgrid

_MOST_BYTES = 64_000_000  # a transcript of a week's speech has less
_MOST_NESTED = 50
_BRACKETS = re.compile(rb"[<>]|\n[*%@]")  # a line begins anew


@dataclass(frozen=True, slots=True)
class Format:
    """suffixes: the first is the one that outputs get. parse: text of a file, and its name, to a document. spoken: a
    file in this format may be what is said in a recording, and be aligned with it. find_losses: what a document has and
    its file will not have, for its user. show: in place of render, with a layout of subtitles."""

    suffixes: tuple[str, ...]
    render: Callable[[Document], str] | None = None
    parse: Callable[[str, str], Document] | None = None
    spoken: bool = True
    find_losses: Callable[[Document], Iterable[str]] | None = None
    show: Callable[[Document, CueLayout], str] | None = None


def _render_chat(document: Document) -> str:
    return chat_output.render(document if document.format == "chat" else chat_file.compose(document))


def _find_losses_in_chat(document: Document) -> Iterable[str]:
    return chat_output.find_losses(document) if document.format == "chat" else chat_file.find_losses(document)


FORMATS = {
    "chat": Format((".cha",), _render_chat, chat.parse, find_losses=_find_losses_in_chat),
    "text": Format((".txt", ".lab"), None, text.parse),
    "conllu": Format((".conllu",), conllu.render, conllu.parse, spoken=False),
    "textgrid": Format((".TextGrid",), textgrid.render),
    "srt": Format((".srt",), show=subtitles.render_srt),
    "vtt": Format((".vtt",), show=subtitles.render_vtt),
    "ctm": Format((".ctm",), tables.render_ctm),
    "rttm": Format((".rttm",), rttm.render_rttm),
    "json": Format((".json",), tables.render_json),
}
OUTPUTS = tuple(name for name, format in FORMATS.items() if format.render or format.show)
READABLE = {suffix: format for format in FORMATS.values() if format.parse for suffix in format.suffixes}
TRANSCRIPTS = {suffix: format for suffix, format in READABLE.items() if format.spoken}  # of recordings


def find_suffix(name: str) -> str:
    """The suffix of outputs in a format. Raises InputError if there is no such output format."""
    if name not in OUTPUTS:
        raise InputError(f"no output format {name!r}; there are {', '.join(OUTPUTS)}")
    return FORMATS[name].suffixes[0]


def read(path: Path, media: Path | None = None, language: str = "") -> Document:
    """Reads a transcript. media: its recording, whose name the document has if the transcript does not name it; without
    a recording, the transcript's own. language: ISO 639, of a plain text; English if it is empty.

    Raises InputError if it cannot be read, is not UTF-8, is not what its suffix says, or has no words. CHAT may be
    without: it comes out as it is, with a warning.
    """
    format = READABLE.get(path.suffix.lower())
    if format is None or format.parse is None:
        raise InputError(f"{path.name}: not a transcript that can be read; use one of {', '.join(READABLE)}")
    data = _read_bytes(path)
    if format is FORMATS["chat"] and _is_nested(data):
        raise InputError(f"{path.name}: has groups (<...>) nested more than {_MOST_NESTED} deep; correct it")
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path.name}: is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8") from error
    plain = format is FORMATS["text"]
    document = text.parse(content, path.name, language) if plain else format.parse(content, path.name)
    if not any(utterance.words for utterance in document.utterances):
        if document.format != "chat":
            raise InputError(f"{path.name}: has no words; there is nothing to do")
        document = replace(document, warnings=(*document.warnings, "has no words; it stays as it is"))
    return document if document.media else replace(document, media=_name_media(media or path))


def _read_bytes(path: Path) -> bytes:
    """Raises InputError for what would be waited for, or is too large to be a transcript: it is read whole."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path.name}: is not a file; give a transcript")
        if status.st_size > _MOST_BYTES:
            size, most = status.st_size / 1e6, _MOST_BYTES / 1e6
            raise InputError(
                f"{path.name}: has {size:,.0f} MB, and no transcript has more than {most:.0f} MB; split it"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}; check the file") from error


def _is_nested(data: bytes) -> bool:
    """Whether groups are nested more deeply than anybody nests them: parsers take memory with the square of that."""
    depth = 0
    for match in _BRACKETS.finditer(data):
        depth = {b"<": depth + 1, b">": max(0, depth - 1)}.get(match[0], 0)
        if depth > _MOST_NESTED:
            return True
    return False


def open_document(source: Path, media: Path | None = None, seconds: float = 0.0, language: str = "") -> Document:
    """What is known of a job before its first stage: its transcript, or that there is none yet. Raises InputError.

    source: the transcript, or the recording where there is none. media: the recording. seconds: its length, 0 if
    unknown. language: as `read` has it.
    """
    if source.suffix.lower() in READABLE:
        document = read(source, media, language)
    else:
        document = Document((), media=_name_media(source), seconds=seconds or None)
    return replace(document, video=is_video(media))


def _name_media(path: Path) -> str:
    return os.fsencode(path.stem).decode("utf-8", "replace")


def render(document: Document, format: str, layout: CueLayout | None = None) -> str:
    """The document as a file's text. layout: of subtitles. Raises InputError if there is no such output format."""
    find_suffix(format)
    renderer, show = FORMATS[format].render, FORMATS[format].show
    if show is not None:
        return show(document, layout or CueLayout())
    assert renderer is not None
    return renderer(document)


def warn_of_losses(document: Document, names: Sequence[str]) -> Document:
    """The document with what its user should know of what files in these formats will lack."""
    found = [loss for name in names if (find := FORMATS[name].find_losses) for loss in find(document)]
    return replace(document, warnings=(*document.warnings, *found))
