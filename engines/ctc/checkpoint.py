"""A CTC model on disk: what its files say about it, and its weights, or one clear reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prefork.engines.alignment.viterbi import Clock, Vocabulary
from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.checkpoints.fields import Rule, find_wrong_token, show
from prefork.engines.checkpoints.hub import shorten
from prefork.engines.checkpoints.model_folder import (
    DTYPES,
    FILES,
    ModelFolder,
    build_empty,
    import_transformers,
    is_ctc,
)
from prefork.engines.checkpoints.whisper_layers import list_sources
from prefork.engines.ctc.phone_head import PHONES, STEPS
from prefork.engines.ctc.pronunciations import FILE as PRONUNCIATIONS
from prefork.engines.ctc.pronunciations import Pronunciations
from prefork.engines.ctc.whisper_ctc import WhisperCTC, WhisperCTCConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    Config = WhisperCTCConfig | PreTrainedConfig
    Model = WhisperCTC | PreTrainedModel

__all__ = ["DTYPES", "Checkpoint", "count_weights", "identify", "load_model", "open_checkpoint"]

_REMEDY = "give a folder with a CTC model's config.json, vocabulary and safetensors weights with --model PATH"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's folder and what stands in it beside the weights.

    extractor: transformers' feature extractor for a model that takes features, None for one that takes the waveform;
    normalize: whether that is brought to zero mean and unit variance.
    pronunciations: with a model that tells phones apart.
    """

    source: ModelFolder
    config: Config
    vocabulary: Vocabulary
    clock: Clock
    extractor: Any | None
    normalize: bool
    pronunciations: Pronunciations | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def folder(self) -> Path:
        return self.source.path

    def count_outputs(self) -> int:
        """Of a frame: the vocabulary, and phones."""
        characters: int = self.config.vocab_size
        return characters if self.pronunciations is None else characters + STEPS * (1 + len(PHONES))


def open_checkpoint(name: str) -> Checkpoint:
    """Reads everything but the weights. name: a folder, or a hub id, which is fetched if it is not here yet.

    Raises LoadError if it cannot be had, or is not a CTC model of characters for 16 kHz.
    """
    source = ModelFolder.find(name, (*FILES, PRONUNCIATIONS), _REMEDY)
    config: Config = source.read_config(WhisperCTCConfig)
    if not is_ctc(config):
        engine = "whisper" if config.model_type == "whisper" else None
        source.refuse(f"a {config.model_type} model is not a CTC model", engine=engine)
    source.check_weights()
    settings = source.read_extractor_settings()
    waveform = _takes_waveform(config)
    return Checkpoint(
        source=source,
        config=config,
        vocabulary=_read_vocabulary(source, config),
        clock=_read_clock(source, config, settings, waveform),
        extractor=None if waveform else _load_extractor(source),
        normalize=settings.get("do_normalize", settings.get("feature_extractor_type") == "Wav2Vec2FeatureExtractor"),
        pronunciations=_read_pronunciations(source) if getattr(config, "phone_dim", 0) else None,
    )


def load_model(checkpoint: Checkpoint, dtype: str = "float32") -> Model:
    """The model for inference, with every weight. dtype: one of DTYPES. Raises LoadError."""
    if isinstance(checkpoint.config, WhisperCTCConfig):
        model: WhisperCTC = build_empty(WhisperCTC, checkpoint.config)
        checkpoint.source.fill(model, dtype, list_sources)
        return model
    return checkpoint.source.load(import_transformers().AutoModelForCTC, dtype)


def count_weights(checkpoint: Checkpoint, dtype: str = "float32") -> int:
    """Bytes that the model will take once `load_model` has it in this dtype. Raises LoadError."""
    build = (
        _build if isinstance(checkpoint.config, WhisperCTCConfig) else import_transformers().AutoModelForCTC.from_config
    )
    return checkpoint.source.count_weights(build, checkpoint.config, dtype)


def _build(config: WhisperCTCConfig, dtype: torch.dtype) -> WhisperCTC:
    return WhisperCTC(config).to(dtype)


