"""What comes of a row: the columns that results have beside those of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefork.engines.parquet.library import import_arrow
from prefork.engines.text import formats
from prefork.engines.text.document import Document
from prefork.pool.pipeline import Intake

ADDED = ("prediction", "words", "speakers", "error", "prefork_version")


@dataclass(frozen=True, slots=True)
class RowResult:
    """prediction: the text. words: (word, start, end, confidence). speakers: (speaker, start, end). Times are seconds,
    None where there are none. error: why there is no prediction."""

    prediction: str | None = None
    words: tuple[tuple[str, float | None, float | None, float | None], ...] = ()
    speakers: tuple[tuple[str, float, float], ...] = ()
    error: str | None = None


def describe_document(document: Document, intake: Intake) -> RowResult:
    """Texts that were tagged are a sentence in CoNLL-U for each line; recordings in which nothing was heard have an
    empty text; where nobody listened to words, there is none."""
    words = tuple((w.text, w.start, w.end, w.score) for u in document.utterances for w in u.words)
    speakers = tuple((turn.speaker, turn.start, turn.end) for turn in document.turns)
    if intake is Intake.TEXTS:
        return RowResult(formats.render(document, "conllu"), words, speakers)
    if document.source:
        return RowResult(document.source, words, speakers)
    heard = " ".join(word.text for word in document.heard)
    only_speakers = bool(speakers) and not document.heard
    return RowResult(None if only_speakers else heard, words, speakers)


def make_columns(results: Sequence[RowResult], version: str) -> dict[str, Any]:
    """pyarrow arrays by name, in the order of ADDED."""
    arrow = import_arrow()
    time = arrow.float64()
    word = arrow.struct([("word", arrow.string()), ("start", time), ("end", time), ("confidence", time)])
    turn = arrow.struct([("speaker", arrow.string()), ("start", time), ("end", time)])
    words = [[dict(zip(("word", "start", "end", "confidence"), w, strict=True)) for w in r.words] for r in results]
    turns = [[dict(zip(("speaker", "start", "end"), turn, strict=True)) for turn in r.speakers] for r in results]
    return {
        "prediction": arrow.array([result.prediction for result in results], arrow.string()),
        "words": arrow.array(words, arrow.list_(word)),
        "speakers": arrow.array(turns, arrow.list_(turn)),
        "error": arrow.array([result.error for result in results], arrow.string()),
        "prefork_version": arrow.array([version] * len(results), arrow.string()),
    }
