"""Transcripts as files: what can be read, what can be written, and how.

`read` chooses by suffix, `render` by name:

    chat      .cha        in and out   times and %wor tiers; everything else stays byte for byte
    text      .txt .lab   in           one utterance a line
    conllu    .conllu     in and out   Universal Dependencies: a sentence is an utterance; nothing to align
    textgrid  .TextGrid   out          Praat: per speaker a tier of utterances, of words, of characters
    srt       .srt        out          subtitles
    vtt       .vtt        out          the same, with word times
    ctm       .ctm        out          NIST: file, channel, start, duration, word, confidence
    rttm      .rttm       out          NIST: who speaks when
    json      .json       out          everything that is known
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prefork.engines.audio.media import is_video
from prefork.engines.errors import InputError
from prefork.engines.text.cues import CueLayout
from prefork.engines.text.document import Document
from prefork.engines.text.formats import chat, conllu, rttm, subtitles, tables, text, textgrid
from prefork.engines.text.formats.chat_file import compose


@dataclass(frozen=True, slots=True)
class Format:
    """suffixes: the first is the one that outputs get. parse: text of a file, and its name, to a document. spoken: a
    file in this format may be what is said in a recording, and be aligned with it. show: in place of render, with a
    layout of subtitles."""

    suffixes: tuple[str, ...]
    render: Callable[[Document], str] | None = None
    parse: Callable[[str, str], Document] | None = None
    spoken: bool = True
    show: Callable[[Document, CueLayout], str] | None = None


def _render_chat(document: Document) -> str:
    return chat.render(document if document.format == "chat" else compose(document))


FORMATS = {
    "chat": Format((".cha",), _render_chat, chat.parse),
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


def read(path: Path, *, empty: bool = False) -> Document:
    """Reads a transcript; one that does not name its recording shares its name. empty: CHAT may be without words.

    Raises InputError if it cannot be read, is not UTF-8, is not what its suffix says, or has no words.
    """
    format = READABLE.get(path.suffix.lower())
    if format is None or format.parse is None:
        raise InputError(f"{path.name}: not a transcript that can be read; use one of {', '.join(READABLE)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}; check the file") from error
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path.name}: is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8") from error
    document = format.parse(content, path.name)
    if not (empty and document.format == "chat") and not any(utterance.words for utterance in document.utterances):
        raise InputError(f"{path.name}: has no words; there is nothing to do")
    return document if document.media else replace(document, media=_name_media(path))


def open_document(source: Path, media: Path | None = None, seconds: float = 0.0) -> Document:
    """What is known of a job before its first stage: its transcript, or that there is none yet. Raises InputError.

    source: the transcript, or the recording where there is none. media: the recording. seconds: its length, 0 if
    unknown.
    """
    if source.suffix.lower() in READABLE:
        document = read(source, empty=media is None)  # there may be nothing to tag, but is it to get lost?
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