def _takes_waveform(config: Config) -> bool:
    """Or else features, which the extractor that comes with the model makes."""
    if isinstance(config, WhisperCTCConfig):
        return True
    kind: Any = import_transformers().MODEL_FOR_CTC_MAPPING[type(config)]
    return bool(kind.main_input_name == "input_values")


def identify(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the model comes from: the hub's id and commit; empty for another folder."""
    return checkpoint.source.identify()


def _load_extractor(source: ModelFolder) -> Any:
    kind: Any = import_transformers().AutoFeatureExtractor
    try:
        return kind.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  it raises what its parts raise
        source.refuse(f"its feature extractor cannot be loaded ({shorten(error)})", error)


def _read_vocabulary(source: ModelFolder, config: Config) -> Vocabulary:
    file = "vocab.json"
    columns: Mapping[str, Any] = source.read_json(file)
    if not columns:
        file, tokenizer = "tokenizer.json", source.read_json("tokenizer.json")
        source.check_fields(file, tokenizer, {"model": Rule(dict)})
        columns = (tokenizer.get("model") or {}).get("vocab") or {}
    if not columns:
        source.refuse("it has no vocabulary (vocab.json or tokenizer.json)")
    if isinstance(columns, dict) and any(isinstance(value, dict) for value in columns.values()):
        languages = ", ".join(sorted(columns)[:5])
        source.refuse(f"it has one vocabulary per language ({languages}, ...); save the model with one of them")
    if not isinstance(columns, dict):
        source.refuse(f"{file}: its vocabulary is {show(columns)}; it has to be a table of tokens and their numbers")
    source.check_fields("config.json", {"vocab_size": config.vocab_size}, {"vocab_size": Rule(int, 1, required=True)})
    if wrong := find_wrong_token(columns.items(), config.vocab_size):
        source.refuse(f"{file}: {wrong}, for config.json has {config.vocab_size} outputs")
    if wrong := find_wrong_token([("pad_token_id", config.pad_token_id)], config.vocab_size):
        source.refuse(f"config.json: {wrong}")
    blank = int(config.pad_token_id)
    separator = source.read_json("tokenizer_config.json").get("word_delimiter_token") or "|"
    if isinstance(separator, dict):  # as transformers writes a token with its properties
        separator = separator.get("content")
    source.check_fields(
        "tokenizer_config.json", {"word_delimiter_token": separator}, {"word_delimiter_token": Rule(str)}
    )
    characters = {
        token: column
        for token, column in columns.items()
        if len(token) == 1 and not token.isspace() and token != separator and column != blank
    }
    if not any(token.isalpha() for token in characters):
        source.refuse("its vocabulary has no single letters; only models that emit characters can be used")
    return Vocabulary(characters, blank, columns.get(separator))


def _read_pronunciations(source: ModelFolder) -> Pronunciations:
    try:
        return Pronunciations.read(source.path / PRONUNCIATIONS)
    except ValueError as error:
        source.refuse(str(error), error)


def _read_clock(source: ModelFolder, config: Config, settings: Mapping[str, Any], waveform: bool) -> Clock:
    """The length of a frame: as config.json says, or as the strides of what makes the frames multiply to."""
    ratio = getattr(config, "inputs_to_logits_ratio", None)
    frame = getattr(config, "frame_seconds", None)
    if frame is None and waveform and ratio:
        frame = ratio / SAMPLE_RATE
    elif frame is None and not waveform:
        frame = settings.get("hop_length", 160) * (settings.get("stride") or ratio or 1) / SAMPLE_RATE
    if not frame or abs(frame * SAMPLE_RATE - round(frame * SAMPLE_RATE)) > 1e-6:
        source.refuse("the length of its frames is unknown; set frame_seconds in its config.json")
    starts, ends = (float(getattr(config, f"{edge}_offset_seconds", None) or 0.0) for edge in ("start", "end"))
    return Clock(frame, starts, ends)
