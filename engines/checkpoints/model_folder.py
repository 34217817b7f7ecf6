"""A model's folder: its files, its weights, and one clear refusal for each thing that can be wrong with them.

Only JSON and safetensors are read, never pickled weights, and no code that comes with a model is run.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.checkpoints.fields import EXTRACTOR, Rule, find_wrong, make_rules, show
from prefork.engines.checkpoints.hub import NotAvailable, fetch, shorten
from prefork.engines.checkpoints.quantization import LIMIT, QuantizedLinear, find_weight_limit, quantize_linears
from prefork.engines.checkpoints.stored_tensors import StoredTensors
from prefork.engines.checkpoints.whisper_layers import ACTIVATIONS
from prefork.engines.errors import LoadError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# What any model needs here. The hub's folders hold more: pickles, other frameworks, a gigabyte of language adapters.
FILES = (
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
INCLUDED = {"tiny.en": Path(__file__).parents[1] / "models" / "whisper-tiny.en"}
# What a model's weights may be held in. int8: those of its linear layers, the others are float32.
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
WHISPER, WHISPER_CTC = "whisper", "whisper-ctc"  # model types that are computed here, and not by transformers
_MOST_BYTES = 4 << 20  # of a file with settings
_MOST_VOCABULARY = 64 << 20  # bytes of a file with tokens; those of 250,000 tokens have 17 MB
_VOCABULARIES = ("vocab.json", "tokenizer.json", "merges.txt", "added_tokens.json", "model.safetensors.index.json")
# Only training needs them: checkpoints of good CTC models lack the first and have the others left over.
_TRAINING_ONLY = re.compile(r"masked_spec_embed$|^(quantizer|project_q|project_hid)\.")
_OUTPUT, _EMBEDDING = "proj_out.weight", "decoder.embed_tokens.weight"  # the same unless the configuration says not
_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors calls them
_LINE = 64  # bytes that each tensor begins at a multiple of, where weights are shared


def build_empty(kind: Callable[[Any], nn.Module], config: Any) -> Any:
    """A model without its weights, on the meta device, for `ModelFolder.fill`.

    No random weights are made up: on the meta device, symbolic shapes would compute them, whose libraries take a second
    to import.
    """
    init = torch.nn.init
    names = ("kaiming_uniform_", "uniform_", "normal_", "ones_", "zeros_")
    kept = {name: getattr(init, name) for name in names}
    try:
        for name in names:
            setattr(init, name, lambda tensor, *_, **__: tensor)
        with torch.device("meta"):
            return kind(config)
    finally:
        for name, function in kept.items():
            setattr(init, name, function)


def import_transformers() -> Any:
    """The library, told to keep quiet. It takes a second to import, and what has models in it another two: only what
    needs it does."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


class DtypeOption:
    """The option `dtype` of an engine: what its user says, else what the machine suggests, else float32."""

    _dtype: str
    _takes_suggestions: bool

    def take_dtype(self, dtype: str | None, *, suggestible: bool = True) -> None:
        """dtype: None if the user has not said it. suggestible: results are as good in what may be suggested. Raises
        LoadError if weights cannot be held in it."""
        self._takes_suggestions = dtype is None and suggestible
        self._dtype = "float32" if dtype is None else dtype
        if self._dtype not in DTYPES:
            raise LoadError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")

    def suggest_dtype(self, dtype: str) -> None:
        if self._takes_suggestions:
            self._dtype = dtype

    def identify_dtype(self) -> str:
        """What results depend on: int8 has 7 bits on processors whose sums hold no more."""
        if self._dtype == "int8" and (limit := find_weight_limit()) < LIMIT:
            return f"int8 up to {limit}"
        return self._dtype


