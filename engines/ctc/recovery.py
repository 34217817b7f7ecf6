"""Times for utterances that have none, from the emissions of the CTC aligner's model over the whole recording."""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from prefork.engines.alignment.forced_aligner import measure
from prefork.engines.alignment.recovery import FoundPlace, SearchRegion, give_times, plan_regions, plan_roomy_regions
from prefork.engines.alignment.sparse_alignment import FIRST, LOUD, QUIET
from prefork.engines.alignment.viterbi import WILDCARD
from prefork.engines.base import Engine, Job, Segment, Tensors
from prefork.engines.ctc.aligner import CTCAligner
from prefork.engines.ctc.places import LOWEST, Scores, find_places, fit_place, list_columns, score, to_log_probs
from prefork.engines.text.document import Document

if TYPE_CHECKING:
    from prefork.engines.ctc.checkpoint import Model

_BREATH = 0.5  # seconds without speech that end a stretch of it
_SHORT = 30.0  # seconds in which several utterances that were not found are looked for once more
_SHORTEST = 0.1  # seconds of speech that a word takes


@dataclass(frozen=True, slots=True)
class EmissionSlice:
    """The part of a segment whose emissions are kept. first: its first frame in the recording. skip: frames of the
    segment before it. count: its frames; None for all that follow. columns: the characters that matter."""

    first: int
    skip: int
    count: int | None
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Emission:
    """A slice's scores as `find_units` wants them, (columns, frames) in eighths below 0, compressed."""

    frames: int
    scores: bytes


