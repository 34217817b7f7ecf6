"""A new CHAT file, for a transcript that was none: a plain text, or what was heard in a recording."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prefork.engines.text.document import Document, SyntacticWord, Timing, Token, TokenKind, Utterance, Word
from prefork.engines.text.formats.chat_grammar import TAG_MARKERS, UNTRANSCRIBED, is_analysed, list_tokens
from prefork.engines.text.formats.chat_lines import make_media_header
from prefork.engines.text.normalization import say

_NOBODY = "SPK"  # the code of a speaker of whom nothing is known
_CODE = re.compile(r"[A-Z][A-Z0-9]{2,6}")
_CLOSING = "\"'\u201d\u2019\u00bb\u203a)]}\u300d\u300f "
_TERMINATORS = {
    "?": "?\uff1f\u061f\u037e\u055e\u1367",
    "!": "!\uff01",
    "+...": "\u2026",
}  # what is none of these ends with a full stop
_COMMAS = ",\uff0c\u3001\u060c"
_OBSOLETE = frozenset({"xx", "yy"})  # CHAT's old codes for speech that could not be understood


def compose(document: Document) -> Document:
    """The document as a CHAT document, with a source: headers, and a main line for each utterance.

    Speakers whose names are no codes of CHAT get PAR0, PAR1, in the order in which they speak; who is not known is SPK.
    CHAT words have letters, digits, hyphens, apostrophes and decimal points; other characters are left out, and so
    are words that mean something else to CHAT: those that begin with 0 are words that were not said (`find_losses`
    names them). Numbers are spelt out where the language is known, and has words for them here; the words of one number
    share its time.

    Of an analysed utterance the tokens are the words, so that %mor has an item for each of the main line: what the
    line cannot hold leaves the tree, and what depended on it goes to its head; the words of a number are `flat`.
    """
    language = document.languages[0] if document.languages else ""
    codes = _name_speakers(document.utterances)
    heard = bool(document.heard)
    utterances = [
        _write_tokens(u, codes[u.speaker], u.language or language)
        if is_analysed(u.tokens)
        else _make_utterance(u, codes[u.speaker], language, heard=heard)
        for u in document.utterances
    ]
    utterances = [utterance for utterance in utterances if utterance.words or utterance.events]
    used = list(dict.fromkeys(u.speaker for u in utterances if u.speaker)) or [_NOBODY]
    languages = document.languages or ("eng",)
    spoken = [u.language or languages[0] for u in utterances if is_analysed(u.tokens)]
    document = replace(document, languages=tuple(dict.fromkeys([*languages, *spoken])))
    utterances = [_mark_language(utterance, languages[0]) for utterance in utterances]
    mains = [f"*{utterance.speaker}:\t{utterance.text}" for utterance in utterances]
    source = "\n".join([*_list_headers(document, sorted(used), utterances), *mains, "@End", ""])
    return replace(document, utterances=tuple(utterances), source=source, format="chat")


def _mark_language(utterance: Utterance, language: str) -> Utterance:
    """language: the first of the file's."""
    if not is_analysed(utterance.tokens) or utterance.language in ("", language):
        return utterance
    return replace(utterance, text=f"[- {utterance.language}] {utterance.text}")


def _list_headers(document: Document, codes: Sequence[str], utterances: Sequence[Utterance]) -> list[str]:
    languages = document.languages
    roles = {code: "Unidentified" if code == _NOBODY else "Participant" for code in codes}
    people = [f"{code} {'Speaker ' if code == _NOBODY else ''}{role}" for code, role in roles.items()]
    headers = ["@UTF8", "@Begin", f"@Languages:\t{', '.join(languages)}", f"@Participants:\t{', '.join(people)}"]
    headers += [f"@ID:\t{languages[0]}|prefork|{code}|||||{role}|||" for code, role in roles.items()]
    timed = any(utterance.start is not None and utterance.end is not None for utterance in utterances)
    tagged = not (timed or document.heard) and any(is_analysed(utterance.tokens) for utterance in utterances)
    media = "" if tagged else make_media_header(document.media, video=document.video, linked=timed)
    return [*headers, media] if media else headers


def _name_speakers(utterances: Sequence[Utterance]) -> dict[str | None, str]:
    """A code of CHAT for each speaker."""
    names = list(dict.fromkeys(u.speaker for u in utterances if u.words and u.speaker is not None))
    codes: dict[str | None, str] = {name: name for name in names if _CODE.fullmatch(name) and name != _NOBODY}
    free = (code for number in range(10_000) if (code := f"PAR{number}") not in codes)
    return {None: _NOBODY, **{u.speaker: _NOBODY for u in utterances}, **{n: codes.get(n) or next(free) for n in names}}


