"""The CTC aligner: when each word of a transcript is said, from the emissions of any CTC model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

import engines.whisper_ctc  # noqa: F401  makes its model type known to transformers
from engines import formats
from engines.alignment import Clock, Vocabulary, align_words, count_frames_needed
from engines.audio import SAMPLE_RATE, read_audio
from engines.base import Engine, InputError, Job, LoadError, Segment, Tensors
from engines.document import Document, Timing, Utterance, Word
from engines.windows import Window, plan_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

EMBEDDED = Path(__file__).parent / "models" / "ctc-aligner-en"
WINDOW_SECONDS = 20.0  # what the model is given at a time
CONTEXT_SECONDS = 2.0  # at each end of a window that goes on: heard, but its emissions are the neighbour's
MOST_CELLS = 1_000_000_000  # of the Viterbi table, two bits each: 250 MB, about 14 minutes of untimed speech
_SHORTEST = 1600  # samples; a convolutional front end needs a few hundred


@dataclass(frozen=True, slots=True)
class _Content:
    """What a segment is about: the words to be found in it, by utterance."""

    utterances: tuple[int, ...]
    words: tuple[tuple[str, ...], ...]


class CTCAligner(Engine):
    """Anything that AutoModelForCTC loads: wav2vec2, HuBERT, WavLM, MMS, and the small model that comes with this.

    model: a folder with config.json, vocab.json and model.safetensors, or a hub id; by default the embedded one.
    max_segment: seconds up to which short utterances are aligned together; less takes less memory.
    """

    name = "ctc"

    def __init__(self, model: str | None = None, max_segment: float = 15.0) -> None:
        if not 0 < max_segment < float("inf"):
            raise LoadError(f"max_segment must be a number of seconds above 0, not {max_segment}")
        self._model = str(EMBEDDED) if model is None else model
        self._max_segment = max_segment

    def setup(self) -> None:
        self._config = _load_part(AutoConfig, self._model)
        kind = getattr(self._config, "model_type", "?")
        if type(self._config) not in AutoModelForCTC._model_mapping:
            raise LoadError(f"{self._model}: a {kind} model is not a CTC model; give one that AutoModelForCTC loads")
        self._vocabulary = _load_vocabulary(self._model, self._config)
        self._extractor = _load_part(AutoFeatureExtractor, self._model)
        self._hop = _find_hop(self._config, self._extractor)
        rate = getattr(self._extractor, "sampling_rate", SAMPLE_RATE)
        if rate != SAMPLE_RATE:
            raise LoadError(f"{self._model}: it hears {rate} Hz; only models for {SAMPLE_RATE} Hz can be used")
        self._clock = Clock(
            self._hop / SAMPLE_RATE,
            getattr(self._config, "start_offset_seconds", 0.0),
            getattr(self._config, "end_offset_seconds", 0.0),
        )

    def load(self) -> PreTrainedModel:
        model, info = _load_part(
            AutoModelForCTC, self._model, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        missing = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
        if missing:
            raise LoadError(
                f"{self._model}: its weights are not those of its config.json: {len(missing)} are missing or of another "
                f"shape ({', '.join(missing[:3])} ...); give a complete CTC model with --model PATH"
            )
        return model.eval()

    def warm_up(self, model: PreTrainedModel) -> None:
        self.infer(model, [{"waveform": torch.zeros(SAMPLE_RATE)}])

    def split(self, job: Job) -> list[Segment]:
        document = formats.read(job.source)
        windows, _ = plan_windows(document.utterances, job.seconds, self._max_segment)
        return [self._make_segment(job, document, index, window) for index, window in enumerate(windows)]

    def _make_segment(self, job: Job, document: Document, index: int, window: Window) -> Segment:
        words = tuple(tuple(word.text for word in document.utterances[i].words) for i in window.utterances)
        flat = [word for utterance in words for word in utterance]
        frames = (window.end - window.start) / self._clock.frame
        needed = count_frames_needed(flat, self._vocabulary)
        if frames * (2 * needed + 1) > MOST_CELLS:
            raise InputError(
                f"{job.id}: {len(flat)} words without times over {window.end - window.start:.0f} s are too many to align "
                "at once; give every few minutes an utterance with times, or cut the recording"
            )
        if needed > frames and not window.timed:
            raise InputError(
                f"{job.id}: {len(flat)} words cannot have been said in the {window.end - window.start:.1f} s that "
                "there are for them; is this the transcript of that recording?"
            )
        return Segment(index, window.start, window.end, _Content(window.utterances, words))

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        """{"waveform": (samples,) mono at 16 kHz}."""
        assert job.media is not None
        waveform = torch.from_numpy(read_audio(job.media, segment.start, segment.end))
        if len(waveform) < (segment.seconds - 1.0) * SAMPLE_RATE:
            end = segment.start + len(waveform) / SAMPLE_RATE
            raise InputError(
                f"{job.media}: the recording says that it is {job.seconds:.1f} s long but ends at {end:.1f} s; "
                "it is truncated: get it again"
            )
        return {"waveform": torch.nn.functional.pad(waveform, (0, max(0, _SHORTEST - len(waveform))))}

    def infer(self, model: PreTrainedModel, batch: Sequence[Tensors]) -> list[Tensors]:
        """{"log_probs": (frames, vocabulary)} of each waveform, a window at a time."""
        return [{"log_probs": self._emit(model, tensors["waveform"])} for tensors in batch]

    def _emit(self, model: PreTrainedModel, waveform: torch.Tensor) -> torch.Tensor:
        size, context = (round(s * SAMPLE_RATE / self._hop) * self._hop for s in (WINDOW_SECONDS, CONTEXT_SECONDS))
        if len(waveform) <= size:
            return self._forward(model, waveform)
        parts = []
        for start in range(0, len(waveform) - context, size - 2 * context):
            emission = self._forward(model, waveform[start : start + size])
            first = context // self._hop if start else 0
            last = None if start + size >= len(waveform) else (size - context) // self._hop
            parts.append(emission[first:last])
            if last is None:
                break
        return torch.cat(parts)

    def _forward(self, model: PreTrainedModel, waveform: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(**self._encode(model, waveform)).logits[0]
        return logits.float().log_softmax(dim=-1)

    def _encode(self, model: PreTrainedModel, waveform: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """A model that takes `input_values` gets the waveform; any other the features of its extractor."""
        if model.main_input_name != "input_values":
            features = self._extractor(waveform.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            return {model.main_input_name: features[model.main_input_name].to(waveform.device)}
        if getattr(self._extractor, "do_normalize", False) and "input_values" in self._extractor.model_input_names:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
        return {"input_values": waveform[None]}

    def finish(self, job: Job, segment: Segment, output: Tensors) -> list[list[Word]]:
        """The words of each of the segment's utterances, with times."""
        content: _Content = segment.content
        flat = [word for utterance in content.words for word in utterance]
        words = align_words(output["log_probs"], flat, self._vocabulary, self._clock, segment.start, segment.end)
        rest = iter(words)
        return [[next(rest) for _ in utterance] for utterance in content.words]

    def join(self, job: Job, segments: Sequence[Segment], pieces: Sequence[list[list[Word]]]) -> Document:
        document = formats.read(job.source)
        _, warnings = plan_windows(document.utterances, job.seconds, self._max_segment)
        utterances = list(document.utterances)
        for segment, piece in zip(segments, pieces, strict=True):
            for index, words in zip(segment.content.utterances, piece, strict=True):
                utterances[index] = _time_utterance(utterances[index], words)
                if any(word.timing is Timing.INTERPOLATED for word in words):
                    text = utterances[index].text[:40].strip()
                    warnings.append(
                        f"utterance {index + 1} ({text}): more words than its {segment.seconds:.1f} s can hold; "
                        "their times are guessed"
                    )
        timed = keep_apart(document.utterances, utterances)
        return replace(document, utterances=tuple(timed), seconds=job.seconds, warnings=tuple(warnings))

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "version": version("prefork"),
            "model": _identify(self._model, self._config),
            "max_segment": self._max_segment,
        }


