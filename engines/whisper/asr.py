"""Whisper: what is said in a recording, when each word is, and in which language."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefork.engines.alignment.forced_aligner import find_media, make_tone, measure
from prefork.engines.alignment.recovery import is_timed
from prefork.engines.alignment.seams import join_words
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.audio.speech_regions import SpeechSpan, find_gain, find_loudest, plan_spans, read_levels
from prefork.engines.base import Engine, Job, Segment, Tensors
from prefork.engines.checkpoints.footprint import estimate_encoder
from prefork.engines.checkpoints.model_folder import DtypeOption
from prefork.engines.errors import InputError, LoadError
from prefork.engines.text.document import Document, Timing, Word
from prefork.engines.text.languages import get_long_code
from prefork.engines.whisper.attention import attend
from prefork.engines.whisper.checkpoint import (
    FRAME,
    WhisperCheckpoint,
    doubt_heads,
    find_language,
    identify,
    open_whisper,
)
from prefork.engines.whisper.decoding import MOST_TOKENS, WindowDecoder, listen
from prefork.engines.whisper.model import compute_features, count_whisper_weights, encode, load_whisper
from prefork.engines.whisper.network import WhisperNetwork
from prefork.engines.whisper.timing import find_quiet, list_pauses, time_words
from prefork.engines.whisper.windows import DETECT, NEVER, transcribe

DEFAULT = "openai/whisper-large-v3-turbo"
UNTRANSCRIBED = "xxx"  # CHAT: speech that could not be made out
_EXAMPLE_TOKENS = 8
_WINDOWS = 3  # that the language is told by
_CERTAIN = 0.9  # probability
_DOUBTFUL = 0.5  # probability, of a language or of the words
_SPOKEN_MARKS = frozenset("&%@+$€£=")


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """What a segment needs to know. language: Whisper's code, None if it is to be detected. overlap: seconds that it
    shares with the segment before it. gain: what the samples are multiplied by, the same in the whole recording."""

    language: str | None = None
    overlap: float = 0.0
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a segment says. failed: something that could not be made out. languages: probabilities of the best ones."""

    words: tuple[Word, ...] = ()
    failed: bool = False
    languages: tuple[tuple[str, float], ...] = ()


