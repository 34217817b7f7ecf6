"""The Whisper aligner: when each word of a transcript is said, from where Whisper looks when it is told the words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from prefork.engines.alignment.forced_aligner import (
    AlignedLines,
    ForcedAligner,
    Stretch,
    TranscriptLine,
    amplify,
    make_tone,
)
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.audio.speech_regions import LONGEST
from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.checkpoints.footprint import estimate_encoder
from prefork.engines.checkpoints.model_folder import DtypeOption
from prefork.engines.errors import InputError, LoadError
from prefork.engines.text.document import Document, Word
from prefork.engines.whisper.attention import attend
from prefork.engines.whisper.checkpoint import FRAME, compose_prompt, doubt_heads, find_language, identify, open_whisper
from prefork.engines.whisper.decoding import WindowDecoder
from prefork.engines.whisper.model import compute_features, count_frames, count_whisper_weights, encode, load_whisper
from prefork.engines.whisper.network import WhisperNetwork
from prefork.engines.whisper.timing import SPACELESS, find_quiet, find_spans, leave_pauses, list_pauses, make_words

DEFAULT = "openai/whisper-large-v3-turbo"
_EXAMPLE_SECONDS = 2
_EXAMPLE_TEXT = "one two"
_LONG_TIMES = 50  # that it is said in the longest example
_LOGIT_ROWS = 64


class WhisperAligner(DtypeOption, ForcedAligner):
    """Any Whisper checkpoint in transformers' files.

    model: a folder with config.json, tokenizer and model.safetensors, or a hub id. max_segment: seconds up to which
    timed utterances that follow one another go through the model together. dtype: float32, bfloat16, float16 or int8,
    of the weights; None for what is best on this machine. language: what a multilingual checkpoint is told, as Whisper
    or ISO 639-3 calls it; by default what the transcript says, and English where it does not.
    """

    name = "whisper-aligner"
    low = 0.15  # whisper-tiny.en: 2 of 50 utterances of learners are below; with another recording's text, 3 in 4

    def __init__(
        self,
        model: str | None = None,
        max_segment: float = 12.0,
        dtype: str | None = None,
        language: str | None = None,
    ) -> None:
        if not 0 < max_segment <= LONGEST:
            raise LoadError(
                f"max_segment must be a number of seconds above 0 and at most {LONGEST:g}, not {max_segment}: "
                "Whisper takes 30 s at once"
            )
        self._model = DEFAULT if model is None else model
        self.max_joint = max_segment
        self.take_dtype(dtype)
        self._language = language

    def setup(self) -> None:
        self._checkpoint = open_whisper(self._model)
        if self._language is not None and find_language(self._checkpoint, self._language) is None:
            known = self._checkpoint.languages or ("en",)
            raise LoadError(
                f"{self._model}: it does not know the language {self._language!r}, only {', '.join(known)}; "
                "give one of these with --lang, or another model with --model"
            )

    def load(self) -> WhisperNetwork:
        return load_whisper(self._checkpoint, self._dtype)

    def count_weights(self) -> int:
        return count_whisper_weights(self._checkpoint, self._dtype)

    def identify_model(self) -> tuple[str, str, str]:
        return "whisper", str(self._checkpoint.folder), self._dtype

    def estimate_memory(self, segment: Segment) -> int:
        """As if the encoder heard 30 s, which it does at most: each layer of the decoder holds keys and values of
        these; of the rest, the logits of some tokens and one head's attention, which a median filter takes seven times,
        are the most."""
        checkpoint, config = self._checkpoint, self._checkpoint.config
        encoder = estimate_encoder(config, checkpoint.seconds, FRAME)
        decoder = 4 * 2 * checkpoint.frames * config.d_model * config.decoder_layers
        logits = 3 * 4 * _LOGIT_ROWS * config.vocab_size
        frames = min(segment.seconds / FRAME, checkpoint.frames)
        attention = 12 * 4 * checkpoint.most_tokens * frames
        audio = 4 * (2 * SAMPLE_RATE * checkpoint.seconds + 6 * checkpoint.frames * config.num_mel_bins)
        return round(max(encoder, decoder + logits + attention) + audio)

    def count_elements(self, segment: Segment) -> int:  # noqa: ARG002
        return round(self._checkpoint.seconds * SAMPLE_RATE)  # at most: Whisper hears half a window at least

    def count_seconds_needed(self, words: Sequence[str]) -> float:
        """A frame for each letter or digit: nobody speaks so fast."""
        return FRAME * sum(max(1, sum(map(str.isalnum, word))) for word in words)

    def check_size(self, job: Job, words: Sequence[str], seconds: float) -> None:
        most = self._checkpoint.most_tokens - len(compose_prompt(self._checkpoint, "en"))
        if (count := sum(map(len, self._spell(words, None)))) > most and self.count_seconds_needed(words) <= seconds:
            raise InputError(
                f"{job.id}: {len(words)} words over {seconds:.0f} s are {count} tokens, but Whisper takes {most} at "
                "once; check that the transcript is of this recording, or align with --engine ctc"
            )
        if seconds > self._checkpoint.seconds:
            raise InputError(
                f"{job.id}: {len(words)} words without times lie within {seconds:.0f} s, but Whisper takes "
                f"{self._checkpoint.seconds:.0f} s at once; find the utterances first with --utr ctc, or align with "
                "--engine ctc"
            )

    def join(
        self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[AlignedLines]
    ) -> Document:
        joined = super().join(job, document, segments, pieces)
        return replace(joined, warnings=(*joined.warnings, *doubt_heads(self._checkpoint)))

    def example(self) -> Tensors:
        return self._compose(make_tone(_EXAMPLE_SECONDS), _EXAMPLE_TEXT.split(), None)

    def longest_example(self) -> Tensors:
        return self._compose(make_tone(self._checkpoint.seconds), _EXAMPLE_TEXT.split() * _LONG_TIMES, None)

    def verify(self, output: Tensors) -> None:
        """Raises LoadError if the model's attention is not over the frames it was given, or is no number."""
        attention, expected = output["attention"], round(_EXAMPLE_SECONDS / FRAME)
        if attention.shape[1] != expected or not torch.isfinite(attention).all():
            raise LoadError(
                f"{self._model}: its attention over {_EXAMPLE_SECONDS} s of audio cannot be used "
                f"({attention.shape[1]} frames, {expected} expected); choose another with --model, or another --dtype"
            )

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """{"features": (mel bins, 2 * frames), of its sound and some silence, "quiet": (frames,), no padding, "tokens":
        (prompt + text,), "recorded": as ForcedAligner has it}."""
        (stretch,) = segment.content
        heard = super().prepare(job, segment)
        composed = self._compose(amplify(heard["waveform"]), stretch.words, self._choose_language(stretch.lines))
        return {**composed, "recorded": heard["recorded"]}

    def _compose(self, waveform: torch.Tensor, words: Sequence[str], language: str | None) -> Tensors:
        frames = count_frames(self._checkpoint, len(waveform))
        tokens = compose_prompt(self._checkpoint, language)
        tokens += [token for group in self._spell(words, language) for token in group]
        return {
            "features": compute_features(self._checkpoint, waveform),
            "quiet": torch.from_numpy(find_quiet(waveform.numpy())[:frames]),
            "tokens": torch.tensor(tokens if len(tokens) <= self._checkpoint.most_tokens else []),
        }

    def _choose_language(self, lines: Sequence[TranscriptLine]) -> str | None:
        """Whisper's code; None for an English-only checkpoint."""
        if not self._checkpoint.multilingual:
            return None
        return find_language(self._checkpoint, self._language or (lines[0].language if lines else None) or "en") or "en"

    def _spell(self, words: Sequence[str], language: str | None) -> list[list[int]]:
        """Each word's tokens, at least one, and none that is not text."""
        space = "" if language in SPACELESS else " "
        return [self._checkpoint.tokenizer.encode(space + word) for word in words]

    def infer(self, model: WhisperNetwork, batch: Sequence[Tensors]) -> list[Tensors]:
        """{"attention": (prompt + text, frames), "log_probs": (prompt + text - 1,), "quiet": (frames,)} of each
        segment; the first two are empty for one with more tokens than the decoder takes."""
        texts: list[list[int]] = [tensors["tokens"].tolist() for tensors in batch]
        chosen = [index for index, tokens in enumerate(texts) if tokens]
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        if chosen:
            states = encode(model, [batch[index]["features"] for index in chosen])
            frames = [len(batch[index]["quiet"]) for index in chosen]
            attended = attend(
                WindowDecoder(model, states), self._checkpoint, [texts[index] for index in chosen], frames
            )
            found = dict(zip(chosen, attended, strict=True))
        outputs: list[Tensors] = []
        for index, tensors in enumerate(batch):
            nothing = torch.zeros(0, len(tensors["quiet"])), torch.zeros(0)
            attention, log_probs = found.get(index, nothing)
            outputs.append({"attention": attention, "log_probs": log_probs, "quiet": tensors["quiet"]})
        return outputs

    def align(self, stretch: Stretch, output: Tensors, segment: Segment) -> list[Word] | None:
        attention, log_probs = output["attention"], output["log_probs"]
        lines, words = stretch.lines, stretch.words
        # A window's margins hold words of its neighbours, and the first and the last word would take these up.
        edges = (min(line.start for line in lines) - segment.start, max(line.end for line in lines) - segment.start)
        first, last = max(0, math.floor(edges[0] / FRAME)), min(attention.shape[1], math.ceil(edges[1] / FRAME))
        if not len(attention) or self.count_seconds_needed(words) > (last - first) * FRAME:
            return None
        counts = [len(group) for group in self._spell(words, self._choose_language(lines))]
        spans = find_spans(counts, attention, log_probs, first, last, self._checkpoint.lag)
        pauses = list_pauses(output["quiet"].cpu().numpy())
        return make_words(words, leave_pauses(spans, pauses), segment.start, segment.end)

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "model": identify(self._checkpoint),
            "files": self._checkpoint.source.list_files(),
            "max_segment": self.max_joint,
            "dtype": self.identify_dtype(),
            "language": self._language,
        }
