"""A new CHAT file, for a transcript that was none."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

from engines.document import Document, Utterance, Word

_SPEAKER = "SPK"
_TERMINATORS = (".", "?", "!")
_OBSOLETE = frozenset({"xx", "yy"})  # CHAT's old codes for speech that could not be understood


def compose(document: Document) -> Document:
    """The document as a CHAT document, with a source: headers, and a main line for each utterance.

    CHAT words have letters, digits, hyphens, apostrophes and decimal points; other characters are left out, and so
    are words that mean something else to CHAT: those that begin with 0 are words that were not said.
    """
    language = document.languages[0] if document.languages else "eng"
    utterances = [_make_utterance(utterance) for utterance in document.utterances]
    utterances = [utterance for utterance in utterances if utterance.words]
    headers = ["@UTF8", "@Begin", f"@Languages:\t{language}", f"@Participants:\t{_SPEAKER} Speaker Unidentified"]
    headers.append(f"@ID:\t{language}|prefork|{_SPEAKER}|||||Unidentified|||")
    if document.media and not re.search(r"[,\"\x00-\x1f\ufffd]", document.media):
        headers.append(f"@Media:\t{document.media}, audio")
    mains = [f"*{_SPEAKER}:\t{utterance.text}" for utterance in utterances]
    source = "\n".join([*headers, *mains, "@End", ""])
    return replace(document, utterances=tuple(utterances), source=source, format="chat")


def _make_utterance(utterance: Utterance) -> Utterance:
    words = tuple(replace(word, text=text) for word in utterance.words if (text := _spell(word)))
    closing = utterance.text.rstrip("\"'\u201d\u2019») ")[-1:]
    terminator = closing if closing in _TERMINATORS else "."
    return replace(
        utterance, text=" ".join([*(word.text for word in words), terminator]), words=words, speaker=_SPEAKER
    )


def _spell(word: Word) -> str:
    """A word as a CHAT main line can hold it; empty if it cannot."""
    text = re.sub("[\u2018\u2019]", "'", word.text)  # CHAT has no curly quotes
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    kept = "".join(c for c in text if unicodedata.category(c)[0] in "LMN" or c in "'-.\u200c\u200d").strip("-'")
    spoken = any(character.isalnum() for character in kept)
    return kept if spoken and not kept.startswith("0") and kept.lower() not in _OBSOLETE else ""