class _Whisper(DtypeOption, Engine):
    """model: a folder, or a hub id. dtype: float32, bfloat16, float16 or int8, of the weights; None for what is best on
    this machine. language: ISO 639-1 or 639-3, None for that of the document, or if there is none, what the model
    says."""

    def __init__(self, model: str | None = None, dtype: str | None = None, language: str | None = None) -> None:
        self._model = DEFAULT if model is None else model
        self.take_dtype(dtype)
        self._language = language

    def setup(self) -> None:
        self._checkpoint: WhisperCheckpoint = open_whisper(self._model)
        if self._language is not None:
            try:
                self._find_language(self._language)
            except ValueError as error:
                raise LoadError(f"{self._model}: {error}") from error

    def _find_language(self, language: str) -> str:
        """Whisper's code of a language that the checkpoint knows. Raises ValueError if it does not."""
        if (code := find_language(self._checkpoint, language)) is not None:
            return code
        if not self._checkpoint.multilingual:
            raise ValueError(f"it knows only English, not {language!r}; give a multilingual checkpoint with --model")
        known = ", ".join(sorted(self._checkpoint.languages))
        raise ValueError(f"it does not know the language {language!r}; it knows {known}")

    def load(self) -> WhisperNetwork:
        return load_whisper(self._checkpoint, self._dtype)

    def count_weights(self) -> int:
        return count_whisper_weights(self._checkpoint, self._dtype)

    def identify_model(self) -> Hashable:
        return ("whisper", str(self._checkpoint.folder), self._dtype)

    def count_elements(self, segment: Segment) -> int:  # noqa: ARG002
        return round(self._checkpoint.seconds * SAMPLE_RATE)  # at most: Whisper hears half a window at least

    def estimate_memory(self, segment: Segment) -> int:  # noqa: ARG002  the longest window counts
        """For a window of 30 s, the longest that there is: the encoder, what the decoder keeps of its output, and the
        attention of one head at a time, which a median filter takes seven times."""
        config, checkpoint = self._checkpoint.config, self._checkpoint
        encoder = estimate_encoder(config, checkpoint.seconds, FRAME)
        decoder = 4 * 2 * config.decoder_layers * checkpoint.frames * config.d_model + 4 * 8 * config.vocab_size
        attention = 4 * 12 * MOST_TOKENS * checkpoint.frames
        return round(max(encoder, decoder + attention))

    def example(self) -> Tensors:
        return self._make_tensors(make_tone(2.0), None) | {"most": torch.tensor(_EXAMPLE_TOKENS)}

    def longest_example(self) -> Tensors:
        return self._make_tensors(make_tone(self._checkpoint.seconds), None) | {"most": torch.tensor(_EXAMPLE_TOKENS)}

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """{"features": (mel bins, 2 * frames), of its sound and some silence, "frames": of the encoder that are no
        padding, "language": its token or -1, "most": tokens, "quiet": (frames,)}."""
        waveform = torch.from_numpy(read_audio(find_media(job), segment.start, segment.end, job.selection))
        return self._make_tensors(waveform * segment.content.gain, segment.content.language)

    def _make_tensors(self, waveform: Tensor, language: str | None) -> dict[str, Tensor]:
        frames = min(self._checkpoint.frames, max(1, round(len(waveform) / SAMPLE_RATE / FRAME)))
        token = self._checkpoint.languages.get(language or "", DETECT)
        return {
            "features": compute_features(self._checkpoint, waveform),
            "frames": torch.tensor(frames),
            "language": torch.tensor(token),
            "most": torch.tensor(MOST_TOKENS),
            "quiet": torch.from_numpy(find_quiet(waveform.numpy())),
        }

    def _check_finite(self, *values: Tensor) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in values):
            remedy = "choose another with --model" if self._dtype == "float32" else "try --dtype float32"
            raise LoadError(f"{self._model}: its output in {self._dtype} is not finite; {remedy}")

    def _plan(self, job: Job) -> tuple[list[SpeechSpan], Any]:
        levels, found = read_levels(find_media(job), job.selection)
        return plan_spans(levels, found), levels

    def _rank_languages(self, probabilities: Tensor) -> tuple[tuple[str, float], ...]:
        """The best ones, as (ISO 639-3, probability)."""
        codes = list(self._checkpoint.languages)
        values, indices = probabilities.sort(descending=True)
        best = zip(indices[:5].tolist(), values[:5].tolist(), strict=True)
        return tuple((get_long_code(codes[index]), value) for index, value in best)

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "model": identify(self._checkpoint),
            "files": self._checkpoint.source.list_files(),
            "dtype": self.identify_dtype(),
            "language": self._language,
        }


