"""What engines are to the result cache: whatever may change a bit of what they make, and nothing else.

An engine's fingerprint has its settings and its model's files, as `prefork.fingerprint` completes it. What a person
would have to remember is added here: the digest of the source itself, every package that prefork needs, the processor,
the threads, and the variables that libraries read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import prefork
from prefork.cache.keys import digest
from prefork.engines import registry
from prefork.engines.errors import LoadError
from prefork.engines.files import FileState
from prefork.fingerprint import ModelFile, list_files
from prefork.installation import list_versions
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.platform_matrix.systems import SYSTEM
from prefork.platform_matrix.versions import find_version

_BESIDE = ("tokenizers", "scipy", "scikit-learn")  # packages that others bring, and outputs come from
# Variables by which libraries compute otherwise, but for those that prefork sets, and those by which models are found.
_COMPUTING = ("ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "MKL_", "NVIDIA_", "ONEDNN_", "PYTORCH_", "TORCH")
_FINDING = ("HF_", "HUGGINGFACE_", "PYANNOTE_", "STANZA_", "TRANSFORMERS_", "XDG_", "HOME", "TORCH_HOME")
_SECRETS = ("TOKEN", "KEY")  # ends of names
_FILE = "model file"  # what stands for one in JSON


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What engines compute with. device: its kind. names: of GPUs. threads: of whoever runs the model. longest: samples
    of a segment, beyond which its job fails."""

    device: str
    names: tuple[str, ...]
    threads: int
    longest: int | None

    @classmethod
    def of(cls, plan: Plan, longest: int | None = None) -> Surroundings:
        threads = plan.server_threads if plan.strategy is Strategy.SERVER else plan.threads
        return cls(plan.device, tuple(sorted({device.name for device in plan.chosen})), threads, longest)


def identify(fingerprint: Mapping[str, Any], engine: str, surroundings: Surroundings) -> bytes:
    """fingerprint: the engine's, completed. Raises LoadError if its source cannot be read."""
    return digest(
        json.dumps(fingerprint, sort_keys=True),
        digest_source(engine),
        describe_machine(),
        _read_variables(_COMPUTING),
        surroundings,
    )


@cache
def digest_source(engine: str) -> bytes:
    """Of all files of the package that brings an engine, and of prefork. Raises LoadError."""
    package = registry.find(engine).module.partition(".")[0]
    roots = {Path(prefork.__file__).parent}
    if package != "prefork":
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError) as error:
            raise LoadError(f"engine {engine}: its package {package} cannot be found ({error})") from error
        if found is not None:
            roots |= {Path(place) for place in found.submodule_search_locations or (found.origin or "",)}
    return digest(*[_digest_files(root) for root in sorted(roots)])


@cache
def _digest_files(root: Path) -> bytes:
    """Of a package's folder, or of a module's file: names and contents. Data is read by its size and time alone."""
    found = hashlib.sha256()
    for path in sorted(_list_files(root)):
        try:
            status = path.stat()
            code = path.suffix == ".py"
            content = path.read_bytes() if code else (status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise LoadError(f"{path}: cannot be read ({error.strerror}); check the installation") from error
        found.update(digest(path.relative_to(root).as_posix(), content))
    return found.digest()


def _list_files(root: Path) -> Sequence[Path]:
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    for folder, folders, names in os.walk(root, followlinks=True):  # prefork's own has two links
        folders[:] = [name for name in folders if name not in ("__pycache__", "docs", "samples", "models")]
        found += [Path(folder, name) for name in names]
    return found


@cache
def describe_machine() -> bytes:
    """The processor, which decides in what order libraries add up, and every package that computes or decodes."""
    versions = [*list_versions(), *((name, find_version(name)) for name in _BESIDE)]
    return digest(tuple(versions), sys.version, platform.machine(), sys.byteorder, _describe_processor())


def _describe_processor() -> str:
    return SYSTEM.read_processor() or platform.processor()


def _read_variables(starts: tuple[str, ...]) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(starts) and not k.endswith(_SECRETS)}


# -- models that were looked at before ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownModels:
    """What the engines of a runtime said of themselves. fingerprints: by engine, as `note_files` returns them. weights,
    private: bytes, as an inventory has them."""

    fingerprints: Mapping[str, Mapping[str, Any]]
    weights: int | None
    private: int | None

    def dump(self) -> bytes:
        """With the folders that the models lie in, which change if a file comes or goes."""
        files = list_files(self.fingerprints)
        folders = sorted({parent for file in files for parent in list(Path(file.path).parents)[:2]})
        states = [_describe(FileState.note(folder)) for folder in folders]
        content = [self.fingerprints, self.weights, self.private, states]
        return json.dumps(content, default=lambda file: {_FILE: _describe(file)}).encode()

    @classmethod
    def load(cls, data: bytes) -> KnownModels | None:
        """None if anything is not what it was."""
        fingerprints, weights, private, states = json.loads(data, object_hook=_read_file)
        files = list_files(fingerprints)
        folders = [FileState(path, size, tuple(changed), inode) for path, size, changed, inode in states]
        if not all(file.is_current() for file in (*files, *folders)):
            return None
        return cls(fingerprints, weights, private)


def make_models_key(stages: Sequence[tuple[str, Mapping[str, Any]]], device: str) -> bytes:
    """What engines with these options say of themselves is kept under it. device: its kind, and what weights are
    best held in there."""
    sources = [digest_source(name) for name, _ in stages]
    options = json.dumps([[name, dict(given)] for name, given in stages], sort_keys=True, default=os.fspath)
    return digest("models", options, device, *sources, describe_machine(), _read_variables(_FINDING), Path.cwd())


def _describe(state: FileState) -> list[Any]:
    return [state.path, state.size, list(state.changed), state.inode]


def _read_file(value: dict[str, Any]) -> Any:
    if value.keys() != {_FILE}:
        return value
    path, size, changed, inode = value[_FILE]
    return ModelFile(path, size, tuple(changed), inode)
