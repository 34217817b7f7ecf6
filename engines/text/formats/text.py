"""Plain text: one utterance a line."""

from __future__ import annotations

from prefork.engines.text.document import Document, Utterance, Word
from prefork.engines.text.languages import get_long_code
from prefork.engines.text.normalization import list_unread, normalize

LANGUAGE = "eng"  # of texts of which nobody says another
_NAMED = 5  # tokens that a warning names


def parse(source: str, name: str, language: str = "") -> Document:  # noqa: ARG001  every format is parsed alike
    """Lines without a word or an event are skipped; so is a byte order mark. language: ISO 639, of the numerals, and of
    the CHAT that becomes of it; by default English."""
    known = get_long_code(language) if language else LANGUAGE
    lines = normalize([line.strip() for line in source.lstrip("\ufeff").splitlines()], known)
    utterances = tuple(
        Utterance(line.text, tuple(map(Word, line.words)), line.speaker, events=line.events)
        for line in lines
        if line.words or line.events
    )
    unread = list(dict.fromkeys(token for line in lines for token in list_unread(line.text, known)))
    named = ", ".join(unread[:_NAMED]) + (", ..." if len(unread) > _NAMED else "")
    warning = f"it is not known how {named} is read in the language {known!r}; write it in words"
    warnings = (warning,) if unread else ()
    return Document(utterances, source, "text", languages=(known,) if language else (), warnings=warnings)
