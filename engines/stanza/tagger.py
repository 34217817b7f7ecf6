"""stanza as an engine: parts of speech, features, lemmas and dependencies of utterances.

P. Qi et al., Stanza: A Python Natural Language Processing Toolkit for Many Human Languages, ACL 2020.

A segment is a stretch of a file's utterances. `infer` puts the utterances of all segments of its batch, whatever files
they are from, into one pass of each of stanza's models; these sort them by length and cut them into batches of their
own. What goes in and comes out is JSON as a tensor of bytes: text, which any process that owns the model can be given.

Words that the transcript has are kept: stanza's tokeniser is only asked which of them hold several (don't: do, n't).
Where there are none yet (plain text), or they are not to be kept (--retokenize), it decides.
"""

from __future__ import annotations

import json
import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import stanza
import torch
from stanza.models.common.doc import Document as StanzaDocument
from stanza.models.common.foundation_cache import FoundationCache

from prefork.engines.base import SECONDS_PER_WORD, Engine, Job, Segment, Tensors
from prefork.engines.errors import InputError, LoadError
from prefork.engines.stanza.models import MissingModel, StanzaPackage
from prefork.engines.stanza.retokenization import WHOLE, Analysis, RawToken, Recut, fill, merge
from prefork.engines.text.document import Document, Token, TokenKind, Utterance
from prefork.engines.text.formats.chat_grammar import TAG_MARKERS, is_analysed
from prefork.engines.text.formats.chat_output import find_uncountable
from prefork.engines.text.languages import get_long_code
from prefork.engines.text.mor import PARTS_OF_SPEECH, RELATIONS

DEFAULT_LANGUAGE = "eng"
LONGEST = 1000  # words of an utterance: the parser compares each with each
_BYTES_PER_WORD = 40_000  # what a pass takes, and
_BYTES_PER_PAIR = 1200  # what the parser takes for each pair of words of an utterance that it looks at alone
_LONG = 150  # words from which it does
_LANDMARKS = 16  # utterances, of which one is
_LONGEST_WORD = 200  # characters that models are shown of one: lemmatisers take minutes for what is none
# What speech and informal writing run together, and tokenisers are not sure of. They hold several words wherever they
# stand, unlike French `des`; and only if the language's package knows how to expand them.
_SEVERAL = {"en": frozenset(["cannot", "dunno", "gimme", "gonna", "gotta", "lemme", "outta", "wanna"])}
_CODE = re.compile(r"[a-z]{2,3}(?:[-_]\w+)?", re.IGNORECASE)
_EXAMPLE = ("I", "'m", "going", "home", ".")


@dataclass(frozen=True, slots=True)
class Pipelines:
    """The model: stanza's pipelines by ISO 639-3 code."""

    by_language: Mapping[str, stanza.Pipeline]

    def to(self, device: str) -> Pipelines:
        for pipeline in self.by_language.values():
            for processor in pipeline.processors.values():
                model = getattr(getattr(processor, "trainer", None), "model", None)
                if model is not None:
                    model.to(device)
        return self