def find_losses(document: Document) -> Iterator[str]:
    """What the document holds and its main lines do not, for its user."""
    language = document.languages[0] if document.languages else ""
    words = [
        text
        for u in document.utterances
        for text in (
            [t.text for t in u.tokens if t.kind is TokenKind.WORD]
            if is_analysed(u.tokens)
            else [w.text for w in u.words]
        )
    ]
    lost = [word for word in dict.fromkeys(words) if not _holds(word, language)]
    events = sum(len(u.events) for u in document.utterances if is_analysed(u.tokens))
    if events:
        yield f"{events} event{'s' * (events != 1)} of the text are left out: the words are the analysis's"
    if lost:
        named = ", ".join(lost[:10]) + (", ..." if len(lost) > 10 else "")
        yield f"CHAT cannot hold all of {len(lost)} word{'s' * (len(lost) != 1)}, whose rest is left out: {named}"


def _holds(word: str, language: str) -> bool:
    """Whether a main line can hold all that is spoken of a word."""
    for said in say(word, language):
        kept = _spell(said, "-_")
        wanted = [c for c in said if c.isalnum() or unicodedata.category(c)[0] == "S" or c in "@#&*/"]
        if not kept or any(c.lower() not in kept.lower() for c in wanted):
            return False
    return True


def _make_utterance(utterance: Utterance, code: str, language: str, *, heard: bool) -> Utterance:
    """heard: by a recogniser, whose commas are kept."""
    words: list[Word] = []
    parts: list[str] = []
    commas = _find_commas(utterance) if heard else [False] * len(utterance.words)
    for place, (word, comma) in enumerate(zip(utterance.words, commas, strict=True)):
        parts += _list_events(utterance, place)
        spoken = _speak(word, language)
        words += spoken
        parts += [part.text for part in spoken]
        if comma and spoken:
            parts.append(",")
    while parts and parts[-1] == ",":
        parts.pop()
    parts += _list_events(utterance, len(utterance.words))
    text = " ".join([*parts, _find_terminator(utterance.text, heard=heard)])
    return replace(utterance, text=text, words=tuple(words), speaker=code)


def _list_events(utterance: Utterance, place: int) -> list[str]:
    """CHAT's, for what is heard behind so many words."""
    return [f"&={name}" for position, name in utterance.events if position == place]


@dataclass(frozen=True, slots=True)
class _LinePart:
    """What of a token goes into the main line. text: empty if it cannot be there. token: none if it does not take
    part in the grammar. numbers: of its syntactic words in the tree as it was; none of what was added to it."""

    text: str
    token: Token | None
    numbers: tuple[int, ...] = ()


def _write_tokens(utterance: Utterance, code: str, language: str) -> Utterance:
    """An analysed utterance as a main line."""
    pieces = list(_list_pieces(utterance.tokens, language))
    words = {place for place, piece in enumerate(pieces) if piece.token is None or piece.token.kind is TokenKind.WORD}
    pieces = [
        piece
        for place, piece in enumerate(pieces)
        if piece.text != "," or (place - 1 in words and place < max(words))  # between words
    ]
    texts = [piece.text for piece in pieces]
    spoken = tuple(Word(piece.text) for piece in pieces if piece.text not in TAG_MARKERS)
    end = _find_terminator(utterance.text, heard=False)
    last = sum(len(token.words) for token in utterance.tokens[:-1])
    closing = utterance.tokens[-1]
    if closing.kind is TokenKind.TERMINATOR:
        numbers = tuple(range(last + 1, last + 1 + len(closing.words)))
        pieces.append(_LinePart(end, replace(closing, text=end), numbers))
    else:
        pieces.append(_LinePart(end, Token(end, TokenKind.TERMINATOR)))
    tokens = _renumber([word for token in utterance.tokens for word in token.words], pieces)
    return replace(utterance, text=" ".join([*texts, end]), words=spoken, speaker=code, tokens=tokens)


def _list_pieces(tokens: Sequence[Token], language: str) -> Iterator[_LinePart]:
    """Those that stand before the terminator."""
    number = 0
    for token in tokens:
        numbers = tuple(range(number + 1, number + 1 + len(token.words)))
        number += len(token.words)
        if token.kind is TokenKind.SEPARATOR and (token.text in _COMMAS or token.text in TAG_MARKERS):
            text = "," if token.text in _COMMAS else token.text
            yield _LinePart(text, replace(token, text=text), numbers)
        elif token.kind is TokenKind.WORD:
            yield from _spell_token(token, numbers, language)


