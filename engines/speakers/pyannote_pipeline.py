"""A pyannote pipeline on disk or on the hub: its config.yaml and the models that this names, or one clear reason why
not.

Nothing that comes with a model is run: of a checkpoint, tensors and plain values are read, and the model is built from
these by the classes of the installed pyannote.audio. (pyannote.audio's own `from_pretrained` unpickles everything.)
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
import yaml  # type: ignore[import-untyped]

from prefork.engines.checkpoints.hub import NotAvailable, fetch, shorten
from prefork.engines.errors import LoadError
from prefork.engines.speakers.ge2e import build_voice_encoder, is_voice_encoder
from prefork.platform_matrix.versions import find_requirement

DEFAULT = "pyannote/speaker-diarization-community-1"
CLUSTERINGS = ("AgglomerativeClustering", "VBxClustering", "KMeansClustering")
_FILES = ("config.yaml", "*.bin", "*.ckpt", "*.npz")
_WEIGHTS = "pytorch_model.bin"
_PIPELINE = "pyannote.audio.pipelines.SpeakerDiarization"
_MODELS = "pyannote.audio.models."  # what a checkpoint may name as its class lies below
_REMEDY = "give a folder with a pyannote pipeline's config.yaml and the files it names with --model PATH"
# Hyper-parameters of pipelines that say nothing about them. Of segmentation: those of pyannote's
# speaker-diarization@2.1 for models of independent speakers, which has a threshold, and of 3.1 for powersets. Of
# clustering: agglomerative of 3.1, VBx as pyannote.audio 4 has it.
_SEGMENTATION = {"threshold": 0.4442333667381752, "min_duration_off": 0.5817029604921046}
_SEGMENTATION_POWERSET = {"min_duration_off": 0.0}
_CLUSTERING: dict[str, dict[str, Any]] = {
    "AgglomerativeClustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7045654963945799},
    "VBxClustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
    "KMeansClustering": {},
}
# Of voices of the GE2E encoder, which are all alike in part. On six pairs of speakers of speechocean762 (10 to
# 19), four utterances each, two were found in four pairs with 0.65 and 0.7, in two with 0.55 and 0.6, in one below.
_VOICE_ENCODER = {"threshold": 0.65}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a pipeline is put together from, as its config.yaml says.

    step: of the chunks, as a share of their length. plda: the folder, None if there is none. segmentation_values,
    clustering_values: hyper-parameters that the file gives; the others have defaults. voice_encoder: whether the
    embedding is a GE2E encoder.
    """

    name: str
    segmentation: Path
    embedding: Path
    plda: Path | None
    clustering: str
    step: float
    exclude_overlap: bool
    segmentation_values: Mapping[str, Any]
    clustering_values: Mapping[str, Any]
    voice_encoder: bool

    def choose_segmentation_values(self, powerset: bool) -> dict[str, Any]:
        return {**(_SEGMENTATION_POWERSET if powerset else _SEGMENTATION), **self.segmentation_values}

    def choose_clustering_values(self) -> dict[str, Any]:
        encoder = _VOICE_ENCODER if self.voice_encoder and self.clustering == "AgglomerativeClustering" else {}
        return {**_CLUSTERING[self.clustering], **encoder, **self.clustering_values}


def import_pyannote(name: str) -> Any:
    """A module of pyannote.audio. Raises LoadError if that is not installed.

    Its telemetry is left out, not only switched off: importing it starts a thread, and one in every process that is
    forked later.
    """
    if "pyannote.audio" not in sys.modules:
        telemetry: Any = ModuleType("pyannote.audio.telemetry")
        for function in ("track_model_init", "track_pipeline_init", "track_pipeline_apply"):
            setattr(telemetry, function, _ignore)
        sys.modules.setdefault(telemetry.__name__, telemetry)
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torchcodec has no FFmpeg: it reads no audio here
            return import_module(name)
    except ImportError as error:
        if "pyannote.audio" not in sys.modules:
            sys.modules.pop("pyannote.audio.telemetry", None)
        if not (error.name or "").startswith("pyannote"):  # it is there, and something that it needs is not
            raise
        remedy = f"pip install {find_requirement('pyannote-audio')}"
        raise LoadError(f"speaker diarization needs pyannote.audio ({error}); {remedy}") from error


def _ignore(*_: Any, **__: Any) -> None:
    pass


