"""The CTC aligner: when each word of a transcript is said, from the emissions of any CTC model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engines import formats
from engines.alignment import align_words, count_frames_needed, spread_words
from engines.audio import SAMPLE_RATE, probe, read_audio
from engines.base import Engine, InputError, Job, LoadError, Segment, Tensors
from engines.checkpoint import DTYPES, Checkpoint, count_weights, identify, load_model, open_checkpoint
from engines.document import Document, Timing, Utterance, Word
from engines.footprint import estimate_encoder
from engines.windows import Window, plan_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDED = Path(__file__).parent / "models" / "ctc-aligner-en"
WINDOW_SECONDS = 20.0  # what the model is given at a time
CONTEXT_SECONDS = 2.0  # at each end of a window that goes on: heard, but its emissions are the neighbour's
MOST_BYTES = 512 << 20  # of a segment's emissions and Viterbi table
_EXAMPLE_SECONDS = 2
_SHORTEST = 1600  # samples; a convolutional front end needs a few hundred


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance of a segment. index: in the document. start, end: seconds it has in the transcript, or those of
    the segment."""

    index: int
    start: float
    end: float
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """The words of each of a segment's lines, with times. guessed: the lines did not fit, times are spread evenly."""

    words: tuple[tuple[Word, ...], ...]
    guessed: bool = False


