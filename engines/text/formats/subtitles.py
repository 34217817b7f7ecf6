"""Subtitles: SubRip, written by rustling, and WebVTT (https://www.w3.org/TR/webvtt1/) with word times."""

from __future__ import annotations

import html

from rustling.chat import CHAT
from rustling.chat import Utterance as Block

from prefork.engines.text.document import Document, Utterance


def render_srt(document: Document) -> str:
    """One subtitle for each utterance that has times; the speaker before the text where there are several."""
    blocks = [
        Block(
            participant=utterance.speaker or "SPK",
            tokens=[],
            time_marks=(round((utterance.start or 0.0) * 1000), round((utterance.end or 0.0) * 1000)),
            tiers={utterance.speaker or "SPK": _join_words(utterance)},
        )
        for utterance in _timed(document)
    ]
    return CHAT.from_utterances(blocks).to_srt_strs()[0] if blocks else ""


def render_vtt(document: Document) -> str:
    """One cue for each utterance that has times, with a timestamp before each word but the first."""
    cues = ["WEBVTT\n"]
    for number, utterance in enumerate(_timed(document), start=1):
        start, end = utterance.start or 0.0, utterance.end or 0.0
        voice = f"<v {html.escape(utterance.speaker, quote=False)}>" if utterance.speaker else ""
        cues.append(f"{number}\n{_clock(start)} --> {_clock(end)}\n{voice}{_tag_words(utterance)}\n")
    return "\n".join(cues)


def _timed(document: Document) -> list[Utterance]:
    """In the order of their beginnings, as WebVTT wants its cues: the turns of a transcript may overlap."""
    timed = [u for u in document.utterances if u.words and u.start is not None and u.end is not None]
    lasting = [u for u in timed if round((u.end or 0.0) * 1000) > round((u.start or 0.0) * 1000)]
    return sorted(lasting, key=lambda utterance: utterance.start or 0.0)


def _join_words(utterance: Utterance) -> str:
    return " ".join(_list_shown(utterance))


def _list_shown(utterance: Utterance) -> list[str]:
    """The words; with their punctuation where the text is nothing but these, as what was heard is."""
    written, words = utterance.text.split(), [word.text for word in utterance.words]
    if len(written) == len(words) and all(word in token for word, token in zip(words, written, strict=True)):
        return written
    return words


def _tag_words(utterance: Utterance) -> str:
    """A cue's timestamps must grow and lie within the cue."""
    parts: list[str] = []
    reached = utterance.start or 0.0
    for index, (word, shown) in enumerate(zip(utterance.words, _list_shown(utterance), strict=True)):
        text = html.escape(shown, quote=False)
        if index and word.start is not None and reached < word.start < (utterance.end or 0.0):
            text = f"<{_clock(word.start)}>{text}"
            reached = word.start
        parts.append(text)
    return " ".join(parts)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"
