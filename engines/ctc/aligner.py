"""The CTC aligner: when each word of a transcript is said, from the emissions of any CTC model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prefork.engines.alignment.confidence import UntranscribedSpeech
from prefork.engines.alignment.forced_aligner import (
    NOTHING,
    ForcedAligner,
    HeardStretches,
    Stretch,
    TranscriptLine,
    amplify,
    make_tone,
)
from prefork.engines.alignment.recovery import is_wide
from prefork.engines.alignment.viterbi import Clock, Vocabulary, count_frames_needed
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.base import Job, Segment, Tensors
from prefork.engines.checkpoints.footprint import estimate_encoder
from prefork.engines.checkpoints.model_folder import DtypeOption
from prefork.engines.ctc.checkpoint import DTYPES, Checkpoint, count_weights, identify, load_model, open_checkpoint
from prefork.engines.ctc.padding import choose_padding, compute_logits
from prefork.engines.ctc.phone_head import SILENCE, STEPS
from prefork.engines.ctc.phone_times import PhoneClock, measure_words
from prefork.engines.ctc.phone_times import count_search_bytes as count_phone_search_bytes
from prefork.engines.ctc.recent_emissions import Emission, find_recent
from prefork.engines.ctc.stretch_search import REACH, StretchSearch
from prefork.engines.ctc.untranscribed import Emissions, find_untranscribed
from prefork.engines.errors import InputError, LoadError
from prefork.engines.text.document import Word

if TYPE_CHECKING:
    from prefork.engines.ctc.checkpoint import Model

EMBEDDED = Path(__file__).parents[1] / "models" / "ctc-aligner-en"
# What the model is given at a time. Of 422 synthesised words in one recording 98.1 % start within 100 ms; with windows
# of 20 s and contexts of 2 s, which take a fifth longer, 97.6 %.
WINDOW_SECONDS = 12.0
CONTEXT_SECONDS = 1.0  # at each end of a window that goes on: heard, but its emissions are the neighbour's
MOST_BYTES = 512 << 20  # of a segment's emissions and Viterbi table
_EXAMPLE_SECONDS = 2
_EDGE_SECONDS = 0.1  # of silence beside sound: a model's frames see some of their neighbours
_NEVER = -30.0  # log-probability of what cannot be


@dataclass(frozen=True, slots=True)
class HeardWindow:
    """What the model is given at a time. first, last: frames of the recording, the last one exclusive. kept_first,
    kept_last: those whose emissions are kept; of successive windows they meet."""

    first: int
    last: int
    kept_first: int
    kept_last: int


class CTCAligner(DtypeOption, ForcedAligner):
    """Anything that AutoModelForCTC loads: wav2vec2, HuBERT, WavLM, MMS, and the small model that comes with this.

    model: a folder with config.json, a vocabulary and model.safetensors, or a hub id; by default the embedded one.
    max_segment: seconds up to which utterances that follow one another go through the model together.
    dtype: float32, bfloat16, float16 or int8, of the weights; None for float32, and for the embedded model for what is
    best on this machine.

    The model hears windows of one grid over the recording, and each utterance is looked for around the times that come
    out: what it is given decides only where that begins, so that an output, aligned again, stays as it is. Of 423 words
    of ../shared/data/speech 321 moved, and then 98, when each utterance was heard from its own times on.
    """

    max_joint = 0.0

    name = "ctc"
    # Of the embedded model, on 100 utterances of ../shared/data/speech, the lowest is 0.45; on as many with the text of
    # another recording, the highest is 0.39.
    low = 0.35

    def __init__(self, model: str | None = None, max_segment: float = 24.0, dtype: str | None = None) -> None:
        if not 0 < max_segment < float("inf"):
            raise LoadError(f"max_segment must be a number of seconds above 0, not {max_segment}")
        self._model = str(EMBEDDED) if model is None else model
        self._max_segment = max_segment
        self.take_dtype(dtype, suggestible=model is None)

    def setup(self) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(self._model)
        self._vocabulary = self._checkpoint.vocabulary
        self._clock = self._checkpoint.clock
        self._padding = choose_padding(self._checkpoint.config)
        self._hop = round(self._clock.frame * SAMPLE_RATE)  # samples from one frame to the next

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def clock(self) -> Clock:
        return self._clock

    def load(self) -> Model:
        return load_model(self._checkpoint, self._dtype)

    def count_weights(self) -> int:
        return count_weights(self._checkpoint, self._dtype)

    def estimate_memory(self, segment: Segment) -> int:
        """The model sees a window at a time; the waveform, the emissions and the table of the search are whole."""
        search = max((self._count_most_bytes(s.words, s.end - s.start) for s in segment.content or ()), default=0.0)
        window = estimate_encoder(self._checkpoint.config, min(segment.seconds, WINDOW_SECONDS), self._clock.frame)
        waveform = 2 * 4 * SAMPLE_RATE * segment.seconds
        emission = 2 * 4 * self._checkpoint.count_outputs() * segment.seconds / self._clock.frame
        return round(window + waveform + emission + search)

    def count_seconds_needed(self, words: Sequence[str]) -> float:
        return count_frames_needed(words, self._vocabulary) * self._clock.frame

    def check_size(self, job: Job, words: Sequence[str], seconds: float) -> None:
        size = self._count_search_bytes(words, seconds)
        if size > MOST_BYTES:
            raise InputError(
                f"{job.id}: {len(words)} words without times over {seconds:.0f} s are too many to align at once "
                f"({size / 2**20:.0f} MiB, at most {MOST_BYTES / 2**20:.0f}); "
                "add times to an utterance every few minutes, or cut the recording"
            )

    def _count_search_bytes(self, words: Sequence[str], seconds: float) -> float:
        """torchaudio keeps a byte for each frame and each token or blank; the emissions are copied for the wildcard."""
        frames, needed = seconds / self._clock.frame, count_frames_needed(words, self._vocabulary)
        return float(frames * (2 * needed + 1) + 2 * frames * self._checkpoint.config.vocab_size * 4)

    def _count_most_bytes(self, words: Sequence[str], seconds: float) -> float:
        """Of the search for letters, or that for phones, which comes after it."""
        phones = 0.0
        if self._checkpoint.pronunciations is not None:
            phones = count_phone_search_bytes(words, STEPS * seconds / self._clock.frame)
        return max(self._count_search_bytes(words, seconds), phones)

    def example(self) -> Tensors:
        return {"waveform": make_tone(_EXAMPLE_SECONDS)}

    def longest_example(self) -> Tensors:
        return {"waveform": make_tone(WINDOW_SECONDS)}

    def verify(self, output: Tensors) -> None:
        """Raises LoadError if the model's frames are not as long as its configuration says."""
        frames, expected = len(output["log_probs"]), _EXAMPLE_SECONDS / self._clock.frame
        if abs(frames - expected) > 3:
            raise LoadError(
                f"{self._model}: it returns {frames} frames for {_EXAMPLE_SECONDS} s of audio, not {expected:.0f}; "
                "set frame_seconds in its config.json to the length of a frame"
            )

    def infer(self, model: Model, batch: Sequence[Tensors]) -> list[Tensors]:
        """{"log_probs": (frames, vocabulary)} of each waveform; with {"phones": (steps, phones)}, log-probabilities
        too, in half precision, of a model that tells these apart.

        A waveform goes through the model in windows, as many of them at once as the batch has waveforms: what the model
        takes grows with the batch and its longest window, not with how long a waveform is.
        """
        cut = [self._cut(tensors["waveform"]) for tensors in batch]
        windows = [amplify(window) for parts in cut for window in parts]
        emissions = iter(self._emit_or_recall(model, windows, len(batch)))
        outputs: list[Tensors] = []
        for tensors, parts in zip(batch, cut, strict=True):
            heard = [next(emissions) for _ in parts]
            log_probs = self._merge([emission.log_probs for emission in heard])
            silent = self._find_silence(tensors["waveform"], len(log_probs))
            output = {"log_probs": _mute(log_probs, silent, self._vocabulary.blank)}
            if phones := [emission.phones for emission in heard if emission.phones is not None]:
                output["phones"] = _mute(self._merge(phones, STEPS), silent.repeat_interleave(STEPS), SILENCE)
            outputs.append(output)
        return outputs

    def _find_silence(self, waveform: torch.Tensor, frames: int) -> torch.Tensor:
        """(frames,) bool: where nothing was recorded. waveform: (samples,)."""
        context = round(_EDGE_SECONDS * SAMPLE_RATE / self._hop)
        loudest = torch.nn.functional.max_pool1d(waveform.abs()[None], self._hop, ceil_mode=True)
        around = torch.nn.functional.max_pool1d(loudest, 2 * context + 1, stride=1, padding=context)[0]
        silent = around[:frames] < NOTHING
        return torch.cat([silent, silent.new_zeros(frames - len(silent))])  # a model may give a frame more

    def count_window_frames(self) -> tuple[int, int]:
        """Frames of what the model is given at a time, and of the context at each of its ends."""
        return round(WINDOW_SECONDS * SAMPLE_RATE / self._hop), round(CONTEXT_SECONDS * SAMPLE_RATE / self._hop)

    def list_windows(self, seconds: float) -> list[HeardWindow]:
        """Those of the grid over a recording of so many seconds."""
        size, context = self.count_window_frames()
        total = math.ceil(seconds / self._clock.frame)
        firsts = range(0, max(1, total - 2 * context), size - 2 * context)
        return [
            HeardWindow(
                first,
                min(first + size, total),
                first + context if first else 0,
                total if first + size >= total else first + size - context,
            )
            for first in firsts
        ]

    def gather(self, stretches: Sequence[Stretch], seconds: float) -> Iterator[HeardStretches]:
        frame, windows = self._clock.frame, self.list_windows(seconds)
        together: list[tuple[int, int, list[Stretch]]] = []
        for stretch in stretches:
            low, high = (stretch.start - REACH) / frame, (stretch.end + REACH) / frame
            needed = [place for place, w in enumerate(windows) if w.kept_first < high and w.kept_last > low]
            first, last = min(needed), max(needed)
            if together:
                begun, reached, others = together[-1]
                merged = min(first, begun), max(last, reached)
                length = (windows[merged[1]].last - windows[merged[0]].first) * frame
                if first <= reached and last >= begun and length <= max(self._max_segment, WINDOW_SECONDS):
                    together[-1] = (*merged, [*others, stretch])
                    continue
            together.append((first, last, [stretch]))
        for first, last, some in together:
            yield windows[first].first * frame, min(windows[last].last * frame, seconds), tuple(some)

    def _cut(self, waveform: torch.Tensor) -> list[torch.Tensor]:
        size, context = (frames * self._hop for frames in self.count_window_frames())
        if len(waveform) <= size:
            return [waveform]
        return [waveform[first : first + size] for first in range(0, len(waveform) - 2 * context, size - 2 * context)]

    def _merge(self, emissions: Sequence[torch.Tensor], steps: int = 1) -> torch.Tensor:
        """(rows, ...) of the whole waveform from those of its windows, without their contexts. steps: rows of a
        frame."""
        if len(emissions) == 1:
            return emissions[0]
        size, context = (frames * steps for frames in self.count_window_frames())
        last = len(emissions) - 1
        return torch.cat(
            [e[context if i else 0 : None if i == last else size - context] for i, e in enumerate(emissions)]
        )

    def _emit_or_recall(self, model: Model, windows: Sequence[torch.Tensor], together: int) -> list[Emission]:
        """`_emit`, of what this process has not heard lately."""
        if not getattr(model, "batch_invariant", False) or windows[0].device.type != "cpu":
            return self._emit(model, windows, together)
        return find_recent(model).look_up(windows, lambda new: self._emit(model, new, together))

    def _emit(self, model: Model, windows: Sequence[torch.Tensor], together: int) -> list[Emission]:
        """What is heard in each window. together: how many go through the model at once."""
        dtype = getattr(model, "input_dtype", DTYPES[self._dtype])
        order = sorted(range(len(windows)), key=lambda index: len(windows[index]))  # the least padding
        emissions: dict[int, Emission] = {}
        for first in range(0, len(order), together):
            some = order[first : first + together]
            logits = compute_logits(model, [self._encode(windows[index]).to(dtype) for index in some], self._padding)
            emissions.update((index, self._read(rows)) for index, rows in zip(some, logits, strict=True))
        return [emissions[index] for index in range(len(windows))]

    def _read(self, logits: torch.Tensor) -> Emission:
        """logits: (frames, vocabulary), and phones behind it if the model has them."""
        characters = self._checkpoint.config.vocab_size
        log_probs = logits[:, :characters].float().log_softmax(dim=-1)
        if logits.shape[1] == characters:
            return Emission(log_probs)
        phones = logits[:, characters:].float().reshape(len(logits) * STEPS, -1).log_softmax(dim=-1)
        return Emission(log_probs, phones.half())

    def _encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """The model's input: the waveform, (samples,), or the features of the extractor that came with it."""
        if self._checkpoint.extractor is not None:
            features = self._checkpoint.extractor(
                waveform.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt"
            )
            return features["input_features"][0].to(waveform.device)  # type: ignore[no-any-return]
        if self._checkpoint.normalize:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        return waveform

    def align(self, stretch: Stretch, output: Tensors, segment: Segment) -> list[Word] | None:
        origin = round(segment.start / self._clock.frame)
        measure = None
        if self._checkpoint.pronunciations is not None:
            measure = partial(
                measure_words,
                phones=output["phones"],
                clock=PhoneClock(origin * self._clock.frame, self._clock.frame / STEPS),
                pronunciations=self._checkpoint.pronunciations,
                limit=stretch.limit,
            )
        return StretchSearch(
            stretch, output["log_probs"], origin, self._vocabulary, self._clock, self.low, measure
        ).align()

    def find_untranscribed(
        self, stretch: Stretch, line: TranscriptLine, words: Sequence[Word], output: Tensors, segment: Segment
    ) -> Sequence[UntranscribedSpeech]:
        """Within the line's own times, or within its words where it has none, or they say little."""
        heard = self.read_emissions(output, segment)
        if heard is None or not words:
            return ()
        start, end = words[0].start, words[-1].end
        assert start is not None and end is not None
        if stretch.timed and not is_wide(line.words, line.start, line.end):
            start, end = line.start, line.end
        return find_untranscribed(words, heard, start, end)

    def read_emissions(self, output: Tensors, segment: Segment) -> Emissions | None:
        """What `infer` made of the segment; None if the model does not tell phones apart."""
        pronunciations = self._checkpoint.pronunciations
        if pronunciations is None:
            return None
        origin = round(segment.start / self._clock.frame) * self._clock.frame
        return Emissions(output["log_probs"], output["phones"], self._vocabulary, self._clock, pronunciations, origin)

    def identify_model(self) -> Hashable:
        return ("ctc", str(self._checkpoint.folder), self._dtype)

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "model": identify(self._checkpoint),
            "files": self._checkpoint.source.list_files(),
            "max_segment": self._max_segment,
            "dtype": self.identify_dtype(),
        }


def _mute(log_probs: torch.Tensor, silent: torch.Tensor, nothing: int) -> torch.Tensor:
    """(rows, columns) with the column of nothing alone where nothing was recorded: models hear letters in digital
    silence. silent: (rows,) bool."""
    if not silent.any():
        return log_probs
    muted = torch.full_like(log_probs, _NEVER)
    muted[:, nothing] = 0.0
    return torch.where(silent[:, None], muted, log_probs)
