"""Plain text: one utterance a line."""

from __future__ import annotations

from prefork.engines.text.document import Document, Utterance, Word


def parse(source: str, name: str) -> Document:  # noqa: ARG001  every format is parsed alike
    """Lines without a letter or digit are skipped; so is a byte order mark."""
    lines = [line.strip() for line in source.lstrip("\ufeff").splitlines()]
    utterances = [Utterance(line, tuple(Word(word) for word in line.split() if _is_word(word))) for line in lines]
    return Document(tuple(u for u in utterances if u.words), source, "text")


def _is_word(token: str) -> bool:
    return any(character.isalnum() for character in token)
