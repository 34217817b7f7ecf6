"""A CTC model on disk: its files, what they say about it, and its weights, or one clear reason why not.

Only JSON and safetensors are read, never pickled weights, and no code that comes with a model is run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

import engines.whisper_ctc  # noqa: F401  makes its model type known to transformers
from engines.alignment import Clock, Vocabulary
from engines.audio import SAMPLE_RATE
from engines.base import LoadError
from engines.quantization import quantize_linears

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What a model needs here. The hub's folders hold more: pickles, other frameworks, a gigabyte of language adapters.
_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
# Only training needs them: checkpoints of good CTC models lack the first and have the others left over.
_TRAINING_ONLY = re.compile(r"masked_spec_embed$|^(quantizer|project_q|project_hid)\.")
# What a model's weights may be held in. int8: those of its linear layers, the others are float32.
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors calls them
_LINE = 64  # bytes that each tensor begins at a multiple of, where weights are shared
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
_REMEDY = "give a folder with a CTC model's config.json, vocabulary and safetensors weights with --model PATH"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's folder and what stands in it beside the weights.

    name: as the user gave it. extractor: transformers' feature extractor for a model that takes features, None for
    one that takes the waveform; normalize: whether that is brought to zero mean and unit variance.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    vocabulary: Vocabulary
    clock: Clock
    extractor: Any | None
    normalize: bool


def open_checkpoint(name: str) -> Checkpoint:
    """Reads everything but the weights. name: a folder, or a hub id, which is fetched if it is not here yet.

    Raises LoadError if it cannot be had, or is not a CTC model of characters for 16 kHz.
    """
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = _find_folder(name)
    config = _read_config(name, folder)
    if type(config) not in MODEL_FOR_CTC_MAPPING:
        _refuse(name, f"a {config.model_type} model is not a CTC model")
    if not any(folder.glob("model*.safetensors")):
        pickled = "only pickled ones, which can run code when they are read" if any(folder.glob("*.bin")) else "none"
        _refuse(name, f"it has no safetensors weights ({pickled})")
    settings = _read_extractor_settings(name, folder)
    if (rate := settings.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        _refuse(name, f"it hears {rate} Hz; only models for {SAMPLE_RATE} Hz can be used")
    kind: Any = MODEL_FOR_CTC_MAPPING[type(config)]
    waveform = kind.main_input_name == "input_values"
    return Checkpoint(
        name=name,
        folder=folder,
        config=config,
        vocabulary=_read_vocabulary(name, folder, config),
        clock=_read_clock(name, config, settings, waveform),
        extractor=None if waveform else _load_extractor(name, folder),
        normalize=settings.get("do_normalize", settings.get("feature_extractor_type") == "Wav2Vec2FeatureExtractor"),
    )


def load_model(checkpoint: Checkpoint, dtype: str = "float32") -> PreTrainedModel:
    """The model for inference. Raises LoadError unless every weight is in the folder and has its place in the model:
    transformers alone would make up what is missing.

    dtype: one of DTYPES. For int8, the weights are read as they are in the file, and converted one at a time.
    """
    stored = _read_stored_dtype(checkpoint)
    try:
        model, report = AutoModelForCTC.from_pretrained(
            checkpoint.folder,
            dtype=stored if dtype == "int8" else DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except _UNLOADABLE as error:
        _refuse(checkpoint.name, f"its weights cannot be loaded ({_shorten(error)})", error)
    _check_loaded(checkpoint, report)
    if dtype == "int8":
        quantize_linears(model)
        model.float()
    return model.eval()  # type: ignore[no-any-return]


def count_weights(checkpoint: Checkpoint, dtype: str = "float32") -> int:
    """Bytes that the model will take once `load_model` has it in this dtype; of the weights, only the files' headers
    are read. Raises LoadError if there is no such model, or if a file is not whole."""
    _read_stored_dtype(checkpoint)
    try:
        with torch.device("meta"):
            kind: Any = AutoModelForCTC
            model = kind.from_config(copy.deepcopy(checkpoint.config), dtype=DTYPES[dtype])
    except _UNLOADABLE as error:
        _refuse(checkpoint.name, f"there is no model as its config.json describes it ({_shorten(error)})", error)
    if dtype == "int8":
        quantize_linears(model)
    return sum(-(-tensor.nbytes // _LINE) * _LINE for tensor in [*model.parameters(), *model.buffers()])


def _read_stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The one that the files' floating weights have, as their headers say; float32 if they have several."""
    whole = checkpoint.folder / "model.safetensors"
    found: set[str] = set()
    for file in [whole] if whole.is_file() else sorted(checkpoint.folder.glob("model*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            _refuse(checkpoint.name, f"its weights cannot be loaded ({_shorten(error)})", error)
    floating = [name for name in found if "F" in name]
    return _HALVES.get(floating[0], torch.float32) if len(floating) == 1 else torch.float32


def _check_loaded(checkpoint: Checkpoint, report: Mapping[str, Any]) -> None:
    """report: what transformers says about a model that it has loaded."""
    keys = {
        "missing": [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])],
        "without a place": list(report["unexpected_keys"]),
    }
    for fault, found in keys.items():
        if found := sorted(key for key in found if not _TRAINING_ONLY.search(key)):
            _refuse(
                checkpoint.name,
                f"its weights do not fit its config.json: {len(found)} {fault} ({', '.join(found[:3])})",
            )
    if report["error_msgs"]:
        _refuse(checkpoint.name, f"its weights cannot be loaded ({_shorten(report['error_msgs'][0])})")