class WhisperASR(_Whisper):
    """Fills a document's `heard`; any Whisper checkpoint, English-only or multilingual.

    only_untimed: a transcript whose utterances have their times already is left as it is.
    """

    name = "whisper"
    memory_stage = "transcription"
    piece = Heard

    def __init__(
        self,
        model: str | None = None,
        dtype: str | None = None,
        language: str | None = None,
        only_untimed: bool = False,
    ) -> None:
        super().__init__(model, dtype, language)
        self._only_untimed = only_untimed

    def split(self, job: Job, document: Document) -> list[Segment]:
        if self._is_done(document):
            return []
        language = self._choose_language(job, document)
        spans, levels = self._plan(job)
        gain = find_gain(levels)
        segments: list[Segment] = []
        for index, span in enumerate(spans):
            overlap = segments[-1].end - span.start if span.overlaps else 0.0
            segments.append(Segment(index, span.start, span.end, WindowSettings(language, overlap, gain)))
        return segments

    def _is_done(self, document: Document) -> bool:
        """Whether the transcript needs no times."""
        spoken = [utterance for utterance in document.utterances if utterance.words]
        return self._only_untimed and bool(spoken) and all(map(is_timed, spoken))

    def _choose_language(self, job: Job, document: Document) -> str | None:
        """The language as stated, or the first of the document's that the checkpoint knows."""
        if self._language is not None:
            return self._find_language(self._language)
        problem: ValueError | None = None
        for language in document.languages:
            try:
                return self._find_language(language)
            except ValueError as error:
                problem = problem or error
        if problem is not None and not self._checkpoint.multilingual:
            raise InputError(f"{job.id}: {self._model}: {problem}")
        return None if self._checkpoint.multilingual else "en"

    def infer(self, model: WhisperNetwork, batch: Sequence[Tensors]) -> list[Tensors]:
        """Of each window: {"text": (tokens,), "failed": the frame from which on nothing could be made out, or -1,
        "attention": (prompt + text, frames), "log_probs": (prompt + text - 1,), "language": index, "languages":
        (languages,) probabilities, "quiet": (frames,)}."""
        checkpoint = self._checkpoint
        features = [tensors["features"] for tensors in batch]
        languages, frames, most = (_read(batch, name) for name in ("language", "frames", "most"))
        decoder = WindowDecoder(model, encode(model, features))
        windows = transcribe(model, checkpoint, features, decoder, languages, frames, most)
        attended = attend(decoder, checkpoint, [window.compose(checkpoint) for window in windows], frames)
        codes = list(checkpoint.languages)
        return [
            {
                "text": torch.tensor(window.text, dtype=torch.long),
                "failed": torch.tensor(window.failed),
                "attention": attention,
                "log_probs": log_probs,
                "language": torch.tensor(codes.index(window.language) if window.language else DETECT),
                "languages": window.languages,
                "quiet": tensors["quiet"],
            }
            for window, (attention, log_probs), tensors in zip(windows, attended, batch, strict=True)
        ]

    def verify(self, output: Tensors) -> None:
        """Raises LoadError if the model does not compute."""
        self._check_finite(output["attention"], output["log_probs"])

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Heard:  # noqa: ARG002
        text, failed, index = output["text"].tolist(), int(output["failed"]), int(output["language"])
        if not text and failed == NEVER:
            return Heard()
        language = None if index == DETECT else list(self._checkpoint.languages)[index]
        end = segment.end if failed == NEVER else segment.start + failed * FRAME
        timing = (output["attention"], output["log_probs"], segment.start, end, language)
        pauses = list_pauses(output["quiet"].cpu().numpy())
        timed = time_words(self._checkpoint, text, *timing, pauses) if text else []
        words = [word for word in timed if _is_spoken(word.text)]
        if failed != NEVER:
            words.append(Word(UNTRANSCRIBED, end, segment.end, None, Timing.INTERPOLATED))
        return Heard(tuple(words), failed != NEVER, self._rank_languages(output["languages"]))

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Heard]) -> Document:
        if self._is_done(document):
            return document
        words = join_heard(segments, pieces)
        stated = self._choose_language(job, document)
        languages, warnings = self._judge_languages(stated, pieces)
        warnings += [*_judge_words(words, segments, pieces), *doubt_heads(self._checkpoint)]
        return replace(
            document,
            heard=tuple(words),
            languages=document.languages or languages,
            seconds=measure(job),
            warnings=(*document.warnings, *warnings),
        )

    def _judge_languages(self, stated: str | None, pieces: Sequence[Heard]) -> tuple[tuple[str, ...], list[str]]:
        """The languages as ISO 639-3, and what there is to say about them."""
        heard = sum_languages([piece.languages for piece in pieces])
        if stated is None:
            return tuple(heard)[:1], []
        code = get_long_code(stated)
        best, probability = next(iter(heard.items()), (code, 1.0))
        if best == code or probability < _CERTAIN:
            return (code,), []
        return (code,), [f"it was transcribed as {code}, but it sounds like {best} ({probability:.0%}); check --lang"]

    def fingerprint(self) -> Mapping[str, Any]:
        return {**super().fingerprint(), "only_untimed": self._only_untimed}