def _spell_token(token: Token, numbers: tuple[int, ...], language: str) -> Iterator[_LinePart]:
    said = say(token.text, language)
    texts = [text for part in said if (text := _spell(part, "-_"))]
    begun = False
    for text in texts:
        if len(list_tokens(f":\t{text} .", (language,))[0]) < 2:  # not a word to the grammar
            yield _LinePart(text, None)
        elif not begun:
            begun = True
            words = token.words
            if list(said) != [token.text] and len(words) == 1:
                words = (replace(words[0], form=text, lemma=text.lower()),)
            elif text != token.text:  # nor has the lemma what the line cannot hold
                words = tuple(replace(word, lemma=_spell(word.lemma, "-_") or text) for word in words)
            yield _LinePart(text, replace(token, text=text, words=words), numbers)
        else:
            word = replace(token.words[0], form=text, lemma=text.lower(), head=numbers[0], deprel="flat")
            yield _LinePart(text, replace(token, text=text, words=(word,)))


def _renumber(words: Sequence[SyntacticWord], pieces: Sequence[_LinePart]) -> tuple[Token, ...]:
    """The tokens of what is left, with the heads by its numbers. words: the tree as it was."""
    left: dict[int, int] = {}
    count = 0
    for piece in pieces:
        for place in range(len(piece.token.words) if piece.token else 0):
            count += 1
            if piece.numbers:
                left[piece.numbers[place]] = count
    top = [number for number in left if _climb(number, words, left) == 0]
    root = min(top, key=lambda number: (words[number - 1].upos == "PUNCT", number), default=0)
    tokens = []
    for piece in pieces:
        if piece.token is None:
            continue
        changed = []
        for place, word in enumerate(piece.token.words):
            if not piece.numbers:
                changed.append(replace(word, head=left[word.head]))
                continue
            number = piece.numbers[place]
            if number == root:
                changed.append(replace(word, head=0, deprel="root"))
            else:
                head = _climb(number, words, left) or root
                changed.append(replace(word, head=left[head]))
        tokens.append(replace(piece.token, words=tuple(changed)))
    return tuple(tokens)


def _climb(number: int, words: Sequence[SyntacticWord], left: dict[int, int]) -> int:
    """The next word above that is left; 0 if there is none."""
    head = words[number - 1].head
    for _ in words:
        if head == 0 or head in left:
            return head
        head = words[head - 1].head
    return 0


def _find_commas(utterance: Utterance) -> list[bool]:
    """For each word whether a comma stands behind it in the text."""
    found: list[bool] = []
    position = 0
    for word in utterance.words:
        start = utterance.text.find(word.text, position)
        if start >= 0:
            position = start + len(word.text)
        tail = utterance.text[position:].partition(" ")[0] if start >= 0 else ""
        found.append(any(mark in _COMMAS for mark in itertools.takewhile(lambda mark: not mark.isalnum(), tail)))
    return found


def _find_terminator(text: str, *, heard: bool) -> str:
    closing = text.rstrip(_CLOSING)
    if heard and closing.endswith("..."):
        return "+..."
    marks = {mark: terminator for terminator, marks in _TERMINATORS.items() for mark in marks}
    found = marks.get(closing[-1:], ".")
    return found if heard or found in (".", "?", "!") else "."


def _speak(word: Word, language: str) -> list[Word]:
    """The words of CHAT for a word; none if CHAT cannot hold it."""
    texts = [text for said in say(word.text, language) if (text := _spell(said, "-_"))]
    if len(texts) < 2:
        return [replace(word, text=text) for text in texts]
    if word.start is None or word.end is None:
        return [replace(word, text=text, characters=(), phones=()) for text in texts]
    letters = [0]
    for text in texts:
        letters.append(letters[-1] + len(text))
    edges = [round(word.start + (word.end - word.start) * count / letters[-1], 3) for count in letters]
    return [
        replace(word, text=text, start=start, end=end, timing=Timing.INTERPOLATED, characters=(), phones=())
        for text, (start, end) in zip(texts, pairwise(edges), strict=True)
    ]


def _spell(text: str, edges: str) -> str:
    """A word as a CHAT main line can hold it; empty if it cannot. edges: characters that it neither begins nor ends
    with."""
    text = re.sub("[\u2018\u2019\u02bc\uff07]", "'", text)  # CHAT has no curly quotes
    text = re.sub("[\u2010\u2011]", "-", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    kept = "".join(c for c in text if unicodedata.category(c)[0] in "LMN" or c in "'-._\u200c\u200d").strip(edges)
    kept = kept.lower() if kept.lower() in UNTRANSCRIBED else kept  # CHAT has no XXX
    spoken = any(character.isalnum() for character in kept)
    return kept if spoken and not kept.startswith("0") and kept.lower() not in _OBSOLETE else ""