class StanzaTagger(Engine):
    """Grammar for transcripts.

    languages: ISO 639 codes of the models that are loaded; an empty one stands for `language`. language: of files that
    do not say theirs. model_dir: stanza's model folder, by default its own. package: of stanza's for each language, by
    default the one that comes with prefork, else `default`. retokenize: stanza's tokens instead of the transcript's
    words. keep: utterances that have a %mor tier are left as they are. batch_words: that go through the models at once;
    0: those of one segment. segment_words: of one file, that go together; 0: each utterance alone.
    """

    name = "stanza"
    piece = tuple[tuple[Analysis, ...], ...]
    batch_invariant = True

    def __init__(
        self,
        languages: Sequence[str] = (),
        language: str | None = None,
        model_dir: str | None = None,
        package: str | None = None,
        retokenize: bool = False,
        keep: bool = False,
        batch_words: int = 2000,
        segment_words: int = 200,
    ) -> None:
        if language is not None and not _CODE.fullmatch(language):
            raise LoadError(f"--lang takes a language's code of two or three letters, such as eng, not {language!r}")
        self._language = get_long_code(language) if language is not None else DEFAULT_LANGUAGE
        named = (get_long_code(one) if one else self._language for one in languages)
        self._languages = tuple(dict.fromkeys(named)) or (self._language,)
        self._model_dir = Path(model_dir).expanduser() if model_dir is not None else None
        self._package = package
        self._retokenize = retokenize
        self._keep = keep
        self._segment_words = segment_words
        self.batch_seconds = batch_words * SECONDS_PER_WORD
        self._packages: dict[str, StanzaPackage] = {}
        self._missing: dict[str, str] = {}  # languages without a model, and why

    def setup(self) -> None:
        if self._model_dir is not None and not self._model_dir.is_dir():
            raise LoadError(f"{self._model_dir}: no such folder; check --model-dir")
        for language in self._languages:
            try:
                self._packages[language] = StanzaPackage.find(language, self._package, self._model_dir)
            except MissingModel as error:
                self._missing[language] = str(error)
        if not self._packages:
            raise LoadError("; ".join(dict.fromkeys(self._missing.values())))

    def load(self) -> Pipelines:
        cache = FoundationCache()
        return Pipelines({language: package.load(cache) for language, package in self._packages.items()})

    def count_weights(self) -> int:
        sizes = {file: file.stat().st_size for package in self._packages.values() for file in package.files}
        return sum(sizes.values())

    def estimate_memory(self, segment: Segment) -> int:
        words = segment.seconds / SECONDS_PER_WORD
        longest = min(LONGEST, max((request.weight for request in segment.content or ()), default=20))
        return round(_BYTES_PER_WORD * words + (_BYTES_PER_PAIR * longest**2 if longest > _LONG else 0))

    def example(self, words: tuple[str, ...] = _EXAMPLE) -> Tensors:
        plain = (0,) * len(words)
        return _encode([TaggingRequest(n, name, words, plain).describe() for n, name in enumerate(self._packages)])

    def longest_example(self) -> Tensors:
        return self.example(_EXAMPLE * 40)  # to compare 1,000 words with each other takes gigabytes

    def verify(self, output: Tensors) -> None:
        for language, tokens in zip(self._packages, _decode(output), strict=True):
            if len(tokens) != len(_EXAMPLE):
                raise LoadError(
                    f"stanza's {language} model gives {len(tokens)} tokens for {len(_EXAMPLE)} words; use another"
                )

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        languages = self._find_languages(document)
        requests = [
            self._make_request(number, utterance, languages, document.format)
            for number, utterance in enumerate(document.utterances)
        ]
        if languages[0] not in self._packages and not any(requests):
            raise InputError(f"{job.source.name}: {self._explain_missing(languages[0])}")
        return list(_cut([one for one in requests if one is not None], self._segment_words))

    def _find_languages(self, document: Document) -> tuple[str, ...]:
        return tuple(map(get_long_code, document.languages)) or (self._language,)

    def _explain_missing(self, language: str) -> str:
        return self._missing.get(language) or (
            f"no model for language {language!r} was loaded, because @Languages does not name it; add it there"
        )

    def _make_request(
        self, number: int, utterance: Utterance, languages: Sequence[str], format: str
    ) -> TaggingRequest | None:
        """The request for an utterance; None if there is nothing to tag. languages: of
        the file, the only ones that count: what comes out does not depend on what other files there are. format: the
        document's; a plain text has no tokens yet."""
        language = get_long_code(utterance.language or languages[0])
        if language not in self._packages or language not in languages or (self._keep and utterance.analysed):
            return None
        plain = format == "text"
        tokens = tuple(Token(text, run=1) for text in utterance.text.split()) if plain else utterance.tokens
        if not any(token.kind is TokenKind.WORD for token in tokens):
            return None
        free = self._retokenize or plain
        runs = (WHOLE if token.marker else token.run * free for token in tokens)
        return TaggingRequest(number, language, tuple(map(_spell, tokens)), tuple(runs))

    def describe_segment(self, segment: Segment) -> Any:
        return tuple((request.language, request.words, request.runs) for request in segment.content)

    def prepare(self, job: Job, segment: Segment) -> Tensors:  # noqa: ARG002
        return _encode([request.describe() for request in segment.content])

    def infer(self, model: Pipelines, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        parts = [[TaggingRequest.read(*numbered) for numbered in enumerate(_decode(tensors))] for tensors in batch]
        together = [request for part in parts for request in part]
        answers: dict[int, Any] = {}
        for language, pipeline in model.by_language.items():
            places = [place for place, request in enumerate(together) if request.language == language]
            if places:
                found = _analyse(pipeline, [together[place] for place in places])
                answers |= dict(zip(places, found, strict=True))
        ordered = iter([answers[place] for place in range(len(together))])
        return [_encode([next(ordered) for _ in part]) for part in parts]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> tuple[tuple[Analysis, ...], ...]:  # noqa: ARG002
        """What stanza has made of each utterance of the segment."""
        return tuple(tuple(Analysis.read(item) for item in answer) for answer in _decode(output))

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        answers = {
            request.number: answer
            for segment, piece in zip(segments, pieces, strict=True)
            for request, answer in zip(segment.content, piece, strict=True)
        }
        found = {number: answer for number, answer in answers.items() if answer}
        utterances = tuple(
            replace(utterance, tokens=fill(utterance.tokens, found[number])) if number in found else utterance
            for number, utterance in enumerate(document.utterances)
        )
        made = replace(document, utterances=utterances, languages=self._find_languages(document))
        warnings = [*made.warnings, *self._warn(made, sorted(answers.keys() - found.keys()))]
        if any(output.format == "chat" for output in job.outputs):
            warnings += _warn_of_lines(made)
        return replace(made, warnings=tuple(warnings))

    def _warn(self, document: Document, long: Sequence[int]) -> Iterator[str]:
        """Of utterances in languages that nothing was loaded for, and of those that are too long."""
        own = self._find_languages(document)
        spoken = [get_long_code(utterance.language or own[0]) for utterance in document.utterances if utterance.words]
        for language, count in Counter(spoken).items():
            if language not in self._packages or language not in own:
                many = f"{count} utterance{'s' * (count != 1)} in {language!r}"
                yield f"{many} not analysed: {self._explain_missing(language)}"
        for number in long:
            yield f"utterance {number + 1} has more than {LONGEST} words and is not analysed; split it up"

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "models": {language: package.identify() for language, package in sorted(self._packages.items())},
            "language": self._language,
            "retokenize": self._retokenize,
            "keep": self._keep,
        }