@dataclass(frozen=True, slots=True)
class OtherConfig:
    """Of a model that another engine computes."""

    model_type: str


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """name: of the model, as the user gave it. files: patterns of what is read of the folder. remedy: the end of every
    refusal."""

    name: str
    path: Path
    files: tuple[str, ...]
    remedy: str

    @classmethod
    def find(cls, name: str, files: tuple[str, ...], remedy: str) -> ModelFolder:
        """name: a model's folder, one of INCLUDED, or a hub id, which is fetched if it is not here yet. Raises
        LoadError."""
        return cls(name, _find_path(name, files, remedy), files, remedy)

    def refuse(self, reason: str, cause: BaseException | None = None, *, engine: str | None = None) -> NoReturn:
        """Raises LoadError. engine: the one that can use the model."""
        raise LoadError(compose_refusal(self.name, reason, self.remedy, engine)) from cause

    def read_json(self, file: str) -> dict[str, Any]:
        """The file's object, an empty one if there is no such file."""
        path = self.path / file
        self._check_size(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            self.refuse(f"{file} cannot be read ({shorten(error)})", error)
        except RecursionError as error:
            self.refuse(f"{file} is nested too deeply", error)
        if not isinstance(content, dict):
            self.refuse(f"{file} is not a JSON object")
        return content

    def _check_size(self, path: Path) -> None:
        """Raises LoadError for a file that is too large to be what its name says: it would be read whole."""
        most = _MOST_VOCABULARY if path.name in _VOCABULARIES else _MOST_BYTES
        if path.is_file() and (size := path.stat().st_size) > most:
            self.refuse(f"{path.name} has {size / 1e6:,.0f} MB, and no such file has more than {most / 1e6:.0f} MB")

    def check_fields(self, file: str, settings: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
        """Raises LoadError, with the field and its value, if one of a file's settings is not what it has to be."""
        if wrong := find_wrong(settings, rules):
            self.refuse(f"{file}: {wrong}")

    def read_config(self, own: type[Any]) -> Any:
        """What config.json says, once all that a library reads of the folder beside the weights has been looked at: as
        own, a dataclass, if it is of that model_type, else as transformers has it. Raises LoadError."""
        if not (self.path / "config.json").is_file():
            self.refuse("it has no config.json")
        for name, path in self.list_files().items():
            if not path.is_file():  # a pipe would be waited for
                self.refuse(f"{name} is not a file")
            if name.endswith(".json") and name not in _VOCABULARIES:
                self.read_json(name)
            elif not name.endswith(".safetensors"):
                self._check_size(path)
        settings = self.read_json("config.json")
        model_type = settings.get("model_type")
        if model_type == own.model_type:
            return self._make_config(own, settings)
        if model_type in (WHISPER, WHISPER_CTC):
            return OtherConfig(str(model_type))
        transformers = import_transformers()
        self.check_fields("config.json", settings, make_rules(_find_defaults(model_type)))
        try:
            return transformers.AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # noqa: BLE001  it raises what its parts raise
            self.refuse(f"transformers {transformers.__version__} cannot read its config.json", error)

    def _make_config(self, kind: type[Any], settings: Mapping[str, Any]) -> Any:
        defaults = asdict(kind())
        aliases: Mapping[str, str] = kind.ALIASES
        rules = make_rules({**{alias: defaults[name] for alias, name in aliases.items()}, **defaults})
        self.check_fields("config.json", settings, rules)
        named = {aliases.get(name, name): value for name, value in settings.items() if value is not None}
        config = kind(**{name: value for name, value in named.items() if name in defaults})
        if config.activation_function not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            self.refuse(
                f"config.json: activation_function is {show(config.activation_function)}; it has to be one of {known}"
            )
        return config

    def read_extractor_settings(self) -> dict[str, Any]:
        """What the model's feature extractor is told. Raises LoadError if that is not there, or not for 16 kHz."""
        file = "preprocessor_config.json"
        settings = self.read_json(file)
        if not settings:
            whole = self.read_json("processor_config.json")
            self.check_fields("processor_config.json", whole, {"feature_extractor": Rule(dict)})
            file, settings = "processor_config.json", whole.get("feature_extractor") or {}
        if not settings:
            self.refuse("it has no preprocessor_config.json, which describes its audio input")
        self.check_fields(file, settings, EXTRACTOR)
        if (rate := settings.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
            self.refuse(f"it expects audio at {rate} Hz; only models for {SAMPLE_RATE} Hz can be used")
        return settings

    def check_weights(self) -> None:
        """Raises LoadError unless there are weights that can be read without running code."""
        if not self._list_weights():
            pickled = any(self.path.glob("*.bin"))
            found = "only pickled ones, which can run code when loaded" if pickled else "none"
            self.refuse(f"it has no safetensors weights ({found})")

    def _list_weights(self) -> list[Path]:
        whole = self.path / "model.safetensors"
        return [whole] if whole.is_file() else sorted(self.path.glob("model-*.safetensors"))

    def load(self, kind: Any, dtype: str) -> PreTrainedModel:
        """The model for inference. Raises LoadError unless every weight is in the folder and has its place in the
        model: transformers alone would make up what is missing.

        kind: transformers' class of the model. dtype: one of DTYPES. For int8, the weights are read as they are in the
        file, and converted one at a time.
        """
        stored = self._read_stored_dtype()
        try:
            model, report = kind.from_pretrained(
                self.path,
                dtype=stored if dtype == "int8" else DTYPES[dtype],
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # noqa: BLE001  it raises what its parts raise
            self.refuse(f"its weights cannot be loaded ({shorten(error)})", error)
        self._check_loaded(report)
        if dtype == "int8":
            quantize_linears(model)
            model.float()
        return model.eval()  # type: ignore[no-any-return]

    def fill(self, model: nn.Module, dtype: str, list_sources: Callable[[str], Sequence[str | None]]) -> None:
        """Reads the weights of a model that was built on the meta device. Raises LoadError unless every weight is in
        the folder and has its place in the model.

        dtype: one of DTYPES; for int8, layers are quantised one at a time. list_sources: the names that the parts of a
        parameter have in the files, without "model." before them, one below the other; None for zeros.
        """
        stored = StoredTensors(self._list_weights(), self.refuse)
        parameters = dict(model.named_parameters())
        needed = {name: list(list_sources(name)) for name in parameters}
        shapes = {
            source: (parameters[name].shape[0] // len(sources), *parameters[name].shape[1:])
            for name, sources in needed.items()
            for source in sources
            if source is not None
        }
        missing = [name for name, shape in shapes.items() if stored.shapes.get(name) != shape]
        self._check_keys(missing, stored.shapes.keys() - shapes.keys() - {_OUTPUT})
        if _OUTPUT in stored.shapes and _OUTPUT not in shapes and not stored.are_equal(_OUTPUT, _EMBEDDING):
            self.refuse(f"{_OUTPUT} differs from {_EMBEDDING}, though config.json's tie_word_embeddings is not false")

        def read(path: str, name: str, parameter: torch.Tensor) -> Iterator[torch.Tensor]:
            """Of a module's parameter, some rows after the others."""
            sources = needed[f"{path}.{name}"]
            for source in sources:
                if source is None:
                    yield torch.zeros(parameter.shape[0] // len(sources), *parameter.shape[1:])
                else:
                    yield from stored.read(source)

        for path, module in list(model.named_modules()):
            quantised = dtype == "int8" and type(module) is torch.nn.Linear
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not (quantised and name == "weight"):
                    whole = torch.empty(parameter.shape, dtype=DTYPES[dtype])
                    begin = 0
                    for part in read(path, name, parameter):
                        whole[begin : begin + len(part)] = part
                        begin += len(part)
                    setattr(module, name, torch.nn.Parameter(whole, requires_grad=False))
            if quantised:
                parent, _, name = path.rpartition(".")
                layer = QuantizedLinear(module, read(path, "weight", module.weight))
                setattr(model.get_submodule(parent), name, layer)
        model.eval()

    def count_weights(self, build: Callable[..., Any], config: Any, dtype: str) -> int:
        """Bytes that the model will take once it is loaded in this dtype; of the weights, only the files' headers are
        read. build: makes the model of its configuration. Raises LoadError if there is no such model, or if a file is
        not whole."""
        self._read_stored_dtype()
        try:
            model = build_empty(lambda own: build(own, dtype=DTYPES[dtype]), copy.deepcopy(config))
        except Exception as error:  # noqa: BLE001  it raises what its parts raise
            self.refuse(f"no model can be built from its config.json ({shorten(error)})", error)
        if dtype == "int8":
            quantize_linears(model)
        return sum(-(-tensor.nbytes // _LINE) * _LINE for tensor in [*model.parameters(), *model.buffers()])

    def _read_stored_dtype(self) -> torch.dtype:
        """The one that the files' floating weights have, as their headers say; float32 if they have several."""
        found: set[str] = set()
        for file in self._list_weights():
            try:
                with safe_open(file, framework="pt") as tensors:
                    found |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                self.refuse(f"its weights cannot be loaded ({shorten(error)})", error)
        floating = [name for name in found if "F" in name]
        return _HALVES.get(floating[0], torch.float32) if len(floating) == 1 else torch.float32

    def _check_loaded(self, report: Mapping[str, Any]) -> None:
        """report: what transformers says about a model that it has loaded."""
        missing = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
        self._check_keys(missing, report["unexpected_keys"])
        if report["error_msgs"]:
            self.refuse(f"its weights cannot be loaded ({shorten(report['error_msgs'][0])})")

    def _check_keys(self, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        for fault, names in (("missing", missing), ("unexpected", unexpected)):
            if found := sorted(name for name in names if not _TRAINING_ONLY.search(name)):
                self.refuse(f"its weights do not fit its config.json: {len(found)} {fault} ({', '.join(found[:3])})")

    def identify(self) -> dict[str, str]:
        """Where the model comes from: the hub's id and commit; empty for another folder."""
        if self.path.parent.name == "snapshots":
            return {"id": self.name, "commit": self.path.name}
        return {}

    def list_files(self) -> dict[str, Path]:
        """What is read of the folder, by name."""
        return {path.name: path for pattern in self.files for path in sorted(self.path.glob(pattern))}


def _find_defaults(model_type: Any) -> dict[str, Any]:
    """What a configuration of this type is if nothing is said, by all names that a field has; nothing if transformers
    does not know the type, which it says itself."""
    known = import_transformers().CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in known:
        return {}
    try:
        config = known[model_type]()
    except Exception:  # noqa: BLE001  a type that has no defaults: transformers says itself what is wrong with this one
        return {}
    defaults = dict(config.to_dict())
    return {**{name: defaults[meant] for name, meant in config.attribute_map.items() if meant in defaults}, **defaults}


def is_ctc(config: Any) -> bool:
    """Whether there is a model with a CTC head for it. config: what `ModelFolder.read_config` gives."""
    return config.model_type == WHISPER_CTC or (
        config.model_type != WHISPER and type(config) in import_transformers().MODEL_FOR_CTC_MAPPING
    )


def compose_refusal(name: str, reason: str, remedy: str, engine: str | None = None) -> str:
    """engine: the one that can use the model."""
    return f"{name}: {reason}; {f'use it with --engine {engine}, or ' if engine else ''}{remedy}"


def _find_path(name: str, files: tuple[str, ...], remedy: str) -> Path:
    def refuse(reason: str, cause: BaseException | None = None) -> NoReturn:
        raise LoadError(compose_refusal(name, reason, remedy)) from cause

    folder = Path(name).expanduser()
    if name in INCLUDED and not (folder / "config.json").is_file():  # such a folder may be one of outputs
        return INCLUDED[name]
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        refuse("there is no such folder")
    try:
        return fetch(name, files)
    except NotAvailable as error:
        refuse(f"there is no such folder, and {error}", error)
