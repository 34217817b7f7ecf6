"""What every forced aligner does around its model: a transcript's utterances into stretches of the recording, and the
words' times back into the transcript."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch

from prefork.engines.alignment.confidence import UntranscribedSpeech, doubt, rate
from prefork.engines.alignment.viterbi import spread_words
from prefork.engines.alignment.windows import AlignmentWindow, plan_windows
from prefork.engines.alignment.word_lengths import give_lengths
from prefork.engines.audio.reader import SAMPLE_RATE, probe, read_audio
from prefork.engines.base import Engine, Job, Segment, Tensors
from prefork.engines.errors import InputError
from prefork.engines.text.document import Document, Timing, Utterance, Word

NOTHING = 10 ** (-105 / 20)  # of full scale: what is below it was not recorded; the rounding to 16 bits is louder
_QUIET = 10 ** (-50 / 20)  # of full scale; where nothing is louder, the samples are made
_PEAK = 0.3  # so loud
_BEYOND = 2.0  # seconds after a stretch, more than any search goes
_SHORTEST = 1600  # samples; a convolutional front end needs a few hundred


@dataclass(frozen=True, slots=True)
class TranscriptLine:
    """One utterance of a segment. index: in the document. start, end: seconds it has in the transcript, or those of
    the segment. language: ISO 639-3, None if the transcript does not say."""

    index: int
    start: float
    end: float
    words: tuple[str, ...]
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Lines that are aligned together, within [start, end] seconds. limit: where the recording ends, or seconds beyond
    all that is looked at. timed: all of the lines had times of their own."""

    start: float
    end: float
    limit: float
    lines: tuple[TranscriptLine, ...]
    timed: bool = True

    @property
    def words(self) -> list[str]:
        return [word for line in self.lines for word in line.words]


@dataclass(frozen=True, slots=True)
class AlignedLines:
    """The words of each of a segment's lines, with times. guessed: which of the lines, by their place, did not fit, so
    that their times are spread evenly. untranscribed: what is said in each line besides."""

    words: tuple[tuple[Word, ...], ...]
    guessed: tuple[int, ...] = ()
    untranscribed: tuple[tuple[UntranscribedSpeech, ...], ...] = ()


HeardStretches = tuple[float, float, tuple[Stretch, ...]]