class CTCAligner(Engine):
    """Anything that AutoModelForCTC loads: wav2vec2, HuBERT, WavLM, MMS, and the small model that comes with this.

    model: a folder with config.json, a vocabulary and model.safetensors, or a hub id; by default the embedded one.
    max_segment: seconds up to which timed utterances that follow one another go through the model together.
    dtype: float32, bfloat16, float16 or int8, of the weights.
    """

    name = "ctc"

    def __init__(self, model: str | None = None, max_segment: float = 12.0, dtype: str = "float32") -> None:
        if not 0 < max_segment < float("inf"):
            raise LoadError(f"max_segment must be a number of seconds above 0, not {max_segment}")
        if dtype not in DTYPES:
            raise LoadError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        self._model = str(EMBEDDED) if model is None else model
        self._max_segment = max_segment
        self._dtype = dtype

    def setup(self) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(self._model)
        self._vocabulary = self._checkpoint.vocabulary
        self._clock = self._checkpoint.clock
        self._hop = round(self._clock.frame * SAMPLE_RATE)  # samples from one frame to the next

    def load(self) -> PreTrainedModel:
        return load_model(self._checkpoint, self._dtype)

    def count_weights(self) -> int:
        return count_weights(self._checkpoint, self._dtype)

    def estimate_memory(self, segment: Segment) -> int:
        """The model sees a window at a time; the waveform, the emissions and the table of the search are whole."""
        words = [word for line in segment.content or () for word in line.words]
        window = estimate_encoder(self._checkpoint.config, min(segment.seconds, WINDOW_SECONDS), self._clock.frame)
        waveform = 2 * 4 * SAMPLE_RATE * segment.seconds
        return round(window + waveform + self._count_search_bytes(words, segment.seconds))

    def _count_search_bytes(self, words: Sequence[str], seconds: float) -> float:
        """torchaudio keeps a byte for each frame and each token or blank; the emissions are copied for the wildcard."""
        frames, needed = seconds / self._clock.frame, count_frames_needed(words, self._vocabulary)
        return float(frames * (2 * needed + 1) + 2 * frames * self._checkpoint.config.vocab_size * 4)

    def example(self) -> Tensors:
        """A rising tone: every frame is different from the one before."""
        seconds = torch.arange(_EXAMPLE_SECONDS * SAMPLE_RATE) / SAMPLE_RATE
        return {"waveform": 0.1 * torch.sin(2 * torch.pi * (100 + 500 * seconds) * seconds)}

    def verify(self, output: Tensors) -> None:
        """Raises LoadError if the model's frames are not as long as its configuration says."""
        frames, expected = len(output["log_probs"]), _EXAMPLE_SECONDS / self._clock.frame
        if abs(frames - expected) > 3:
            raise LoadError(
                f"{self._model}: it makes {frames} frames of {_EXAMPLE_SECONDS} s, not {expected:.0f}; "
                "put the length of its frames into its config.json as frame_seconds"
            )

    def split(self, job: Job) -> list[Segment]:
        document = formats.read(job.source)
        seconds = _measure(job)
        windows, _ = self._plan(document, seconds)
        return [self._make_segment(job, document, index, window) for index, window in enumerate(windows)]

    def _plan(self, document: Document, seconds: float) -> tuple[list[Window], list[str]]:
        least = [self._count_seconds_needed([word.text for word in u.words]) for u in document.utterances]
        return plan_windows(document.utterances, least, seconds, self._max_segment)

    def _count_seconds_needed(self, words: Sequence[str]) -> float:
        return count_frames_needed(words, self._vocabulary) * self._clock.frame

    def _make_segment(self, job: Job, document: Document, index: int, window: Window) -> Segment:
        lines = tuple(_make_line(document.utterances[i], i, window) for i in window.utterances)
        words = [word for line in lines for word in line.words]
        seconds = window.end - window.start
        frames, needed = seconds / self._clock.frame, count_frames_needed(words, self._vocabulary)
        size = self._count_search_bytes(words, seconds)
        if size > MOST_BYTES:
            raise InputError(
                f"{job.id}: {len(words)} words without times over {seconds:.0f} s are too many to align at once "
                f"({size / 2**20:.0f} MiB, at most {MOST_BYTES / 2**20:.0f}); "
                "give an utterance every few minutes its times, or cut the recording"
            )
        whole = len(window.utterances) == sum(bool(utterance.words) for utterance in document.utterances)
        if needed > frames and whole and not window.timed:
            raise InputError(
                f"{job.id}: {len(words)} words need at least {needed * self._clock.frame:.1f} s, but the recording "
                f"has {seconds:.1f} s for them; check that the transcript is of this recording"
            )
        return Segment(index, window.start, window.end, lines)

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """{"waveform": (samples,) mono at 16 kHz}."""
        waveform = torch.from_numpy(read_audio(_find_media(job), segment.start, segment.end))
        if len(waveform) < (segment.seconds - 1.0) * SAMPLE_RATE:
            end = segment.start + len(waveform) / SAMPLE_RATE
            raise InputError(
                f"{job.media}: the recording's header says {_measure(job):.1f} s but it ends at {end:.1f} s; "
                "it is truncated, get it again"
            )
        return {"waveform": torch.nn.functional.pad(waveform, (0, max(0, _SHORTEST - len(waveform))))}

    def infer(self, model: PreTrainedModel, batch: Sequence[Tensors]) -> list[Tensors]:
        """{"log_probs": (frames, vocabulary)} of each waveform."""
        return [{"log_probs": self._emit(model, tensors["waveform"])} for tensors in batch]

    def _emit(self, model: PreTrainedModel, waveform: torch.Tensor) -> torch.Tensor:
        """(frames, vocabulary) log-probabilities, a window at a time: the model's memory does not grow with it."""
        size, context = (round(s * SAMPLE_RATE / self._hop) * self._hop for s in (WINDOW_SECONDS, CONTEXT_SECONDS))
        if len(waveform) <= size:
            return self._forward(model, waveform)
        parts = []
        for start in range(0, len(waveform) - 2 * context, size - 2 * context):
            emission = self._forward(model, waveform[start : start + size])
            first = context // self._hop if start else 0
            last = None if start + size >= len(waveform) else (size - context) // self._hop
            parts.append(emission[first:last])
        return torch.cat(parts)

    def _forward(self, model: PreTrainedModel, waveform: torch.Tensor) -> torch.Tensor:
        dtype = getattr(model, "input_dtype", DTYPES[self._dtype])
        encoded = {name: values.to(dtype) for name, values in self._encode(waveform).items()}
        logits: torch.Tensor = model(**encoded).logits[0]
        return logits.float().log_softmax(dim=-1)

    def _encode(self, waveform: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The model's input: the waveform, or the features of the extractor that came with it."""
        if self._checkpoint.extractor is not None:
            features = self._checkpoint.extractor(
                waveform.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt"
            )
            return {"input_features": features["input_features"].to(waveform.device)}
        if self._checkpoint.normalize:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        return {"input_values": waveform[None]}

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Piece:
        lines: tuple[Line, ...] = segment.content
        words = [word for line in lines for word in line.words]
        log_probs = output["log_probs"]
        if len(log_probs) < count_frames_needed(words, self._vocabulary):
            return Piece(tuple(tuple(spread_words(line.words, line.start, line.end)) for line in lines), guessed=True)
        # A window's margins hold words of its neighbours. Without wildcards for these, first and last words are drawn
        # to them by up to 1.2 s (40 sentences of the benchmark in one file, times off by 0.1 to 0.5 s); with, 0.4 s.
        before, after = segment.start > 0, segment.end < _measure(job)
        times = (self._clock, segment.start, segment.end)
        timed = align_words(log_probs, words, self._vocabulary, *times, before=before, after=after)
        rest = iter(timed)
        return Piece(tuple(tuple(next(rest) for _ in line.words) for line in lines))

    def join(self, job: Job, segments: Sequence[Segment], pieces: Sequence[Piece]) -> Document:
        document = formats.read(job.source)
        seconds = _measure(job)
        _, warnings = self._plan(document, seconds)
        utterances = list(document.utterances)
        for segment, piece in zip(segments, pieces, strict=True):
            for line, words in zip(segment.content, piece.words, strict=True):
                utterance = utterances[line.index]
                utterances[line.index] = replace(utterance, words=words, start=words[0].start, end=words[-1].end)
                if piece.guessed:
                    what = f"utterance {line.index + 1} ({utterance.text[:40].strip()}): {len(words)} words"
                    warnings.append(f"{what} do not fit into {line.end - line.start:.1f} s; their times are guessed")
        apart = keep_apart(document.utterances, utterances)
        return replace(document, utterances=tuple(apart), seconds=seconds, warnings=(*document.warnings, *warnings))

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "version": version("prefork"),
            "model": identify(self._checkpoint),
            "max_segment": self._max_segment,
            "dtype": self._dtype,
        }


