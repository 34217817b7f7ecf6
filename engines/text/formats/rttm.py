"""NIST's RTTM: who speaks when."""

from __future__ import annotations

from prefork.engines.text.document import Document


def render_rttm(document: Document) -> str:
    """A line for each turn, in the order of time: type, file, channel, start, duration (seconds), speaker.

    The turns that were found; else one for each utterance that has a speaker and times.
    """
    name = _write_field(document.media or "recording")
    turns = [(turn.start, turn.end, turn.speaker) for turn in document.turns] or [
        (utterance.start, utterance.end, utterance.speaker)
        for utterance in document.utterances
        if utterance.speaker and utterance.start is not None and utterance.end is not None
    ]
    rounded = sorted((round(start * 1000), round(end * 1000), speaker) for start, end, speaker in turns)
    lines = (
        f"SPEAKER {name} 1 {start / 1000:.3f} {(end - start) / 1000:.3f} <NA> <NA> {_write_field(speaker)} <NA> <NA>\n"
        for start, end, speaker in rounded
        if end > start
    )
    return "".join(lines)


def _write_field(text: str) -> str:
    """Fields are separated by spaces."""
    return "_".join(text.split()) or "<NA>"
