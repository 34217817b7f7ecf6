"""%mor and %gra as text, from an analysis and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefork.engines.text.document import SyntacticWord, Token, TokenKind
from prefork.engines.text.mor.features import list_features
from prefork.engines.text.mor.lemmas import clean_lemma

_PARTS_OF_SPEECH = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
_RELATIONS = """
acl advcl advmod amod appos aux case cc ccomp clf compound conj cop csubj dep det discourse dislocated expl fixed flat
goeswith iobj list mark nmod nsubj nummod obj obl orphan parataxis punct reparandum root vocative xcomp
"""
PARTS_OF_SPEECH = frozenset(_PARTS_OF_SPEECH.split())
RELATIONS = frozenset(_RELATIONS.split())  # UD's universal ones, which a subtype may follow: nmod:poss
TAG_MARKERS = {",": "cm|cm", "、": "cm|cm", "，": "cm|cm", "،": "cm|cm", "„": "end|end", "‡": "beg|beg"}  # noqa: RUF001
MARKERS = frozenset((*"abcdfgiklnopqtux", "fp", "ls", "sas", "si", "sl", "wp"))  # besides `s`, other languages
_MARKS_AS_POS = frozenset(item.partition("|")[0] for item in TAG_MARKERS.values())
_RELATION = re.compile(r"([a-z]+)(?::[a-z]+)?")


@dataclass(frozen=True, slots=True)
class MorWord:
    """A word of %mor. pos: as the tier writes it; empty for a terminator, whose lemma is itself."""

    pos: str
    lemma: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Relation:
    """An entry of %gra. deprel: as UD writes it."""

    number: int
    head: int
    deprel: str


def render_mor(tokens: Sequence[Token], language: str) -> str:
    """The content of the %mor tier. language: the utterance's, ISO 639-3.

    Raises ValueError if a token has no analysis, or one that no item can hold.
    """
    return " ".join("~".join(_render_item(token, token.language or language)) for token in tokens)


def _render_item(token: Token, language: str) -> Iterator[str]:
    words = _get_words(token)
    if token.kind is TokenKind.TERMINATOR:
        yield token.text
    elif token.text in TAG_MARKERS:
        yield TAG_MARKERS[token.text]
    else:
        for word in words:
            yield _render_word(word, token if len(words) == 1 else None, token.marker, language)


def _render_word(word: SyntacticWord, token: Token | None, marker: str, language: str) -> str:
    """token: what the word is all of, None if it is a part."""
    if marker.partition(":")[0] == "s":
        return "L2|xxx"
    if marker in MARKERS:
        text = token.text if token else word.form  # an analyser may have seen a placeholder
        return f"{marker}|{clean_lemma(text, text)}"
    if word.upos not in PARTS_OF_SPEECH:
        raise ValueError(f"{word.form!r}: {word.upos!r} is not a part of speech of Universal Dependencies")
    return "-".join((f"{word.upos.lower()}|{clean_lemma(word.lemma, word.form)}", *list_features(word, language)))


def render_gra(tokens: Sequence[Token]) -> str:
    """The content of the %gra tier. Raises ValueError if the analysis is not a tree of UD's relations."""
    words = [word for token in tokens for word in _get_words(token)]
    root = check_tree(words) if words else 0
    relations = [Relation(number, word.head, word.deprel) for number, word in enumerate(words, start=1)]
    if any(token.kind is TokenKind.TERMINATOR and not token.words for token in tokens):
        relations.append(Relation(len(words) + 1, root, "punct" if root else "root"))
    return " ".join(f"{r.number}|{r.head}|{r.deprel.upper().replace(':', '-')}" for r in relations)


def _get_words(token: Token) -> tuple[SyntacticWord, ...]:
    """Raises ValueError if their number does not fit the item that the token has in %mor."""
    if not token.words and token.kind is not TokenKind.TERMINATOR:
        raise ValueError(f"{token.text!r} was not analysed")
    if len(token.words) > 1 and (token.kind is TokenKind.TERMINATOR or token.text in TAG_MARKERS):
        raise ValueError(f"{token.text!r} was analysed as {len(token.words)} words, not as one")
    return token.words


def check_tree(words: Sequence[SyntacticWord]) -> int:
    """The number of the root. Raises ValueError if the words are not one tree, or not of UD's relations."""
    for number, word in enumerate(words, start=1):
        where = f"word {number} ({word.form!r})"
        relation = _RELATION.fullmatch(word.deprel)
        if relation is None or relation[1] not in RELATIONS:
            raise ValueError(f"{where}: {word.deprel!r} is not a relation of Universal Dependencies")
        if not 0 <= word.head <= len(words):
            raise ValueError(f"{where} depends on word {word.head} of {len(words)}")
        if (relation[1] == "root") != (word.head == 0):
            raise ValueError(f"{where} is {word.deprel} with head {word.head}; the root, and no other, has head 0")
    roots = [number for number, word in enumerate(words, start=1) if word.head == 0]
    if len(roots) != 1:
        raise ValueError(f"the analysis has {len(roots)} roots, not one")
    reaching = {0}  # words from which the root can be reached
    for number in range(1, len(words) + 1):
        path: list[int] = []
        at = number
        while at not in reaching:
            if at in path:
                raise ValueError(f"word {at} ({words[at - 1].form!r}) depends on itself through other words")
            path.append(at)
            at = words[at - 1].head
        reaching.update(path)
    return roots[0]


def read_mor(tier: str) -> tuple[tuple[MorWord, ...], ...]:
    """The items of a %mor tier, each with its words."""
    return tuple(tuple(_read_word(word) for word in item.split("~")) for item in tier.split())


def _read_word(text: str) -> MorWord:
    pos, bar, analysis = text.partition("|")
    if not bar:
        return MorWord("", text)
    lemma, *features = analysis.split("-")
    return MorWord(pos, lemma, tuple(features))


def find_upos(word: MorWord) -> str | None:
    """UD's part of speech; None if %mor does not say: for special forms and words of other languages.

    `x` is taken for UD's X, although words with the marker `@x` have it too.
    """
    if not word.pos or word.pos in _MARKS_AS_POS:
        return "PUNCT"
    upos = word.pos.upper()
    return upos if upos in PARTS_OF_SPEECH else None


def read_gra(tier: str) -> tuple[Relation, ...]:
    """The entries of a %gra tier. A root that is its own head, as older corpora have it, gets head 0.

    Raises ValueError if an entry is not `number|head|RELATION`.
    """
    relations = []
    for entry in tier.split():
        parts = re.fullmatch(r"([0-9]+)\|([0-9]+)\|([A-Z][A-Z0-9-]*)", entry)
        if parts is None:
            raise ValueError(f"{entry!r} is not an entry of %gra such as 1|2|NSUBJ")
        number, head = int(parts[1]), int(parts[2])
        relations.append(Relation(number, 0 if head == number else head, parts[3].lower().replace("-", ":", 1)))
    return tuple(relations)