def keep_apart(before: Sequence[Utterance], after: Sequence[Utterance]) -> list[Utterance]:
    """Ends an utterance where the next begins, unless the transcript says that they overlap.

    before, after: the same utterances as the transcript has them and with their words' times.
    """
    result = list(after)
    for i, (utterance, following) in enumerate(pairwise(after)):
        timed = any(word.timing is not Timing.NONE for word in utterance.words)
        if not timed or utterance.start is None or utterance.end is None or following.start is None:
            continue
        ends, begins = before[i].end, before[i + 1].start
        overlap = ends is not None and begins is not None and begins < ends
        if not overlap and utterance.start < following.start < utterance.end:
            words = tuple(_end_by(word, following.start) for word in utterance.words)
            result[i] = replace(utterance, words=words, end=following.start)
    return result


def _end_by(word: Word, time: float) -> Word:
    if word.start is None or word.end is None or word.end <= time:
        return word
    characters = tuple(replace(c, start=min(c.start, time), end=min(c.end, time)) for c in word.characters)
    return replace(word, start=min(word.start, time), end=time, characters=characters)


def _make_line(utterance: Utterance, index: int, window: Window) -> Line:
    words = tuple(word.text for word in utterance.words)
    start, end = utterance.start, utterance.end
    if start is None or end is None or not window.start <= start < end:
        return Line(index, window.start, window.end, words)
    return Line(index, start, min(end, window.end), words)


def _find_media(job: Job) -> Path:
    if job.media is None:
        raise InputError(f"{job.id}: no recording was found for this transcript; put it beside it under the same name")
    return job.media


def _measure(job: Job) -> float:
    """Length of the job's recording, seconds."""
    return job.seconds or probe(_find_media(job)).seconds