class ForcedAligner(Engine):
    """Times for words that are known. max_joint: seconds up to which timed utterances that follow one another are
    aligned together; with 0 each alone. A segment's content is a tuple of stretches."""

    max_joint: float
    piece = AlignedLines
    low: ClassVar[float]  # mean score of an utterance's words below which these are probably not what is said

    @abstractmethod
    def count_seconds_needed(self, words: Sequence[str]) -> float:
        """Seconds of the recording that the words take at the very least."""

    @abstractmethod
    def check_size(self, job: Job, words: Sequence[str], seconds: float) -> None:
        """Raises InputError if so many words over so many seconds are too many at once."""

    @abstractmethod
    def align(self, stretch: Stretch, output: Tensors, segment: Segment) -> list[Word] | None:
        """The stretch's words with their times, in order, apart and within the segment; None if they do not fit.

        output: what `infer` made of the segment. Where the stretch does not reach the recording's beginning or end,
        there may be other speech than these words.
        """

    def find_untranscribed(
        self,
        stretch: Stretch,  # noqa: ARG002
        line: TranscriptLine,  # noqa: ARG002
        words: Sequence[Word],  # noqa: ARG002
        output: Tensors,  # noqa: ARG002
        segment: Segment,  # noqa: ARG002
    ) -> Sequence[UntranscribedSpeech]:
        """Speech in a line of the stretch that is none of its words. words: of that line, as `align` found them. Here
        none is looked for."""
        return ()

    def gather(self, stretches: Sequence[Stretch], seconds: float) -> Iterator[HeardStretches]:  # noqa: ARG002
        """Segments: seconds from which and to which the model hears the recording, and the stretches in there. Here
        each alone. seconds: length of the recording."""
        yield from ((stretch.start, stretch.end, (stretch,)) for stretch in stretches)

    def split(self, job: Job, document: Document) -> list[Segment]:
        seconds = measure(job)
        windows, _ = self._plan(document, seconds)
        stretches = [self._make_stretch(job, document, window, seconds) for window in windows]
        return [Segment(index, *found) for index, found in enumerate(self.gather(stretches, seconds))]

    def _plan(self, document: Document, seconds: float) -> tuple[list[AlignmentWindow], list[str]]:
        least = [self.count_seconds_needed([word.text for word in u.words]) for u in document.utterances]
        return plan_windows(document.utterances, least, seconds, self.max_joint)

    def _make_stretch(self, job: Job, document: Document, window: AlignmentWindow, length: float) -> Stretch:
        language = document.languages[0] if document.languages else None
        lines = tuple(_make_line(document.utterances[i], i, window, language) for i in window.utterances)
        limit = min(length, window.end + _BEYOND)
        stretch = Stretch(window.start, window.end, limit, lines, window.timed)
        seconds = window.end - window.start
        self.check_size(job, stretch.words, seconds)
        needed = self.count_seconds_needed(stretch.words)
        whole = len(window.utterances) == sum(bool(utterance.words) for utterance in document.utterances)
        if needed > seconds and whole and not window.timed:
            raise InputError(
                f"{job.id}: {len(stretch.words)} words need at least {needed:.1f} s, but the recording "
                f"has {seconds:.1f} s for them; check that the transcript is of this recording"
            )
        return stretch

    def describe_segment(self, segment: Segment) -> Any:
        stretches: tuple[Stretch, ...] = segment.content
        described = (replace(s, lines=tuple(replace(line, index=0) for line in s.lines)) for s in stretches)
        held = [field.name for field in fields(AlignedLines)]  # pieces that hold other things are others
        return segment.start, segment.end, tuple(described), held

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """{"waveform": (samples,) mono at 16 kHz, "recorded": (bytes,) the digest of what `finish` looks at again}."""
        samples = read_audio(find_media(job), segment.start, segment.end, job.selection)
        waveform = torch.from_numpy(samples)
        # Where the recording ends before its packets say so, there is silence, in which nothing is found.
        wanted = max(_SHORTEST, math.floor((segment.seconds - 1.0) * SAMPLE_RATE))
        recorded = bytearray(hashlib.sha256(samples.tobytes()).digest())
        return {
            "waveform": torch.nn.functional.pad(waveform, (0, max(0, wanted - len(waveform)))),
            "recorded": torch.frombuffer(recorded, dtype=torch.uint8),
        }

    def finish(self, job: Job, segment: Segment, output: Tensors) -> AlignedLines:
        found: list[tuple[Word, ...]] = []
        guessed: list[int] = []
        untranscribed: list[tuple[UntranscribedSpeech, ...]] = []
        for stretch in segment.content:
            timed = self.align(stretch, output, segment)
            if timed is None:
                guessed += range(len(found), len(found) + len(stretch.lines))
                found += [tuple(spread_words(line.words, line.start, line.end)) for line in stretch.lines]
                untranscribed += [() for _ in stretch.lines]
                continue
            rest = iter(timed)
            for line in stretch.lines:
                words = tuple(next(rest) for _ in line.words)
                found.append(self._forget_silence(job, words))
                untranscribed.append(tuple(self.find_untranscribed(stretch, line, words, output, segment)))
        return AlignedLines(tuple(found), tuple(guessed), tuple(untranscribed))

    def _forget_silence(self, job: Job, words: tuple[Word, ...]) -> tuple[Word, ...]:
        """The words of a line; without times if they are doubtful, and nothing was recorded where they are."""
        if (rate(words) or 0.0) >= self.low or not words:
            return words
        start, end = words[0].start or 0.0, words[-1].end or 0.0
        samples = read_audio(find_media(job), start, max(start, end), job.selection)
        if samples.size and abs(samples).max() >= NOTHING:
            return words
        return tuple(Word(word.text) for word in words)

    def join(
        self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[AlignedLines]
    ) -> Document:
        seconds = measure(job)
        _, warnings = self._plan(document, seconds)
        utterances = list(document.utterances)
        untranscribed: dict[int, tuple[UntranscribedSpeech, ...]] = {}
        for segment, piece in zip(segments, pieces, strict=True):
            lines = [line for stretch in segment.content for line in stretch.lines]
            for place, (line, words) in enumerate(zip(lines, piece.words, strict=True)):
                utterance = utterances[line.index]
                if words and words[0].timing is Timing.NONE:
                    utterances[line.index] = _leave_out(utterance, words)
                    what = f"utterance {line.index + 1} ({utterance.text[:40].strip()})"
                    warnings.append(f"{what}: not found in the recording, which is silent there")
                    continue
                utterances[line.index] = replace(utterance, words=words, start=words[0].start, end=words[-1].end)
                untranscribed[line.index] = piece.untranscribed[place]
                if place in piece.guessed:
                    what = f"utterance {line.index + 1} ({utterance.text[:40].strip()}): {len(words)} words"
                    warnings.append(
                        f"{what} do not fit into {line.end - line.start:.1f} s; their times are spread evenly"
                    )
        lasting = give_lengths(keep_apart(document.utterances, utterances), seconds)
        apart = keep_order(document.utterances, lasting)
        warnings += doubt(apart, self.low, untranscribed)
        return replace(document, utterances=tuple(apart), seconds=seconds, warnings=(*document.warnings, *warnings))


