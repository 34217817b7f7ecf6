"""For programs: CTM lines, and everything that is known as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from prefork.engines.text.cues import UNTRANSCRIBED
from prefork.engines.text.document import Character, Document, Token, Utterance, Word


def render_ctm(document: Document) -> str:
    """NIST's CTM, in the order of time: file, channel, start, duration (seconds), word, confidence.

    The confidence is 0 where the word was not aligned; words without a time are left out, and so is what CHAT writes
    for speech that could not be made out.
    """
    name = "_".join((document.media or "recording").split())
    timed = [
        (round(word.start * 1000), round(word.end * 1000), word)
        for utterance in document.utterances
        for word in utterance.words
        if word.start is not None and word.end is not None and word.text not in UNTRANSCRIBED
    ]
    timed.sort(key=lambda entry: entry[0])
    lines = (
        f"{name} 1 {start / 1000:.3f} {(end - start) / 1000:.3f} {word.text} {word.score or 0.0:.4f}\n"
        for start, end, word in timed
    )
    return "".join(lines)


def render_json(document: Document) -> str:
    """Times in seconds, scores from 0 to 1; null where there is none. `turns` only where speakers were looked for,
    `tokens` only in utterances that were analysed, `language` only in those in another than the document's first."""
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
    content: dict[str, Any] = {
        "speaker": utterance.speaker,
        "text": utterance.text,
        "start": _round(utterance.start),
        "end": _round(utterance.end),
        "words": [_describe_word(word) for word in utterance.words],
    }
    if utterance.language:
        content["language"] = utterance.language
    if any(token.words for token in utterance.tokens):
        content["tokens"] = [_describe_token(token) for token in utterance.tokens]
    return content


def _describe_token(token: Token) -> dict[str, Any]:
    """`head` is the number of a syntactic word of the utterance, from 1, and 0 for the root."""
    return {
        "text": token.text,
        "kind": token.kind.value,
        "language": token.language or None,
        "marker": token.marker or None,
        "words": [asdict(word) for word in token.words],
    }


def _describe_word(word: Word) -> dict[str, Any]:
    return {
        "text": word.text,
        "start": _round(word.start),
        "end": _round(word.end),
        "score": None if word.score is None else round(word.score, 4),
        "timing": word.timing.value,
        "characters": [_describe_part(character) for character in word.characters],
        "phones": [_describe_part(phone) for phone in word.phones],
    }


def _describe_part(part: Character) -> dict[str, Any]:
    return {"text": part.text, "start": _round(part.start), "end": _round(part.end), "score": round(part.score, 4)}


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
