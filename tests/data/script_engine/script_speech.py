"""A recogniser, an aligner and a tagger that another package brings, for the commands to use: small ones, which read
real recordings and have real weights."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from prefork.engines.alignment.forced_aligner import find_media, measure
from prefork.engines.audio.reader import read_audio
from prefork.engines.base import Engine, HostEngine, Job, Segment, Tensors
from prefork.engines.text.document import Document, Timing, Utterance, Word
from prefork.engines.text.languages import get_long_code


class _Hearing(Engine):
    """Seconds of a recording, and how loud each is. The model is one number."""

    def __init__(self, dtype: str = "float32", language: str = "eng") -> None:
        self._dtype = dtype
        self._language = get_long_code(language)

    def identify_model(self) -> Hashable:
        return ("hearing", self._dtype)

    def load(self) -> Any:
        return {"gain": torch.full((1000,), 100.0, dtype=getattr(torch, self._dtype))}

    def count_weights(self) -> int:
        return 8000 if self._dtype == "float64" else 4000

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        seconds = measure(job)
        starts = range(int(seconds) + 1)
        return [Segment(n, float(n), min(n + 1.0, seconds)) for n in starts if n < seconds]

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        return {"waveform": torch.from_numpy(read_audio(find_media(job), segment.start, segment.end, job.selection))}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return [{"loudness": tensors["waveform"].abs().mean() * model["gain"][0]} for tensors in batch]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> float:
        return float(output["loudness"])

    def fingerprint(self) -> Mapping[str, Any]:
        return {"engine": self.name, "dtype": self._dtype, "language": self._language}


class Parrot(_Hearing):
    """Hears the same word in every second that is not silent."""

    name = "parrot"
    memory_stage = "listening_closely"

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[float]) -> Document:
        heard = tuple(
            Word("squawk", segment.start, segment.end, None, Timing.INTERPOLATED)
            for segment, loudness in zip(segments, pieces, strict=True)
            if loudness > 0
        )
        return replace(document, heard=heard, languages=(self._language,), seconds=measure(job))


class Ruler(_Hearing):
    """Gives every word as much of the recording as any other."""

    name = "ruler"

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[float]) -> Document:
        count = sum(len(utterance.words) for utterance in document.utterances)
        each, done = measure(job) / max(1, count), 0
        utterances: list[Utterance] = []
        for utterance in document.utterances:
            words = tuple(
                replace(word, start=place * each, end=(place + 1) * each, timing=Timing.INTERPOLATED)
                for place, word in enumerate(utterance.words, start=done)
            )
            start, end = done * each, (done + len(words)) * each
            utterances.append(replace(utterance, words=words, start=start, end=end) if words else utterance)
            done += len(words)
        return replace(document, utterances=tuple(utterances), seconds=measure(job))


class Lexicon(HostEngine):
    """A tagger that has a book for each language, and adds its title to what it tags."""

    name = "lexicon"

    def __init__(self, languages: Sequence[str] = (), language: str = "eng") -> None:
        self._language = get_long_code(language)
        self._languages = sorted({get_long_code(name) if name else self._language for name in languages})

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        language = get_long_code(document.languages[0]) if document.languages else self._language
        return replace(document, warnings=(*document.warnings, f"looked up in the book of {language}"))

    def fingerprint(self) -> Mapping[str, Any]:
        books = {name: f"the book of {name}" for name in self._languages}
        return {"engine": self.name, "books": books, "usual": self._language}


class Forgetful(Lexicon):
    """Declares a model for each language, and has none in its fingerprint."""

    name = "forgetful"
