"""CoNLL-U, Universal Dependencies' format (https://universaldependencies.org/format.html).

In: a sentence is an utterance, its `# text` the utterance's text, `# speaker` and `# lang` its speaker and language. A
token is what is written: of a multiword token `1-2  don't` the range, not its words, since it will be analysed anew.
Everything of it takes part in the grammar. What is punctuation and no sign (%, &, #) is a separator, full stops and
their like at the very end the terminator; of a sentence of nothing else, everything is a word, so that it is analysed
too. Only tokens with letters or digits are words to CHAT and to whoever counts them: a CHAT main line gets neither
quotation marks nor brackets, which would be marks of its own there, but the terminator.

Out: of a document that was CoNLL-U, its comments and its MISC column as they were, with the new analysis; the enhanced
graph (DEPS, empty nodes) goes, as it belongs to the old one; a sentence without a new one stays as it was. Tokens that
were cut anew keep the MISC of those with the same characters. Of other documents, a sentence for each analysed
utterance: CoNLL-U cannot hold the others, but each counts in `sent_id`. `# text` is the utterance's, if it is made of
its tokens, else these with spaces between them; `# start` and `# end` are seconds. `# lang` and MISC's Lang, with UD's
codes (ISO 639-1 where there is one), stand where the language is another. Line ends are LF, characters are NFC, as UD
wants them.

rustling reads. It counts columns and does no more, so that IDs, heads and empty columns are looked at here; and it
makes no sentences, so they are written here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rustling.conllu import CoNLLU
from rustling.conllu import Token as Row

from prefork.engines.errors import InputError
from prefork.engines.text.document import Document, SyntacticWord, Token, TokenKind, Utterance, Word
from prefork.engines.text.languages import get_long_code, get_short_code

_COLUMNS = 10
_COMMENT = re.compile(r"#\s*(text|speaker|lang)\s*=\s*(.*?)\s*")
_ID = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6})|\.([0-9]{1,6}))?")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}")
_TERMINATOR = re.compile(
    r'(?:\+["/]*)?[.?!\u2026\u203d\u3002\uff0e\uff1f\uff01\u061f\u06d4\u0964\u0965\u0589\u1362\u1367\u1368]+'
)
_BREAKS = re.compile(r"[\t\r\n]+")
_SIGNS = frozenset("%&#@*/\\\u00a7\u2030")  # punctuation to Unicode, words to the grammar
_QUOTES = frozenset("`\u00b4")  # punctuation to the grammar, signs to Unicode
_CLOSED = "SpaceAfter=No"
_VALIDATOR = "UD's validate.py --level 1 shows what to correct"


@dataclass(frozen=True, slots=True)
class _SentenceLines:
    """The lines of a sentence. line: the number of the first, from 1."""

    line: int
    lines: tuple[str, ...]

    @property
    def comments(self) -> tuple[str, ...]:
        return tuple(line for line in self.lines if line.startswith("#"))


@dataclass(frozen=True, slots=True)
class _Written:
    """A token as it is written. row: its range, or its only word. words: those of a range."""

    row: Row
    words: tuple[Row, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether no space follows; some treebanks say it of a range's last word."""
        return any(_CLOSED in row.misc.split("|") for row in (self.row, *self.words[-1:]))


@dataclass(frozen=True, slots=True)
class _Sentence:
    block: _SentenceLines
    tokens: tuple[_Written, ...]


def parse(source: str, name: str) -> Document:
    """Raises InputError if it is not CoNLL-U. name: the file's, for the error."""
    return Document(tuple(_make_utterance(sentence) for sentence in _read(source, name)), source, "conllu")


def _read(source: str, name: str) -> list[_Sentence]:
    blocks = list(_list_blocks(source))
    text = "\n\n".join("\n".join(block.lines) for block in blocks)
    try:
        read = CoNLLU.from_strs([text], parallel=False).sentences()
    except ValueError as error:
        line, reason = next(_find_miscounts(blocks), (0, str(error)))
        raise _refuse(name, line, reason) from error
    sentences = []
    for block, sentence in zip(blocks, read, strict=True):
        rows = sentence.tokens()
        if fault := _find_misplaced(block):
            raise _refuse(name, block.line + fault[0], fault[1])
        if fault := _find_fault(rows):
            raise _refuse(name, block.line + len(block.comments) + fault[0], fault[1])
        sentences.append(_Sentence(block, tuple(_group(rows))))
    return sentences


def _list_blocks(source: str) -> Iterator[_SentenceLines]:
    """Sentences end with an empty line, or one of spaces, or the file."""
    block: list[str] = []
    lines = re.split(r"\r\n?|\n", source.lstrip("\ufeff"))
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line)
        elif block:
            yield _SentenceLines(number - len(block), tuple(block))
            block = []


def _refuse(name: str, line: int, reason: str) -> InputError:
    where = f"line {line}: " if line else ""
    return InputError(f"{name}: is not valid CoNLL-U: {where}{reason}")