@dataclass(frozen=True, slots=True)
class TaggingRequest:
    """An utterance for stanza to tag. number: its place in the document. runs: for each word, as `Token.run`,
    or WHOLE."""

    number: int
    language: str
    words: tuple[str, ...]
    runs: tuple[int, ...]

    @property
    def weight(self) -> int:
        """Words; of scripts that do not put spaces between them, more than are known yet."""
        return sum(1 + len(word) // 10 for word in self.words)

    @property
    def is_landmark(self) -> bool:
        """Whether a segment begins with it wherever it stands: every 16th does, so that who changes an utterance of a
        long transcript changes the segments around it alone."""
        return zlib.crc32(" ".join(self.words).encode("utf-8", "surrogatepass")) % _LANDMARKS == 0

    def describe(self) -> list[Any]:
        return [self.language, self.words, self.runs]

    @classmethod
    def read(cls, number: int, content: Sequence[Any]) -> TaggingRequest:
        language, words, runs = content
        return cls(number, language, tuple(words), tuple(runs))


def _warn_of_lines(document: Document) -> Iterator[str]:
    """Of utterances that were analysed, and get no tiers all the same."""
    if document.format != "chat":
        return
    places = [n + 1 for n in sorted(find_uncountable(document)) if is_analysed(document.utterances[n].tokens)]
    if places:
        named = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
        yield (
            f"no new %mor for {len(places)} utterance{'s' * (len(places) != 1)} ({named}): programs that read CHAT "
            "disagree on the number of their words; attach marks such as ↗ ≈ ° to a word, and put spaces around „ and ‡"
        )


def _spell(token: Token) -> str:
    """The token as models have seen it in their training: CHAT's own punctuation is not in treebanks."""
    if token.kind is TokenKind.WORD:
        return token.text
    if token.kind is TokenKind.SEPARATOR:
        return "," if token.text in TAG_MARKERS else token.text
    if not token.text.startswith("+"):
        return token.text
    return "..." if token.text == "+..." else next((mark for mark in "?!" if mark in token.text), ".")


def _cut(requests: Sequence[TaggingRequest], most: int) -> Iterator[Segment]:
    """Segments of so many words at most, or of one utterance; landmarks begin new ones. Their times are those of speech
    at its usual speed."""
    start, total, position, index = 0, 0, 0, 0
    for place, one in enumerate([*requests, None]):
        if place > start and (one is None or total + one.weight > most or one.is_landmark):
            times = (position * SECONDS_PER_WORD, (position + total) * SECONDS_PER_WORD)
            yield Segment(index, *times, tuple(requests[start:place]))
            start, position, total, index = place, position + total, 0, index + 1
        if one is not None:
            total += one.weight


def _analyse(pipeline: stanza.Pipeline, requests: Sequence[TaggingRequest]) -> list[list[Any]]:
    """For each utterance its tokens: text, first and last + 1 of the words that they come from, and for each of their
    words form, lemma, upos, xpos, feats, head, deprel. None for those that are too long."""
    sentences = _tokenize(pipeline, requests)
    places = [place for place, sentence in enumerate(sentences) if len(sentence) <= LONGEST]
    answers: list[list[Any]] = [[] for _ in sentences]
    if not places:
        return answers
    entries = [
        [_make_entry(pipeline, number, token) for number, token in enumerate(sentences[place], start=1)]
        for place in places
    ]
    document = StanzaDocument(entries)
    for name in ("mwt", "pos", "lemma", "depparse"):
        if name in pipeline.processors:
            document = pipeline.processors[name].process(document)
    for place, found in zip(places, document.sentences, strict=True):
        for token, parsed in zip(sentences[place], found.tokens, strict=True):
            words = [_describe(word, token.text[_LONGEST_WORD:]) for word in parsed.words]
            answers[place].append([token.text, token.first, token.last, words])
    return answers


def _make_entry(pipeline: stanza.Pipeline, number: int, token: Recut) -> dict[str, Any]:
    """The token as stanza's documents have it."""
    several = "MWT=Yes" if _holds_several(pipeline, token) else None
    return {"id": (number,), "text": token.text[:_LONGEST_WORD], "misc": several}


def _describe(word: Any, rest: str) -> list[Any]:
    """rest: what the models were not shown of it."""
    form = word.text + rest
    lemma = form if rest or word.lemma in (None, "", "_") else word.lemma
    return [form, lemma, _mend_upos(word), word.xpos or "", word.feats or "", word.head, _mend_deprel(word)]


def _mend_upos(word: Any) -> str:
    """A part of speech, whatever class the tagger has chosen: there are some that only pad its training's batches."""
    return word.upos if word.upos in PARTS_OF_SPEECH else "X"


def _mend_deprel(word: Any) -> str:
    """A relation that fits the tree: parsers choose it without regard to where they see the root."""
    if word.head == 0:
        return "root"
    relation = word.deprel or ""
    return relation if relation.partition(":")[0] in RELATIONS - {"root"} else "dep"


def _holds_several(pipeline: stanza.Pipeline, token: Recut) -> bool:
    if len(token.text) > _LONGEST_WORD:
        return False
    if token.several or token.whole or token.text.lower() not in _SEVERAL.get(pipeline.lang, ()):
        return token.several
    mwt = pipeline.processors.get("mwt")
    return mwt is not None and token.text.lower() in mwt.trainer.expansion_dict


def _tokenize(pipeline: stanza.Pipeline, requests: Sequence[TaggingRequest]) -> list[list[Recut]]:
    wanted = [place for place, one in enumerate(requests) if any(one.runs) or "mwt" in pipeline.processors]
    found = dict(zip(wanted, _run_tokenizer(pipeline, [" ".join(requests[i].words) for i in wanted]), strict=True))
    return [list(merge(one.words, one.runs, found.get(place, ()))) for place, one in enumerate(requests)]


def _run_tokenizer(pipeline: stanza.Pipeline, texts: Sequence[str]) -> list[list[RawToken]]:
    """The tokens of each text, which are never joined beyond it."""
    found: list[list[RawToken]] = [[] for _ in texts]
    if not texts:
        return found
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text) + 2)
    document = pipeline.processors["tokenize"].process("\n\n".join(texts))
    for sentence in document.sentences:
        for token in sentence.tokens:
            place = bisect_right(starts, token.start_char) - 1
            several = "MWT=Yes" in (token.misc or "")
            start, end = token.start_char - starts[place], token.end_char - starts[place]
            text = texts[place][start:end]  # token.text is <UNK> from 1,000 characters
            found[place].append(RawToken(text, start, end, several))
    return found


def _encode(content: Any) -> Tensors:
    """JSON as (bytes,) uint8."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return {"json": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def _decode(tensors: Tensors) -> Any:
    return json.loads(tensors["json"].cpu().numpy().tobytes())
