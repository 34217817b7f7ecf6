"""CHAT files for tests: a header, a body of one's own, and what aligners and taggers would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefork.engines.text.document import Document, SyntacticWord, Timing, Token, TokenKind

B = "\x15"  # what begins and ends a bullet
HEAD = (
    "@UTF8\n@Begin\n@Languages:\teng, spa\n@Participants:\tCHI Target_Child, MOT Mother\n"
    "@ID:\teng|x|CHI|2;03.||||Target_Child|||\n@ID:\teng|x|MOT|||||Mother|||\n@Media:\tfoo, audio\n"
)


def make(body: str) -> str:
    return f"{HEAD}{body}\n@End\n"


def analyse(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """A tree in which everything depends on the first word; `n't` words hold two."""
    result: list[Token] = []
    count = 0
    root = 0
    for token in tokens:
        forms = [token.text[:-3], "n't"] if token.text.endswith("n't") and len(token.text) > 3 else [token.text]
        words = []
        for form in forms:
            count += 1
            punctuation = token.kind is not TokenKind.WORD
            first = root == 0 and not punctuation
            root = root or (0 if punctuation else count)
            upos = "PUNCT" if punctuation else "NOUN"
            words.append(SyntacticWord(form, form, upos, head=0 if first else -1, deprel="root" if first else "dep"))
        result.append(replace(token, words=tuple(words)))
    return tuple(
        replace(token, words=tuple(replace(word, head=root) if word.head < 0 else word for word in token.words))
        for token in result
    )


def tag(document: Document) -> Document:
    utterances = [
        replace(u, tokens=analyse(u.tokens)) if any(token.kind is TokenKind.WORD for token in u.tokens) else u
        for u in document.utterances
    ]
    return replace(document, utterances=tuple(utterances))


def time(document: Document, step: float = 0.5) -> Document:
    """Every word gets a time: word n of the file from n * step, for 0.4 s."""
    count = 0
    utterances = []
    for utterance in document.utterances:
        words = []
        for word in utterance.words:
            start = count * step
            words.append(replace(word, start=start, end=start + 0.4, score=0.5, timing=Timing.ALIGNED))
            count += 1
        timed = replace(utterance, words=tuple(words), start=words[0].start, end=words[-1].end) if words else utterance
        utterances.append(timed)
    return replace(document, utterances=tuple(utterances), seconds=count * step)