def _find_miscounts(blocks: Sequence[_SentenceLines]) -> Iterator[tuple[int, str]]:
    for block in blocks:
        for number, line in enumerate(block.lines, block.line):
            count = len(line.split("\t"))
            if line.startswith("#") or (count == _COLUMNS and line.split("\t")[-1].strip()):
                continue
            if count == _COLUMNS:
                yield number, "an empty column; write _ there"
            elif count == 1 and len(line.split()) == _COLUMNS:
                yield number, "spaces between the columns; use tabs"
            else:
                remedy = "; save plain text as .txt, one utterance per line" if count == 1 else f"; {_VALIDATOR}"
                columns = "1 column" if count == 1 else f"{count} columns"
                yield number, f"{columns} separated by tabs instead of {_COLUMNS}{remedy}"


def _find_misplaced(block: _SentenceLines) -> tuple[int, str] | None:
    """The first comment that stands elsewhere than before its sentence, which rustling would move or give to none: the
    index of its line, and why."""
    begun = False
    for index, line in enumerate(block.lines):
        comment = line.startswith("#")
        if comment and begun:
            return index, "a comment among a sentence's words; move it before them, or add an empty line above it"
        begun = begun or not comment
    return None if begun else (0, "comments without a sentence; remove them, or the empty line below them")


def _find_fault(rows: Sequence[Row]) -> tuple[int, str] | None:
    """The first row that has no place in a sentence: its index, and why."""
    size = sum(row.id.isdecimal() for row in rows)
    number = covered = empty = 0  # the words, the last word of a range, the empty nodes behind the last word
    for index, row in enumerate(rows):
        if not all(column.strip() for column in _list_columns(row)):
            return index, "an empty column; write _ there"
        match = _ID.fullmatch(row.id)
        if match is None:
            return (
                index,
                f"{row.id!r} is not the ID of a word (1), a multiword token (1-2) or an empty node (1.1); {_VALIDATOR}",
            )
        first, last, below = (int(part) if part else None for part in match.groups())
        if last is not None:
            placed = first == number + 1 and number >= covered and number < last <= size
            covered = last
        elif below is not None:
            placed = first == number and below == empty + 1
            empty = below
        else:
            placed = first == number + 1
            number, empty = number + 1, 0
            if row.head != "_" and not (_ID.fullmatch(row.head) and row.head.isdecimal() and int(row.head) <= size):
                return index, f"HEAD {row.head} is not a word of a sentence of {size}; {_VALIDATOR}"
        if not placed:
            return index, f"ID {row.id} is out of place; words are numbered from 1 in each sentence; {_VALIDATOR}"
    return None if size else (0, f"a sentence without words; {_VALIDATOR}")


def _list_columns(row: Row) -> tuple[str, ...]:
    return (row.id, row.form, row.lemma, row.upos, row.xpos, row.feats, row.head, row.deprel, row.deps, row.misc)


def _group(rows: Sequence[Row]) -> Iterator[_Written]:
    """The tokens as they are written, without empty nodes."""
    words = iter([row for row in rows if "." not in row.id])
    for row in words:
        first, _, last = row.id.partition("-")
        yield _Written(row, tuple(next(words) for _ in range(int(first), int(last) + 1)) if last else ())


def _make_utterance(sentence: _Sentence) -> Utterance:
    comments = _read_comments(sentence.block)
    forms = [token.row.form for token in sentence.tokens]
    text = comments.get("text") or _join(forms, [token.closed for token in sentence.tokens])
    words = tuple(Word(form) for form in forms if any(character.isalnum() for character in form))
    kinds = [_classify(form, last=index == len(forms) - 1) for index, form in enumerate(forms)]
    if TokenKind.WORD not in kinds:
        kinds = [TokenKind.WORD] * len(kinds)
    language = comments.get("lang", "")
    return Utterance(
        text,
        words,
        comments.get("speaker") or None,
        tokens=tuple(Token(form, kind, run=1) for form, kind in zip(forms, kinds, strict=True)),
        language=get_long_code(language) if _LANGUAGE.fullmatch(language) else "",
        analysed=all(_is_annotated(token) for token in sentence.tokens),
    )


def _is_annotated(token: _Written) -> bool:
    return all("_" not in (row.upos, row.head, row.deprel) for row in token.words or (token.row,))


def _read_comments(block: _SentenceLines) -> Mapping[str, str]:
    return {match[1]: match[2] for comment in block.comments if (match := _COMMENT.fullmatch(comment))}


def _join(forms: Sequence[str], closed: Sequence[bool]) -> str:
    return "".join(form if last else f"{form} " for form, last in zip(forms, closed, strict=True)).rstrip()


def _classify(form: str, *, last: bool) -> TokenKind:
    """
    >>> [_classify(form, last=False).value for form in ("3%", "%", "$", ":)", "...")]
    ['word', 'word', 'word', 'separator', 'separator']
    """
    if last and _TERMINATOR.fullmatch(form):
        return TokenKind.TERMINATOR
    punctuation = all(c in _QUOTES or (unicodedata.category(c)[0] == "P" and c not in _SIGNS) for c in form)
    return TokenKind.SEPARATOR if punctuation else TokenKind.WORD