def amplify(waveform: torch.Tensor) -> torch.Tensor:
    """(samples,) of a usual loudness. What is far below it has lost nothing in floats; a model's spectrogram has a
    floor."""
    peak = float(waveform.abs().max()) if len(waveform) else 0.0
    return waveform * (_PEAK / peak) if NOTHING <= peak < _QUIET else waveform


def make_tone(seconds: float) -> torch.Tensor:
    """(samples,) of a rising tone, for examples: every frame is different from the one before."""
    times = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.1 * torch.sin(2 * torch.pi * (100 + 500 * times) * times)


def _leave_out(utterance: Utterance, words: tuple[Word, ...]) -> Utterance:
    """An utterance that is not in the recording. Times that the transcript gives it, it keeps."""
    timed = utterance.start is not None and utterance.end is not None
    return replace(utterance, words=words, missing=not timed)


def keep_apart(before: Sequence[Utterance], after: Sequence[Utterance]) -> list[Utterance]:
    """Ends an utterance where the next with times begins, unless the transcript says that they overlap.

    before, after: the same utterances as the transcript has them and with their words' times.
    """
    result = list(after)
    placed = [index for index, u in enumerate(after) if u.start is not None and u.end is not None]
    for i, j in pairwise(placed):
        utterance, begin = after[i], after[j].start
        assert utterance.start is not None and utterance.end is not None and begin is not None
        if all(word.timing is Timing.NONE for word in utterance.words):
            continue
        ends, begins = before[i].end, before[j].start
        overlap = ends is not None and begins is not None and begins < ends
        if not overlap and utterance.start < begin < utterance.end:
            words = tuple(word.end_by(begin) for word in utterance.words)
            result[i] = replace(utterance, words=words, end=begin)
    return result


def keep_order(before: Sequence[Utterance], after: Sequence[Utterance]) -> list[Utterance]:
    """Begins an utterance where the next begins, if that is earlier, unless it is so in the transcript: where two speak
    at once, the first word of the first may turn out to be later, and CHAT wants utterances in order (TalkBank's E362
    and E701).

    before, after: as `keep_apart` has them.
    """
    result = list(after)
    following: int | None = None
    for index in reversed(range(len(after))):
        start, end = result[index].start, result[index].end
        if start is None or end is None:
            continue
        if following is not None:
            begin, ours, theirs = result[following].start, before[index].start, before[following].start
            disordered = ours is not None and theirs is not None and theirs < ours
            if begin is not None and begin < start and not disordered:
                result[index] = replace(result[index], start=begin)
        following = index
    return result


def _make_line(utterance: Utterance, index: int, window: AlignmentWindow, language: str | None) -> TranscriptLine:
    words = tuple(word.text for word in utterance.words)
    start, end = utterance.start, utterance.end
    if start is None or end is None or not window.start <= start < end:
        return TranscriptLine(index, window.start, window.end, words, language)
    return TranscriptLine(index, start, min(end, window.end), words, language)


def find_media(job: Job) -> Path:
    """The job's recording. Raises InputError if it has none."""
    if job.media is None:
        raise InputError(
            f"{job.id}: no recording found for this transcript; put the recording beside it, under the same name"
        )
    return job.media


def measure(job: Job) -> float:
    """Length of the job's recording, seconds."""
    return job.seconds or probe(find_media(job), job.selection).seconds