def open_recipe(name: str) -> Recipe:
    """name: a folder with a config.yaml, that file, or a hub id, which is fetched if it is not here yet.

    Raises LoadError if it cannot be had, or is not a pipeline that can be run.
    """
    file = _find_config(name)
    config = _read_config(name, file)
    pipeline = _get_table(name, config, "pipeline")
    if (kind := pipeline.get("name", _PIPELINE)) != _PIPELINE:
        _refuse(name, f"its config.yaml describes a {kind}; only {_PIPELINE} is supported")
    params, values = _get_table(name, pipeline, "params"), _get_table(name, config, "params")
    for part in ("segmentation", "embedding"):
        if not params.get(part):
            _refuse(name, f"its config.yaml names no {part} model (pipeline: params: {part}:)")
    plda = _find_part(name, file.parent, params["plda"], "plda") if params.get("plda") else None
    clustering = params.get("clustering") or ("VBxClustering" if plda else "AgglomerativeClustering")
    if clustering not in CLUSTERINGS:
        _refuse(name, f"its clustering is {clustering!r}; supported are {', '.join(CLUSTERINGS)}")
    if clustering == "VBxClustering" and plda is None:
        _refuse(name, "VBxClustering needs a plda, and its config.yaml names none")
    step = params.get("segmentation_step", 0.1)
    if not isinstance(step, int | float) or not 0 < step <= 1:
        _refuse(name, f"its segmentation_step must be a fraction of the chunk length, 0 to 1, not {step!r}")
    embedding = _find_part(name, file.parent, params["embedding"], "embedding")
    return Recipe(
        name=name,
        segmentation=_find_part(name, file.parent, params["segmentation"], "segmentation"),
        embedding=embedding,
        plda=plda,
        clustering=clustering,
        step=float(step),
        exclude_overlap=bool(params.get("embedding_exclude_overlap", False)),
        segmentation_values=_get_table(name, values, "segmentation"),
        clustering_values=_get_table(name, values, "clustering"),
        voice_encoder=is_voice_encoder(_read_checkpoint(name, embedding)),
    )


def load_segmentation(recipe: Recipe) -> Any:
    """The segmentation model, a `pyannote.audio.Model`. Raises LoadError."""
    model = _build_model(
        recipe, "segmentation", recipe.segmentation, _read_checkpoint(recipe.name, recipe.segmentation)
    )
    specifications = model.specifications
    task: Any = import_pyannote("pyannote.audio.core.task")
    if isinstance(specifications, tuple) or specifications.resolution != task.Resolution.FRAME:
        _refuse(recipe.name, f"{recipe.segmentation.name} is not a speaker segmentation model")
    return model


def load_embedding(recipe: Recipe) -> torch.nn.Module:
    """The model of voices: a `pyannote.audio.Model`, or a GE2E encoder. Raises LoadError."""
    content = _read_checkpoint(recipe.name, recipe.embedding)
    if not is_voice_encoder(content):
        model: torch.nn.Module = _build_model(recipe, "embedding", recipe.embedding, content)
        if hasattr(model, "classifier") or not hasattr(model, "dimension"):
            _refuse(recipe.name, f"{recipe.embedding.name} is not a speaker embedding model")
        return model
    try:
        return build_voice_encoder(content)
    except RuntimeError as error:
        _refuse(recipe.name, f"{recipe.embedding.name} does not fit ({shorten(error)})", error)


def load_clustering(recipe: Recipe) -> Any:
    """The recipe's clustering with its hyper-parameters; a new one for each recording. Raises LoadError."""
    module: Any = import_pyannote("pyannote.audio.pipelines.clustering")
    kind = getattr(module, recipe.clustering)
    try:
        if recipe.plda is None or recipe.clustering != "VBxClustering":
            clustering = kind(metric="cosine")
        else:
            plda: Any = import_pyannote("pyannote.audio.core.plda")  # numpy refuses pickles unless it is told to
            files = [recipe.plda / file for file in ("xvec_transform.npz", "plda.npz")]
            clustering = kind(plda.PLDA(*files), metric="cosine")
        clustering.instantiate(recipe.choose_clustering_values())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        _refuse(recipe.name, f"its clustering cannot be set up ({shorten(error)})", error)
    return clustering


def list_files(recipe: Recipe) -> dict[str, Path]:
    """What is read of the models, by what it is read for."""
    plda = sorted(recipe.plda.glob("*.npz")) if recipe.plda else []
    return {"segmentation": recipe.segmentation, "embedding": recipe.embedding, **{file.name: file for file in plda}}


class _Unread:
    """Stands for an object of a class that is not needed: it takes what the file has for it, and does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _UnreadTable(dict[Any, Any]):
    """Stands for a dictionary of another class."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