def _time_utterance(utterance: Utterance, words: Sequence[Word]) -> Utterance:
    return replace(utterance, words=tuple(words), start=words[0].start, end=words[-1].end)


def keep_apart(before: Sequence[Utterance], after: Sequence[Utterance]) -> list[Utterance]:
    """Ends an utterance where the next begins, unless the transcript says that they overlap."""
    result = list(after)
    for i, (utterance, following) in enumerate(zip(after, after[1:], strict=False)):
        if utterance.end is None or utterance.start is None or following.start is None or not utterance.words:
            continue
        ends, begins = before[i].end, before[i + 1].start
        overlap = ends is not None and begins is not None and begins < ends
        if not overlap and utterance.start < following.start < utterance.end:
            words = tuple(
                replace(w, start=min(w.start, following.start), end=min(w.end, following.start))
                if w.start is not None and w.end is not None
                else w
                for w in utterance.words
            )
            result[i] = replace(utterance, words=words, end=following.start)
    return result


def _load_part(kind: Any, model: str, **options: Any) -> Any:
    """from_pretrained with one clear error for everything that can go wrong."""
    local = Path(model).expanduser()
    if local.is_dir():
        model = str(local)
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise LoadError(f"{model}: no such folder; give one with config.json and model.safetensors, or a hub id")
    try:
        return kind.from_pretrained(model, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        text = " ".join(str(error).split())
        if local.is_dir():
            raise LoadError(
                f"{model}: cannot be loaded as a CTC model: {text[:300]}; give another with --model PATH"
            ) from error
        raise LoadError(
            f"{model}: is no folder here, and cannot be had from the hub ({text[:200]}); "
            "download it where there is a network, then give its folder with --model PATH"
        ) from error


def _load_vocabulary(model: str, config: PretrainedConfig) -> Vocabulary:
    file = Path(model).expanduser() / "vocab.json"
    if file.is_file():
        columns = json.loads(file.read_text(encoding="utf-8"))
    else:
        columns = _load_part(AutoTokenizer, model).get_vocab()
    if any(isinstance(value, dict) for value in columns.values()):  # MMS: a vocabulary per language
        columns = columns.get("eng") or next(iter(columns.values()))
    if not columns or max(columns.values()) >= config.vocab_size:
        raise LoadError(f"{model}: its vocabulary does not fit its {config.vocab_size} outputs; give a complete model")
    letters = {token: column for token, column in columns.items() if len(token) == 1 and token != "|"}
    return Vocabulary(letters, int(config.pad_token_id or 0), columns.get("|"))


def _find_hop(config: PretrainedConfig, extractor: Any) -> int:
    """Samples from one emission to the next."""
    if (ratio := getattr(config, "inputs_to_logits_ratio", None)) is not None:
        return int(ratio)
    if (seconds := getattr(config, "frame_seconds", None)) is not None:
        return round(seconds * SAMPLE_RATE)
    return int(getattr(extractor, "hop_length", 160)) * int(getattr(extractor, "stride", 2))


def _identify(model: str, config: PretrainedConfig) -> dict[str, Any]:
    """What tells these weights from others: a hub's commit, or the folder's files."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return {"id": model, "commit": getattr(config, "_commit_hash", None)}
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open(
            "rb"
        ) as stream:  # a safetensors file begins with its table of contents, a small one is read whole
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(stream.read())
    return {"sha256": digest.hexdigest()}
