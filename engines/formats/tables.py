"""For programs: CTM lines, and everything that is known as JSON."""

from __future__ import annotations

import json
from typing import Any

from engines.document import Document, Utterance, Word


def render_ctm(document: Document) -> str:
    """NIST's CTM, in the order of time: file, channel, start, duration (seconds), word, confidence.

    The confidence is 0 where the word was not aligned; words without a time are left out.
    """
    name = "_".join((document.media or "recording").split())
    timed = [
        (round(word.start * 1000), round(word.end * 1000), word)
        for utterance in document.utterances
        for word in utterance.words
        if word.start is not None and word.end is not None
    ]
    timed.sort(key=lambda entry: entry[0])
    lines = (
        f"{name} 1 {start / 1000:.3f} {(end - start) / 1000:.3f} {word.text} {word.score or 0.0:.4f}\n"
        for start, end, word in timed
    )
    return "".join(lines)


def render_json(document: Document) -> str:
    """Times in seconds, scores from 0 to 1; null where there is none. `turns` only where speakers were looked for."""
    content: dict[str, Any] = {
        "media": document.media,
        "seconds": _round(document.seconds),
        "languages": list(document.languages),
        "warnings": list(document.warnings),
        "utterances": [_describe_utterance(utterance) for utterance in document.utterances],
    }
    if document.turns:
        content["turns"] = [
            {"speaker": turn.speaker, "start": _round(turn.start), "end": _round(turn.end)} for turn in document.turns
        ]
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _describe_utterance(utterance: Utterance) -> dict[str, Any]:
    return {
        "speaker": utterance.speaker,
        "text": utterance.text,
        "start": _round(utterance.start),
        "end": _round(utterance.end),
        "words": [_describe_word(word) for word in utterance.words],
    }


def _describe_word(word: Word) -> dict[str, Any]:
    return {
        "text": word.text,
        "start": _round(word.start),
        "end": _round(word.end),
        "score": None if word.score is None else round(word.score, 4),
        "timing": word.timing.value,
        "characters": [
            {"text": c.text, "start": _round(c.start), "end": _round(c.end), "score": round(c.score, 4)}
            for c in word.characters
        ],
    }


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