def _read_checkpoint(name: str, file: Path) -> dict[str, Any]:
    """The file's content, tensors still on disk. Of classes, only those that describe a model are made; whatever else
    it names is never looked up, much less called."""
    task: Any = import_pyannote("pyannote.audio.core.task")
    known: dict[str, Any] = {
        "pyannote.audio.core.task.Specifications": task.Specifications,
        "pyannote.audio.core.task.Problem": task.Problem,
        "pyannote.audio.core.task.Resolution": task.Resolution,
        "collections.defaultdict": _UnreadTable,
    }
    try:
        zipped = zipfile.is_zipfile(file)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipped else []
        with torch.serialization.safe_globals([(known.get(found, _Unread), found) for found in names]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = [line for line in str(error).splitlines() if "GLOBAL" in line]
        _refuse(
            name,
            f"{file.name} is not a checkpoint, or would run code ({shorten(named[0] if named else error)})",
            error,
        )
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError) as error:
        _refuse(name, f"{file.name} cannot be read as a checkpoint ({shorten(error)})", error)
    if not isinstance(content, dict):
        _refuse(name, f"{file.name} is not a checkpoint of a model")
    return content


def _build_model(recipe: Recipe, part: str, file: Path, content: Mapping[str, Any]) -> Any:
    """As `pyannote.audio.Model.from_pretrained` builds it from a checkpoint."""
    try:
        described = content["pyannote.audio"]
        architecture, specifications = described["architecture"], described["specifications"]
        module, kind = str(architecture["module"]), str(architecture["class"])
        state, settings = content["state_dict"], dict(content.get("hyper_parameters", {}))
    except (KeyError, TypeError, ValueError) as error:
        _refuse(recipe.name, f"{file.name} is not a pyannote.audio model, which {part} must be", error)
    base: Any = import_pyannote("pyannote.audio")
    if not module.startswith(_MODELS):
        _refuse(recipe.name, f"{file.name} is from {module}; only models that come with pyannote.audio can be used")
    try:
        found = getattr(import_pyannote(module), kind)
        if not (isinstance(found, type) and issubclass(found, base.Model)):
            _refuse(recipe.name, f"{file.name} is a {module}.{kind}, which is not a model")
        taken = signature(found).parameters
        model = found(**{key: value for key, value in settings.items() if key in taken and key != "task"})
        model.specifications = specifications
        model.setup()
        _take_weights(model, state)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        _refuse(recipe.name, f"{file.name} cannot be built as a {kind} ({shorten(error)})", error)
    return model.eval()


def _take_weights(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Raises RuntimeError unless every weight is there and has its place; those of a loss belong to training."""
    missing, unknown = model.load_state_dict(state, strict=False)
    surplus = [key for key in unknown if not key.startswith(("loss_func", "task.", "validation_metric"))]
    if missing or surplus:
        raise RuntimeError(f"{len(missing)} weights missing, {len(surplus)} unexpected: {[*missing, *surplus][:3]}")


def _find_config(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
            _refuse(name, "there is no such folder")
        path = _fetch(name, name, None)
    if not (path / "config.yaml").is_file():
        _refuse(name, "it has no config.yaml")
    return path / "config.yaml"


def _read_config(name: str, file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        _refuse(name, f"{file.name} cannot be read ({shorten(error)})", error)
    if not isinstance(config, dict):
        _refuse(name, f"{file.name} is not a table of settings")
    return config


def _get_table(name: str, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        _refuse(name, f"{key} in its config.yaml is not a table of settings")
    return table


def _find_part(name: str, folder: Path, part: Any, what: str) -> Path:
    """The file of a model, or the folder of a PLDA, that a config.yaml names: `$model/...`, a path, or a hub id."""
    reference, subfolder, revision = part, "", None
    if isinstance(part, Mapping):
        reference, subfolder, revision = part.get("checkpoint"), part.get("subfolder") or "", part.get("revision")
    if not isinstance(reference, str):
        _refuse(name, f"{what} in its config.yaml is neither a path nor a hub id")
    if "@" in reference and not (folder / reference).exists():
        reference, revision = reference.split("@", 1)
    local = folder / reference.removeprefix("$model").lstrip("/") if reference.startswith("$model") else None
    path = (local or folder / Path(reference).expanduser()) / subfolder
    hub = local is None and reference.count("/") == 1 and not reference.startswith((".", "/", "~"))
    if not path.exists() and hub:
        path = _fetch(name, reference, revision, "" if what == "plda" else f"{subfolder}/{_WEIGHTS}".lstrip("/"))
        path = path / subfolder if what == "plda" else path
    if path.is_dir() and what != "plda":
        path = path / _WEIGHTS
    files = [path / "xvec_transform.npz", path / "plda.npz"] if what == "plda" else [path]
    for file in files:
        if not file.is_file():
            _refuse(name, f"its config.yaml names {reference} as {what}, but there is no {file}")
    return path


def _fetch(name: str, repository: str, revision: str | None, file: str = "") -> Path:
    """A repository's folder, or one file of it."""
    try:
        return fetch(repository, _FILES, revision, file)
    except NotAvailable as error:
        _refuse(name, str(error), error)


def _refuse(name: str, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise LoadError(f"{name}: {reason}; {_REMEDY}") from cause
