"""Plain text: one utterance a line."""

from __future__ import annotations

from prefork.engines.text.document import Document, Utterance, Word
from prefork.engines.text.normalization import normalize

LANGUAGE = "eng"  # which it says nothing of; that of the numerals, and of the CHAT that becomes of it


def parse(source: str, name: str) -> Document:  # noqa: ARG001  every format is parsed alike
    """Lines without a word or an event are skipped; so is a byte order mark."""
    lines = normalize([line.strip() for line in source.lstrip("\ufeff").splitlines()], LANGUAGE)
    utterances = tuple(
        Utterance(line.text, tuple(map(Word, line.words)), line.speaker, events=line.events)
        for line in lines
        if line.words or line.events
    )
    return Document(utterances, source, "text")
