"""The chunks in which a recording is heard: taken together for the models, and laid over one another again after them.

The way back is that of pyannote.audio's `SpeakerDiarization`, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefork.engines.audio.reader import SAMPLE_RATE

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The chunks that a segmentation model hears and the frames that it makes of them.

    chunk, step: samples of a chunk, and from one to the next. frame_seconds: what a frame hears; frame_step: seconds
    from one to the next. together: speakers at once in a powerset, 0 if the model has an output for each speaker.
    """

    chunk: int
    step: int
    frames: int
    speakers: int
    together: int
    frame_seconds: float
    frame_step: float

    def count_chunks(self, samples: int) -> int:
        """The last one is filled up with silence."""
        return 1 + max(0, -(-(samples - self.chunk) // self.step))


@dataclass(frozen=True, slots=True)
class BlockActivity:
    """What was found in a block.

    active: (chunks, bytes) packed bits of (frames, speakers). voices: (n, dimension) of each speaker who is active in a
    chunk, in the order of these. scores: theirs, (n, frames); None if they say no more than active or not.
    """

    active: NDArray[np.uint8]
    voices: NDArray[np.float16]
    scores: NDArray[np.float16] | None


def measure_model(model: Any, step: float) -> Geometry:
    specifications, field = model.specifications, model.receptive_field
    chunk = model.audio.get_num_samples(specifications.duration)
    return Geometry(
        chunk=chunk,
        step=round(step * specifications.duration * SAMPLE_RATE),
        frames=model.num_frames(chunk),
        speakers=len(specifications.classes),
        together=specifications.powerset_max_classes if specifications.powerset else 0,
        frame_seconds=field.duration,
        frame_step=field.step,
    )


def take_chunks(sliding: Sequence[torch.Tensor], most: int) -> Iterator[torch.Tensor]:
    """All chunks in their order, `most` at a time. sliding: (chunks, samples) of each waveform."""
    taken: list[torch.Tensor] = []
    for chunks in sliding:
        rest = chunks
        while len(rest):
            room = most - sum(len(part) for part in taken)
            taken.append(rest[:room])
            rest = rest[room:]
            if len(taken[-1]) == room:
                yield taken[0] if len(taken) == 1 else torch.cat(taken)
                taken = []
    if taken:
        yield taken[0] if len(taken) == 1 else torch.cat(taken)


def count_speakers(active: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """(frames of the recording,) how many speak at once: the rounded mean of what the chunks say that hear a frame.

    active: (chunks, frames, speakers). As `SpeakerDiarizationMixin.speaker_count`.
    """
    starts = _locate(len(active), geometry)
    total, times = (np.zeros(starts[-1] + geometry.frames, np.float32) for _ in range(2))
    for start, chunk in zip(starts, active, strict=True):
        total[start : start + geometry.frames] += chunk.sum(axis=1, dtype=np.float32)
        times[start : start + geometry.frames] += 1
    return np.rint(total / np.maximum(times, 1e-12)).astype(np.uint8)


def overlay(scores: Iterable[Floats], clusters: Integers, speakers: int, geometry: Geometry) -> NDArray[np.float32]:
    """(frames of the recording, speakers) the sum of the chunks' scores for each speaker of the recording.

    scores: (frames, speakers of the chunk) of each chunk. clusters: (chunks, speakers of the chunk), -2 for a silent
    one. As `SpeakerDiarization.reconstruct`, a chunk at a time.
    """
    starts = _locate(len(clusters), geometry)
    activation = np.zeros((starts[-1] + geometry.frames, speakers), np.float32)
    for start, cluster, score in zip(starts, clusters, scores, strict=True):
        for k in np.unique(cluster[cluster >= 0]):
            activation[start : start + geometry.frames, k] += score[:, cluster == k].max(axis=1)
    return activation


def choose_speakers(activation: NDArray[np.float32], count: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(frames, speakers) 1 for as many speakers as are counted in a frame, those with the highest activation."""
    binary = np.zeros(activation.shape, np.uint8)
    order = np.argsort(-activation, axis=-1)
    for i in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > i)
        binary[rows, order[rows, i]] = 1
    return binary


def _locate(chunks: int, geometry: Geometry) -> list[int]:
    """The frame of the recording that each chunk's first is."""
    step = geometry.step / SAMPLE_RATE
    return [int(np.rint(index * step / geometry.frame_step)) for index in range(chunks)]


def lay_out(pieces: Sequence[BlockActivity], active: NDArray[np.uint8]) -> Iterator[Floats]:
    """(frames, speakers) of each chunk: the scores of those who are active in it, or 0 and 1 if there are no scores."""
    stored = (score for piece in pieces if piece.scores is not None for score in piece.scores)
    soft = pieces[0].scores is not None
    for chunk in active:
        scores = chunk.astype(np.float32)
        for speaker in np.flatnonzero(chunk.any(axis=0)) if soft else ():
            scores[:, speaker] = next(stored)
        yield scores