class LanguageDetector(_Whisper):
    """Finds a document's language where none is stated: by the windows with the most speech."""

    name = "language"
    piece = tuple[tuple[str, float], ...]

    def split(self, job: Job, document: Document) -> list[Segment]:
        if document.languages or not self._checkpoint.multilingual:
            return []
        spans, levels = self._plan(job)
        loudest = find_loudest(levels, spans, _WINDOWS)
        settings = WindowSettings(gain=find_gain(levels))
        return [Segment(index, span.start, span.end, settings) for index, span in enumerate(loudest)]

    def infer(self, model: WhisperNetwork, batch: Sequence[Tensors]) -> list[Tensors]:
        """{"languages": (languages,) probabilities} of each window; none of an English-only checkpoint."""
        if not self._checkpoint.multilingual:
            return [{"languages": torch.zeros(0)} for _ in batch]
        decoder = WindowDecoder(model, encode(model, [tensors["features"] for tensors in batch]))
        return [{"languages": opening.languages} for opening in listen(decoder, self._checkpoint)]

    def verify(self, output: Tensors) -> None:
        """Raises LoadError if the model does not compute."""
        self._check_finite(output["languages"])

    def finish(
        self,
        job: Job,  # noqa: ARG002
        segment: Segment,  # noqa: ARG002
        output: Tensors,
    ) -> tuple[tuple[str, float], ...]:
        return self._rank_languages(output["languages"])

    def join(
        self,
        job: Job,  # noqa: ARG002
        document: Document,
        segments: Sequence[Segment],  # noqa: ARG002
        pieces: Sequence[tuple[tuple[str, float], ...]],
    ) -> Document:
        if document.languages:
            return document
        if not self._checkpoint.multilingual:
            return replace(document, languages=("eng",))
        found = sum_languages(pieces)
        if not found:
            return document
        best = next(iter(found))
        warnings = document.warnings
        if found[best] < _DOUBTFUL:
            guesses = ", ".join(f"{code} {probability:.0%}" for code, probability in list(found.items())[:3])
            warnings = (*warnings, f"its language is uncertain ({guesses}); set it with --lang")
        return replace(document, languages=(best,), warnings=warnings)


def _read(batch: Sequence[Tensors], name: str) -> list[int]:
    """A whole number of each window, in one copy."""
    numbers: list[int] = torch.stack([tensors[name] for tensors in batch]).tolist()
    return numbers


def join_heard(segments: Sequence[Segment], pieces: Sequence[Heard]) -> list[Word]:
    """The words of all segments in one row; what two segments both heard is there once."""
    words: list[Word] = []
    for segment, piece in zip(segments, pieces, strict=True):
        overlap = segment.content.overlap
        if overlap > 0:
            words = join_words(words, piece.words, segment.start, segment.start + overlap)
        else:
            words += piece.words
    return words


def sum_languages(found: Sequence[Sequence[tuple[str, float]]]) -> dict[str, float]:
    """Mean probability of each language, the likeliest first."""
    rows = [row for row in found if row]
    codes = sorted({code for row in rows for code, _ in row})
    means = {code: sum(dict(row).get(code, 0.0) for row in rows) / len(rows) for code in codes}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _judge_words(words: Sequence[Word], segments: Sequence[Segment], pieces: Sequence[Heard]) -> list[str]:
    """What there is to say about the words."""
    if not words:
        return ["no speech found"]
    warnings = []
    failed = [segment for segment, piece in zip(segments, pieces, strict=True) if piece.failed]
    if failed:
        where = ", ".join(f"{segment.start:.0f} to {segment.end:.0f} s" for segment in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        warnings.append(f"the speech at {where}{more} could not be recognised")
    scores = [word.score for word in words if word.score is not None]
    if scores and (mean := sum(scores) / len(scores)) < _DOUBTFUL:
        warnings.append(f"its words are uncertain: their mean probability is {mean:.2f}")
    return warnings


def _is_spoken(text: str) -> bool:
    """Whether there is anything but punctuation and notes in a word."""
    return any(c in _SPOKEN_MARKS or unicodedata.category(c)[0] in "LNM" for c in text)