class CTCRecovery(Engine):
    """Looks for the utterances without times in the whole recording, or between those that have times; and within its
    times for an utterance whose words take little of them.

    What is not there gets no times: it is `missing`, and the document's warnings say so. Options as of CTCAligner.
    """

    name = "ctc-recovery"
    piece = Emission

    def __init__(self, model: str | None = None, dtype: str | None = None) -> None:
        self._aligner = CTCAligner(model=model, dtype=dtype)

    def suggest_dtype(self, dtype: str) -> None:
        self._aligner.suggest_dtype(dtype)

    def setup(self) -> None:
        self._aligner.setup()

    def load(self) -> Model:
        return self._aligner.load()

    def count_weights(self) -> int:
        return self._aligner.count_weights()

    def estimate_memory(self, segment: Segment) -> int:
        return self._aligner.estimate_memory(replace(segment, content=None))

    def example(self) -> Tensors:
        return self._aligner.example()

    def longest_example(self) -> Tensors:
        return self._aligner.longest_example()

    def verify(self, output: Tensors) -> None:
        self._aligner.verify(output)

    def identify_model(self) -> Hashable:
        return self._aligner.identify_model()

    def fingerprint(self) -> Mapping[str, Any]:
        return {**self._aligner.fingerprint(), "engine": self.name}

    def split(self, job: Job, document: Document) -> list[Segment]:
        """Windows of one grid over the recording, those that untimed utterances may be in. What is kept of each meets
        its neighbours without a gap."""
        seconds = measure(job)
        regions = self._plan(document, seconds)
        columns = self._list_columns(document, regions)
        if not columns:
            return []
        frame = self._aligner.clock.frame
        segments: list[Segment] = []
        for w in self._aligner.list_windows(seconds):
            if any(r.start < w.kept_last * frame and r.end > w.kept_first * frame for r in regions):
                ends = w.kept_last == w.last
                part = EmissionSlice(
                    w.kept_first, w.kept_first - w.first, None if ends else w.kept_last - w.kept_first, columns
                )
                segments.append(Segment(len(segments), w.first * frame, min(w.last * frame, seconds), part))
        return segments

    def _plan(self, document: Document, seconds: float) -> list[SearchRegion]:
        words = [[word.text for word in utterance.words] for utterance in document.utterances]
        least = [self._aligner.count_seconds_needed(w) if w else 0 for w in words]
        untimed = plan_regions(document.utterances, least, seconds)
        return [*untimed, *plan_roomy_regions(document.utterances, seconds)]

    def _list_columns(self, document: Document, regions: Sequence[SearchRegion]) -> tuple[int, ...]:
        texts = {word.text for r in regions for index in r.utterances for word in document.utterances[index].words}
        return list_columns(texts, self._aligner.vocabulary)

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        return self._aligner.prepare(job, segment)

    def infer(self, model: Model, batch: Sequence[Tensors]) -> list[Tensors]:
        return self._aligner.infer(model, batch)

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Emission:  # noqa: ARG002
        """About 1 kB for 10 s of the embedded model's."""
        part: EmissionSlice = segment.content
        emission = output["log_probs"].cpu()[part.skip :]
        if part.count is not None:
            emission = emission[: part.count]
        vocabulary = self._aligner.vocabulary
        eighths = score(emission, vocabulary, part.columns)
        return Emission(eighths.shape[1], zlib.compress(eighths.tobytes()))

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Emission]) -> Document:
        seconds = measure(job)
        regions = self._plan(document, seconds)
        columns: tuple[int, ...] = segments[0].content.columns if segments else ()
        found: dict[int, FoundPlace | None] = {}
        if regions:
            scores = self._put_together(segments, pieces, columns, seconds)
            for region in regions:
                found |= self._find(document, region, scores, columns)
        return give_times(document, found, seconds)

    def _put_together(
        self, segments: Sequence[Segment], pieces: Sequence[Emission], columns: Sequence[int], seconds: float
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(frames, columns) of the whole recording, in eighths below 0; silence where nothing was looked for."""
        total = math.ceil(seconds / self._aligner.clock.frame)
        scores = np.full((total, FIRST + len(columns)), LOWEST, np.uint8)
        scores[:, QUIET] = 0
        for segment, piece in zip(segments, pieces, strict=True):
            part: EmissionSlice = segment.content
            rows = np.frombuffer(zlib.decompress(piece.scores), np.uint8).reshape(-1, piece.frames).T
            count = min(piece.frames, total - part.first)
            scores[part.first : part.first + count] = rows[:count]
        return scores

    def _find(
        self,
        document: Document,
        region: SearchRegion,
        scores: np.ndarray[Any, np.dtype[np.uint8]],
        columns: Sequence[int],
    ) -> dict[int, FoundPlace | None]:
        clock = self._aligner.clock
        origin, limit = math.floor(region.start / clock.frame), math.ceil(region.end / clock.frame)
        emitted = to_log_probs(scores[origin:limit])
        texts = {index: [word.text for word in document.utterances[index].words] for index in region.utterances}
        places = find_places(emitted, texts, self._aligner.vocabulary, columns, clock.frame)
        places |= self._fit_rest(emitted, texts, places, columns)
        loud = np.flatnonzero(emitted[:, LOUD] >= emitted[:, QUIET])
        edges = self._widen(document, region, places, loud, len(emitted))
        found: dict[int, FoundPlace | None] = dict.fromkeys(region.wanted)
        for index, (first, last, confidence) in edges.items():
            if index in found:
                start = (origin + first) * clock.frame + clock.start_offset
                end = (origin + last + 1) * clock.frame + clock.end_offset
                found[index] = FoundPlace(max(0.0, start), min(end, region.end), confidence)
        return _keep_apart(found)

    def _fit_rest(
        self,
        scores: Scores,
        texts: Mapping[int, Sequence[str]],
        places: Mapping[int, tuple[int, int, float]],
        columns: Sequence[int],
    ) -> dict[int, tuple[int, int, float]]:
        """Places of those that were not found, where little is left of the recording, or one is missing in one gap:
        the search doubts what it need not doubt there."""
        short = round(_SHORT / self._aligner.clock.frame)
        fitted: dict[int, tuple[int, int, float]] = {}
        reached = 0
        for is_found, run in groupby(texts, key=lambda index: index in places):
            indices = list(run)
            if is_found:
                reached = places[indices[-1]][1] + 1
                continue
            following = [place[0] for index, place in places.items() if index > indices[-1]]
            limit = min(following, default=len(scores))
            if len(indices) > 1 and limit - reached > short:
                continue
            for index in indices:
                place = fit_place(scores[reached:limit], texts[index], self._aligner.vocabulary, columns)
                if place is not None:
                    fitted[index] = (reached + place[0], reached + place[1], place[2])
                    reached += place[1] + 1
        return fitted

    def _widen(
        self,
        document: Document,
        region: SearchRegion,
        places: Mapping[int, tuple[int, int, float]],
        loud: np.ndarray[Any, np.dtype[np.int64]],
        frames: int,
    ) -> dict[int, tuple[int, int, float]]:
        """The places, with those of words that cannot be spelled: the stretch of speech at that end of the utterance,
        up to its neighbour; for a whole utterance of them, the one stretch of speech between its neighbours that is
        apart from both, if these were found."""
        breath, shortest = (round(s / self._aligner.clock.frame) for s in (_BREATH, _SHORTEST))
        widened = dict(places)
        for position, index in enumerate(region.utterances):
            unknown = [
                all(column == WILDCARD for _, column in self._aligner.vocabulary.spell(word.text))
                for word in document.utterances[index].words
            ]
            before = widened.get(region.utterances[position - 1]) if position else None
            after = places.get(region.utterances[position + 1]) if position + 1 < len(region.utterances) else None
            if index in places:
                first, last, confidence = places[index]
                low, high = before[1] + 1 if before else 0, after[0] if after else frames
                if unknown[0]:
                    first = _follow(loud[(loud >= low) & (loud < first)][::-1], first, breath)
                if unknown[-1]:
                    last = _follow(loud[(loud > last) & (loud < high)], last, breath)
                widened[index] = (first, last, confidence)
            elif all(unknown) and before and after:
                between = loud[(loud > before[1]) & (loud < after[0])]
                stretches = np.split(between, np.flatnonzero(np.diff(between) > 2 * breath) + 1)
                # One that touches a neighbour is the rest of its last word, or the beginning of its first.
                clear = [
                    stretch
                    for stretch in stretches
                    if len(stretch) >= shortest
                    and stretch[0] - before[1] > shortest
                    and after[0] - stretch[-1] > shortest
                ]
                if len(clear) == 1:
                    widened[index] = (int(clear[0][0]), int(clear[0][-1]), 1.0)
        return widened


def _follow(loud: np.ndarray[Any, np.dtype[np.int64]], edge: int, breath: int) -> int:
    """The end of the stretch of speech that begins at `edge`. loud: frames with speech, nearest first."""
    for frame in loud.tolist():
        if abs(frame - edge) > breath:
            break
        edge = frame
    return edge


def _keep_apart(found: Mapping[int, FoundPlace | None]) -> dict[int, FoundPlace | None]:
    """An utterance ends where the next one begins, if not before."""
    apart = dict(found)
    places = [(index, place) for index, place in found.items() if place]
    for (index, place), (_, following) in pairwise(places):
        apart[index] = replace(place, end=max(place.start, min(place.end, following.start)))
    return apart
