"""Subtitles: SubRip (.srt), and WebVTT (https://www.w3.org/TR/webvtt1/) with word times."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from prefork.engines.text.cues import Cue, CueLayout, CueWord, make_cues
from prefork.engines.text.document import Document

# When a cue is shown, its lines, and the word in it that is underlined.
_Shown = tuple[float, float, Cue, CueWord | None]


def render_srt(document: Document, layout: CueLayout) -> str:
    """The speaker before the text where there are several."""
    several = len({utterance.speaker for utterance in document.utterances if utterance.words}) > 1
    cues = make_cues(document.utterances, layout, named=several, seconds=document.seconds)
    blocks = []
    for number, (start, end, cue, word) in enumerate(_list_shown(cues, layout), start=1):
        lead = f"{cue.speaker}: " if several and cue.speaker else ""
        text = "\n".join(" ".join(_underline(w.text, w is word) for w in line) for line in cue.lines)
        blocks.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{lead}{text}\n")
    return "\n".join(blocks)


def render_vtt(document: Document, layout: CueLayout) -> str:
    """A timestamp before each word but the first of a cue, unless words are underlined as they are said."""
    blocks = ["WEBVTT\n"]
    cues = make_cues(document.utterances, layout, seconds=document.seconds)
    for number, (start, end, cue, word) in enumerate(_list_shown(cues, layout), start=1):
        voice = f"<v {html.escape(cue.speaker, quote=False)}>" if cue.speaker else ""
        lines = _tag_words(cue) if not layout.highlight_words else _underline_words(cue, word)
        text = "\n".join(lines)
        blocks.append(f"{number}\n{_clock(start)} --> {_clock(end)}\n{voice}{text}\n")
    return "\n".join(blocks)


def _list_shown(cues: Sequence[Cue], layout: CueLayout) -> Iterator[_Shown]:
    for cue in cues:
        if not layout.highlight_words:
            yield cue.start, cue.end, cue, None
            continue
        reached = cue.start
        for word in (word for line in cue.lines for word in line if word.timed):
            start, end = max(word.start, reached), min(word.end, cue.end)
            if round(end * 1000) > round(start * 1000):
                if round(start * 1000) > round(reached * 1000):
                    yield reached, start, cue, None
                yield start, end, cue, word
                reached = end
        if round(cue.end * 1000) > round(reached * 1000):
            yield reached, cue.end, cue, None


def _underline(text: str, is_said: bool) -> str:
    return f"<u>{text}</u>" if is_said else text


def _underline_words(cue: Cue, word: CueWord | None) -> list[str]:
    return [" ".join(_underline(html.escape(w.text, quote=False), w is word) for w in line) for line in cue.lines]


def _tag_words(cue: Cue) -> list[str]:
    """Lines whose timestamps grow and lie within the cue, as they must."""
    lines = []
    reached = cue.start
    for number, line in enumerate(cue.lines):
        parts = []
        for place, word in enumerate(line):
            text = html.escape(word.text, quote=False)
            if (number or place) and word.timed and reached < word.start < cue.end:
                text = f"<{_clock(word.start)}>{text}"
                reached = word.start
            parts.append(text)
        lines.append(" ".join(parts))
    return lines


def _clock(seconds: float, point: str = ".") -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