def render(document: Document) -> str:
    """Sentences, each ended by an empty line."""
    sentences = _renew(document) if document.format == "conllu" else _compose(document)
    return "".join("\n".join(lines) + "\n\n" for lines in sentences)


def _is_analysed(utterance: Utterance) -> bool:
    return bool(utterance.tokens) and all(token.words for token in utterance.tokens)


def _renew(document: Document) -> Iterator[Sequence[str]]:
    """The sentences of the source with the analyses of the document."""
    sentences = _read(document.source, document.media or "source")
    for sentence, utterance in zip(sentences, document.utterances, strict=True):
        if _is_analysed(utterance):
            yield [*sentence.block.comments, *_list_rows(utterance.tokens, _keep_misc(sentence.tokens, utterance))]
        else:
            yield sentence.block.lines


def _compose(document: Document) -> Iterator[Sequence[str]]:
    name = "_".join((document.media or "document").replace("/", " ").split())  # UD allows neither in a sent_id
    for number, utterance in enumerate(document.utterances, 1):
        if not _is_analysed(utterance):
            continue
        tokens = [replace(token, text=_clean(token.text)) for token in utterance.tokens]
        text, spaced = _lay_out(utterance)
        miscs = [
            _Misc(_write_misc(token.language and f"Lang={get_short_code(token.language)}", _CLOSED * (not space)))
            for token, space in zip(tokens, spaced, strict=True)
        ]
        comments = {
            "sent_id": f"{name}-{number}",
            "text": text,
            "speaker": utterance.speaker,
            "lang": get_short_code(utterance.language),
            "start": _write_time(utterance.start),
            "end": _write_time(utterance.end),
        }
        lines = [f"# {key} = {_clean(value)}" for key, value in comments.items() if value and _clean(value)]
        yield [unicodedata.normalize("NFC", line) for line in [*lines, *_list_rows(tokens, miscs)]]


def _write_time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f}"


def _lay_out(utterance: Utterance) -> tuple[str, list[bool]]:
    """The text of a sentence, and behind which of its tokens it has a space; true of the last."""
    text = _clean(utterance.text)
    spaced: list[bool] = []
    position = 0
    for token in utterance.tokens:
        form = _clean(token.text)
        if not text.startswith(form, position):
            break
        position += len(form)
        space = position >= len(text) or text[position] == " "
        spaced.append(space)
        position += space
    if len(spaced) == len(utterance.tokens) and position >= len(text):
        return text, spaced
    return " ".join(_clean(token.text) for token in utterance.tokens), [True] * len(utterance.tokens)


@dataclass(frozen=True, slots=True)
class _Misc:
    """The MISC column of a token, and of its words if it has several and they are known."""

    token: str
    words: tuple[str, ...] = ()


def _keep_misc(written: Sequence[_Written], utterance: Utterance) -> list[_Misc]:
    """For each token what the source has of the token with the same characters, or else whether a space follows."""
    letters = ["".join(token.row.form.split()) for token in written]
    if "".join(letters) != "".join("".join(token.text.split()) for token in utterance.tokens):
        return [_Misc(_write_misc(_CLOSED * (not space))) for space in _lay_out(utterance)[1]]
    known: dict[tuple[int, int], _Written] = {}
    spaces: set[int] = set()  # the characters counted from 0, behind which there is a space
    position = 0
    for source, kept in zip(written, letters, strict=True):
        start = position
        for part in source.row.form.split():
            position += len(part)
            spaces.add(position)
        if source.closed:
            spaces.discard(position)
        known[start, start + len(kept)] = source
    total, position = position, 0
    miscs = []
    for token in utterance.tokens:
        start, position = position, position + len("".join(token.text.split()))
        found = known.get((start, position))
        closed = position not in spaces and position < total
        miscs.append(_take_misc(found, token.words) if found else _Misc(_write_misc(_CLOSED * closed)))
    return miscs


def _take_misc(source: _Written, words: Sequence[SyntacticWord]) -> _Misc:
    if source.words and [row.form for row in source.words] == [word.form for word in words]:
        return _Misc(source.row.misc, tuple(row.misc for row in source.words))
    if source.closed and _CLOSED not in source.row.misc.split("|"):
        return _Misc(_write_misc("" if source.row.misc == "_" else source.row.misc, _CLOSED))
    return _Misc(source.row.misc)


def _write_misc(*parts: str) -> str:
    return "|".join(part for part in parts if part) or "_"


def _list_rows(tokens: Sequence[Token], miscs: Sequence[_Misc]) -> Iterator[str]:
    number = 0
    for token, misc in zip(tokens, miscs, strict=True):
        several = len(token.words) > 1
        if several:
            yield _write_row(f"{number + 1}-{number + len(token.words)}", token.text, *["_"] * 7, misc.token)
        for index, word in enumerate(token.words):
            number += 1
            form = word.form if several else token.text
            own = misc.words[index] if several and misc.words else "_" if several else misc.token
            columns = (form, word.lemma, word.upos, word.xpos, word.feats, str(word.head), word.deprel, "_", own)
            yield _write_row(str(number), *columns)


def _write_row(*columns: str) -> str:
    return "\t".join(_BREAKS.sub(" ", column).strip() or "_" for column in columns)


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))