def identify(checkpoint: Checkpoint) -> dict[str, str]:
    """What tells this model from others: the hub's commit, or a digest of the folder's files.

    Of weights, the table of contents and the last megabyte are digested: another training changes both ends of a
    file, and gigabytes need not be read at each start.
    """
    if checkpoint.folder.parent.name == "snapshots":
        return {"id": checkpoint.name, "commit": checkpoint.folder.name}
    digest = hashlib.sha256()
    for file in sorted(path for pattern in _FILES for path in checkpoint.folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return {"sha256": digest.hexdigest()}


def _refuse(name: str, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise LoadError(f"{name}: {reason}; {_REMEDY}") from cause


def _shorten(error: object) -> str:
    return " ".join(str(error).split())[:200]


def _find_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        _refuse(name, "there is no such folder")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        _refuse(name, "there is no such folder, and it is no hub id", error)
    except GatedRepoError as error:
        _refuse(name, "the hub gives it only after its terms were accepted there and `hf auth login` was run", error)
    except RepositoryNotFoundError as error:
        _refuse(name, "there is no such folder, and no such model on the hub", error)
    except OSError as error:
        reason = "there is no such folder, and the hub cannot be reached; fetch it where there is a network"
        _refuse(name, f"{reason} ({_shorten(error)})", error)


def _read_json(name: str, file: Path) -> dict[str, Any]:
    """The file's object, an empty one if there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        _refuse(name, f"{file.name} cannot be read ({_shorten(error)})", error)
    if not isinstance(content, dict):
        _refuse(name, f"{file.name} is not a JSON object")
    return content


def _read_config(name: str, folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        _refuse(name, "it has no config.json")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse(name, f"config.json is not one that transformers {transformers.__version__} knows", error)
    return config


def _read_extractor_settings(name: str, folder: Path) -> dict[str, Any]:
    settings = _read_json(name, folder / "preprocessor_config.json")
    settings = settings or _read_json(name, folder / "processor_config.json").get("feature_extractor", {})
    if not settings:
        _refuse(name, "it has no preprocessor_config.json, which says how it wants its audio")
    return settings


def _load_extractor(name: str, folder: Path) -> Any:
    kind: Any = AutoFeatureExtractor
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        _refuse(name, f"its feature extractor cannot be loaded ({_shorten(error)})", error)


def _read_vocabulary(name: str, folder: Path, config: PreTrainedConfig) -> Vocabulary:
    columns: Mapping[str, Any] = _read_json(name, folder / "vocab.json")
    if not columns:
        tokenizer = _read_json(name, folder / "tokenizer.json")
        columns = tokenizer.get("model", {}).get("vocab", {})
    if not columns:
        _refuse(name, "it has no vocabulary (vocab.json or tokenizer.json)")
    if isinstance(columns, dict) and any(isinstance(value, dict) for value in columns.values()):
        languages = ", ".join(sorted(columns)[:5])
        _refuse(name, f"it has a vocabulary for each language ({languages}, ...); save it with one of them")
    if not isinstance(columns, dict) or not all(isinstance(column, int) for column in columns.values()):
        _refuse(name, "its vocabulary is not a table of tokens and their numbers")
    if max(columns.values()) >= config.vocab_size or config.pad_token_id is None:
        _refuse(name, f"its vocabulary of {len(columns)} tokens does not fit config.json's {config.vocab_size} outputs")
    blank = int(config.pad_token_id)
    separator = _read_json(name, folder / "tokenizer_config.json").get("word_delimiter_token") or "|"
    characters = {
        token: column
        for token, column in columns.items()
        if len(token) == 1 and not token.isspace() and token != separator and column != blank
    }
    if not any(token.isalpha() for token in characters):
        _refuse(name, "its vocabulary has no single letters; only models that emit characters can be used")
    return Vocabulary(characters, blank, columns.get(separator))


def _read_clock(name: str, config: PreTrainedConfig, settings: Mapping[str, Any], waveform: bool) -> Clock:
    """The length of a frame: as config.json says, or as the strides of what makes the frames multiply to."""
    ratio = getattr(config, "inputs_to_logits_ratio", None)
    frame = getattr(config, "frame_seconds", None)
    if frame is None and waveform and ratio:
        frame = ratio / SAMPLE_RATE
    elif frame is None and not waveform:
        frame = settings.get("hop_length", 160) * (settings.get("stride") or ratio or 1) / SAMPLE_RATE
    if not frame or abs(frame * SAMPLE_RATE - round(frame * SAMPLE_RATE)) > 1e-6:
        _refuse(name, "how long its frames are is not known; add frame_seconds to its config.json")
    starts, ends = (float(getattr(config, f"{edge}_offset_seconds", 0.0)) for edge in ("start", "end"))
    return Clock(frame, starts, ends)
