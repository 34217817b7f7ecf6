"""Who speaks when, with the models and the clustering of pyannote.audio.

The way of Bredin et al., pyannote.audio 2.1 speaker diarization pipeline (Interspeech 2023): a segmentation model hears
short chunks that overlap and says who of a few speakers, known only within the chunk, is active in each frame; another
makes a vector of each one's voice; the vectors of the whole recording are clustered; then the chunks are laid over one
another again. `SpeakerDiarization.__call__` does it with the whole recording in memory; here the chunks come in blocks.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefork.engines.alignment.forced_aligner import find_media, measure
from prefork.engines.audio.reader import SAMPLE_RATE, read_audio
from prefork.engines.base import Engine, Job, Segment, Tensors
from prefork.engines.errors import InputError, LoadError
from prefork.engines.speakers.chunks import (
    BlockActivity,
    Floats,
    Geometry,
    Integers,
    choose_speakers,
    count_speakers,
    lay_out,
    measure_model,
    overlay,
    take_chunks,
)
from prefork.engines.speakers.pyannote_pipeline import (
    DEFAULT,
    Recipe,
    import_pyannote,
    list_files,
    load_clustering,
    load_embedding,
    load_segmentation,
    open_recipe,
)
from prefork.engines.text.document import Document, Turn

BLOCK_SECONDS = 120.0  # from the first chunk of a block to the first of the next
_SECONDS_TOGETHER = 20.0  # of chunks that go through a model at once
_SECONDS_TOGETHER_ON_DEVICE = 160.0  # the same where there is more to be kept busy than a processor's cores
_MOST_VECTORS = 6_000  # that are clustered: the distances between them take 144 MB
_EXAMPLE_CHUNKS = 2
_LINE = 64  # bytes that each tensor begins at a multiple of, where weights are shared


class SpeakerModels(torch.nn.Module):
    """least: frames without overlap that a voice must have, else those with overlap are heard too."""

    def __init__(self, segmentation: torch.nn.Module, embedding: torch.nn.Module, powerset: Any, least: int) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.embedding = embedding
        self.powerset = powerset
        self.least = least
        self.dimension: int = embedding.dimension  # type: ignore[assignment]


class PyannoteDiarizer(Engine):
    """A pipeline of pyannote.audio 4, or one put together from a segmentation and an embedding model.

    model: a folder with a pipeline's config.yaml, or a hub id; by default pyannote's community-1, for which the hub
    wants the user's token. speakers: how many there are, if that is known; else min_speakers and max_speakers bound it.
    """

    name = "diarize"
    memory_stage = "diarization"
    suspicion = "pyannote.audio and what it imports start threads of their own"
    piece = BlockActivity

    def __init__(
        self,
        model: str | None = None,
        speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> None:
        for option, value in (("speakers", speakers), ("min_speakers", min_speakers), ("max_speakers", max_speakers)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise LoadError(f"{option} must be a whole number above 0, not {value!r}")
        if speakers is not None and (min_speakers is not None or max_speakers is not None):
            raise LoadError(
                "speakers fixes the number of speakers; leave out either it, or min_speakers and max_speakers"
            )
        if min_speakers is not None and max_speakers is not None and min_speakers > max_speakers:
            raise LoadError(f"min_speakers ({min_speakers}) must not be above max_speakers ({max_speakers})")
        self._model = DEFAULT if model is None else model
        self._least = speakers or min_speakers or 1
        self._most = speakers or max_speakers

    def setup(self) -> None:
        import_pyannote("pyannote.audio.pipelines.clustering")
        self._recipe: Recipe = open_recipe(self._model)
        if self._recipe.clustering == "KMeansClustering" and self._least != self._most:
            raise LoadError(f"{self._model}: its clustering needs the number of speakers (speakers)")
        load_clustering(self._recipe)
        segmentation = load_segmentation(self._recipe)
        self._geometry: Geometry = measure_model(segmentation, self._recipe.step)
        self._values = self._recipe.choose_segmentation_values(self._geometry.together > 0)
        parts = (segmentation, load_embedding(self._recipe), _make_powerset(self._geometry))
        self._weights = sum(_count_bytes(part) for part in parts if part is not None)

    def load(self) -> SpeakerModels:
        segmentation, embedding = load_segmentation(self._recipe), load_embedding(self._recipe)
        geometry = self._geometry
        samples = _find_least_samples(embedding)
        least = math.ceil(geometry.frames * samples / geometry.chunk) if self._recipe.exclude_overlap else -1
        for model in (segmentation, embedding):
            model.requires_grad_(False)
        return SpeakerModels(segmentation, embedding, _make_powerset(geometry), least).eval()

    def count_weights(self) -> int:
        return self._weights

    def estimate_memory(self, segment: Segment) -> int:
        """What a few chunks take inside the models, at 8 MB for each second that they hear, and a block's results."""
        geometry = self._geometry
        seconds = min(segment.seconds, BLOCK_SECONDS + geometry.chunk / SAMPLE_RATE)
        chunks = geometry.count_chunks(round(seconds * SAMPLE_RATE))
        return round(
            8e6 * max(_SECONDS_TOGETHER, self._chunk_seconds)
            + 2 * 4 * SAMPLE_RATE * seconds
            + 16 * chunks * geometry.frames * geometry.speakers
        )

    def example(self) -> Tensors:
        """Two tones that take turns, over noise."""
        return self._make_example(_EXAMPLE_CHUNKS)

    def longest_example(self) -> Tensors:
        """As many chunks as go through a model at once."""
        return self._make_example(math.ceil(_SECONDS_TOGETHER / self._chunk_seconds) + 1)

    def _make_example(self, chunks: int) -> Tensors:
        count = self._geometry.chunk + (chunks - 1) * self._geometry.step
        time = torch.arange(count) / SAMPLE_RATE
        pitch = torch.where(time % 2 < 1, 120.0, 210.0)
        tone = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 12))
        return {"waveform": 0.05 * tone * (1 + torch.sin(2 * torch.pi * 4 * time))}

    def verify(self, output: Tensors) -> None:
        expected = (_EXAMPLE_CHUNKS, self._geometry.frames, self._geometry.speakers)
        if tuple(output["active"].shape) != expected:
            raise LoadError(
                f"{self._model}: it returns {tuple(output['active'].shape)} for its example, not {expected}"
            )

    def split(self, job: Job, document: Document) -> list[Segment]:  # noqa: ARG002
        """Blocks of chunks. content: index of the first chunk, and how many."""
        geometry, seconds = self._geometry, measure(job)
        chunks = geometry.count_chunks(round(seconds * SAMPLE_RATE))
        block = max(1, round(BLOCK_SECONDS * SAMPLE_RATE / geometry.step))
        return [
            Segment(
                index,
                first * geometry.step / SAMPLE_RATE,
                min(seconds, (min(first + block, chunks) - 1) * geometry.step / SAMPLE_RATE + self._chunk_seconds),
                (first, min(block, chunks - first)),
            )
            for index, first in enumerate(range(0, chunks, block))
        ]

    @property
    def _chunk_seconds(self) -> float:
        return self._geometry.chunk / SAMPLE_RATE

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """{"waveform": (samples,) mono at 16 kHz, whole chunks}."""
        _, chunks = segment.content
        wanted = self._geometry.chunk + (chunks - 1) * self._geometry.step
        waveform = torch.from_numpy(read_audio(find_media(job), segment.start, segment.end, job.selection))[:wanted]
        if len(waveform) < (segment.seconds - 1.0) * SAMPLE_RATE:
            end = segment.start + len(waveform) / SAMPLE_RATE
            raise InputError(
                f"{job.media}: the header says {measure(job):.1f} s, but the audio ends at {end:.1f} s; "
                "the file is truncated, copy it again"
            )
        return {"waveform": torch.nn.functional.pad(waveform, (0, wanted - len(waveform)))}

    def infer(self, model: SpeakerModels, batch: Sequence[Tensors]) -> list[Tensors]:
        """{"active": (chunks, frames, speakers) 0 or 1, "scores": the same before that was decided, of models that have
        them, "voices": (n, dimension)} of each waveform."""
        sliding = [tensors["waveform"].unfold(0, self._geometry.chunk, self._geometry.step) for tensors in batch]
        heard = self._hear(model, sliding)
        chunks = [len(rows) for rows in sliding]
        voices = [int(active.any(dim=1).sum()) for active in torch.split(heard["active"], chunks)]
        parts = {name: torch.split(values, voices if name == "voices" else chunks) for name, values in heard.items()}
        return [{name: found[index] for name, found in parts.items()} for index in range(len(batch))]

    def _hear(self, model: SpeakerModels, sliding: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of all waveforms one after the other. sliding: (chunks, samples) of each."""
        parts: dict[str, list[torch.Tensor]] = {"active": [], "voices": []}
        seconds = _SECONDS_TOGETHER if sliding[0].device.type == "cpu" else _SECONDS_TOGETHER_ON_DEVICE
        for chunks in take_chunks(sliding, max(1, int(seconds / self._chunk_seconds))):
            scores = model.segmentation(chunks[:, None])
            if model.powerset is None:
                parts.setdefault("scores", []).append(scores.half())
                active = (scores > self._values["threshold"]).to(torch.float32)
            else:
                active = model.powerset.to_multilabel(scores)
            parts["active"].append(active.to(torch.uint8))
            parts["voices"].append(self._hear_voices(model, chunks, active))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def _hear_voices(self, model: SpeakerModels, chunks: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """(n, dimension) for each speaker with an active frame. active: (chunks, frames, speakers)."""
        masks = active
        if model.least >= 0:
            alone = active * (active.sum(dim=2, keepdim=True) < 2)
            masks = torch.where(alone.sum(dim=1, keepdim=True) > model.least, alone, active)
        speaking = active.any(dim=1)
        some = speaking.any(dim=1)  # chunks of silence have no voice to hear
        if not some.any():
            return chunks.new_zeros((0, model.dimension))
        voices = model.embedding(chunks[some][:, None], weights=masks[some].transpose(1, 2))
        return voices[speaking[some]]  # type: ignore[no-any-return]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> BlockActivity:  # noqa: ARG002
        active = output["active"].numpy()
        scores = output["scores"].transpose(1, 2).numpy()[active.any(axis=1)] if "scores" in output else None
        bits = np.packbits(active.reshape(len(active), -1), axis=1)
        return BlockActivity(bits, output["voices"].half().numpy(), scores)

    def join(
        self,
        job: Job,
        document: Document,
        segments: Sequence[Segment],  # noqa: ARG002
        pieces: Sequence[BlockActivity],
    ) -> Document:
        seconds = measure(job)
        turns, notes = self._find_turns(pieces, seconds)
        return replace(document, turns=turns, seconds=seconds, warnings=(*document.warnings, *notes))

    def _find_turns(self, pieces: Sequence[BlockActivity], seconds: float) -> tuple[tuple[Turn, ...], list[str]]:
        geometry = self._geometry
        size = geometry.frames * geometry.speakers
        active = np.concatenate([np.unpackbits(piece.active, axis=1, count=size) for piece in pieces])
        active = active.reshape(-1, geometry.frames, geometry.speakers)
        count = count_speakers(active, geometry)
        if not count.any():
            return (), ["no speech found in this recording"]
        voices = np.concatenate([piece.voices for piece in pieces]).astype(np.float32)
        voices[~np.isfinite(voices).all(axis=1) | ~voices.any(axis=1)] = np.nan  # a clustering leaves these out
        clusters, notes = self._cluster(active, voices)
        count = np.minimum(count, self._most or count.max())
        scores = lay_out(pieces, active)
        activation = overlay(scores, clusters, int(max(count.max(), clusters.max() + 1)), geometry)
        turns = self._to_turns(choose_speakers(activation, count), seconds)
        found = len({turn.speaker for turn in turns})
        if found < self._least or found > (self._most or found):
            wanted = f"{self._least}" if self._least == self._most else f"{self._least} to {self._most or 'any number'}"
            notes.append(f"{found} speakers found, not the {wanted} requested")
        return turns, notes

    def _cluster(self, active: NDArray[np.uint8], voices: Floats) -> tuple[Integers, list[str]]:
        """(chunks, speakers) the speaker of the recording that each of a chunk's is, -2 for one who is silent."""
        features = import_pyannote("pyannote.core")
        clustering = load_clustering(self._recipe)
        speaking: NDArray[np.bool_] = np.asarray(active.any(axis=1))
        thin = max(1, math.ceil(len(voices) / _MOST_VECTORS))
        if thin > 1 and hasattr(clustering, "min_cluster_size"):
            clustering.min_cluster_size = max(1, round(clustering.min_cluster_size / thin))
        kept = np.zeros(speaking.shape, bool)
        kept[::thin] = True
        dense = np.ones((*speaking[::thin].shape, voices.shape[1]), np.float32)  # who is silent may have any voice
        dense[speaking[::thin]] = voices[kept[speaking]]
        window = features.SlidingWindow(duration=self._chunk_seconds, step=thin * self._geometry.step / SAMPLE_RATE)
        segmentations = features.SlidingWindowFeature(active[::thin], window)
        usable, _, _ = clustering.filter_embeddings(dense, segmentations=segmentations)
        most = max(1, len(usable))
        printed = io.StringIO()  # a clustering prints if it finds fewer speakers than it was to find
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            clusters, _, centroids = clustering(
                embeddings=dense,
                segmentations=segmentations,
                num_clusters=min(self._least, most) if self._least == self._most else None,
                min_clusters=min(self._least, most),
                max_clusters=min(self._most or most, most) if self._most else np.inf,
            )
        clusters = np.asarray(clusters, np.int64)
        if thin > 1:
            clusters = _assign(speaking, voices, centroids)
        clusters[~speaking] = -2
        few = self._least > most
        return clusters, [f"only {most} stretches of speech are long enough to tell voices apart"] if few else []

    def _to_turns(self, binary: NDArray[np.uint8], seconds: float) -> tuple[Turn, ...]:
        """binary: (frames, speakers). Speakers are named by first appearance."""
        features = import_pyannote("pyannote.core")
        mixin = import_pyannote("pyannote.audio.pipelines.utils.diarization").SpeakerDiarizationMixin
        window = features.SlidingWindow(duration=self._geometry.frame_seconds, step=self._geometry.frame_step)
        gap = self._values["min_duration_off"]
        annotation = mixin.to_annotation(
            features.SlidingWindowFeature(binary.astype(np.float32), window), min_duration_on=0.0, min_duration_off=gap
        )
        found = [
            (float(stretch.start), min(float(stretch.end), seconds), int(label))
            for stretch, _, label in annotation.itertracks(yield_label=True)
            if stretch.start < seconds  # the last chunk is filled up with silence
        ]
        names: dict[int, str] = {}
        for _, _, label in sorted(found):
            names.setdefault(label, f"S{len(names):02d}")
        return tuple(Turn(names[label], start, end) for start, end, label in sorted(found))

    def identify_model(self) -> Hashable:
        return ("pyannote", str(self._recipe.segmentation), str(self._recipe.embedding), self._recipe.exclude_overlap)

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "models": list_files(self._recipe),
            "segmentation": self._values,
            "clustering": [self._recipe.clustering, self._recipe.choose_clustering_values()],
            "step": self._recipe.step,
            "exclude_overlap": self._recipe.exclude_overlap,
            "speakers": [self._least, self._most],
        }


def _assign(speaking: NDArray[np.bool_], voices: Floats, centroids: Floats) -> Integers:
    """(chunks, speakers) the centroid nearest to each voice, by cosine. Two of a chunk may get the same."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    clusters = np.full(speaking.shape, -2)
    clusters[speaking] = np.argmax(voices @ unit.T, axis=1)
    return clusters


def _make_powerset(geometry: Geometry) -> Any:
    """What decodes the segmentation model's output; None if that needs no decoding."""
    module = import_pyannote("pyannote.audio.utils.powerset")
    return module.Powerset(geometry.speakers, geometry.together) if geometry.together else None


def _find_least_samples(model: torch.nn.Module) -> int:
    """Samples that an embedding model must have, half a second at most; found by trying, as pyannote.audio does."""
    lower, upper = 2, SAMPLE_RATE // 2
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the variance of one frame is none
        while lower + 1 < upper:
            middle = (lower + upper) // 2
            try:
                model(torch.ones(1, 1, middle))
                upper = middle
            except (RuntimeError, ValueError, AssertionError):
                lower = middle
    return upper


def _count_bytes(model: torch.nn.Module) -> int:
    return sum(-(-tensor.nbytes // _LINE) * _LINE for tensor in [*model.parameters(), *model.buffers()])
