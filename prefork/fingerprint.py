"""Fingerprints: what a finished output was made with. Spelled here for all engines and services, whoever brings them.

An engine says its settings and names its model's files. What it might forget is added here: which prefork made the
output, with which versions of what computes, and the digests of the whole files.

Digests of large files are kept in the user's cache. They are computed in a thread of the supervisor's process, which
forks nothing; in the zygote a thread would be a hazard. Of 1.0 GB in the page cache, SHA-256 took 0.76 s on one core of
an AMD EPYC with SHA instructions, BLAKE2b 1.40 s; from disk, 1.8 s and 2.0 s.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefork.engines import registry
from prefork.engines.errors import LoadError
from prefork.engines.files import FileState
from prefork.installation import NEEDS
from prefork.platform_matrix.cache import Cache
from prefork.platform_matrix.versions import describe_distribution, find_version, read_requirements

# The version of prefork since which outputs are what they are. What may change an output raises it, together with the
# version in pyproject.toml, and all that was made before is made again; tests/test_output_sources.py reminds.
OUTPUTS = "0.2.3"
# Packages that outputs come from; those that only fetch and read files are left out.
_COMPUTING = ("torch", "torchaudio", "transformers", "stanza", "pyannote-audio", "num2words")
_LARGE = 1 << 20  # bytes; below that, reading a file costs less than looking it up
_MOST_DIGESTS = 500
SETTLED_SECONDS = 2.0  # the coarsest clock of file systems in use, FAT's: what is younger may change unnoticed
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST = 40  # characters of a setting that are shown


@dataclass(frozen=True, slots=True)
class ModelFile(FileState):
    """A file that a model is read from, as it was before that."""

    @classmethod
    def note(cls, path: Path) -> Self:
        """Raises LoadError."""
        try:
            real = path.resolve()
            status = real.stat()
        except OSError as error:
            raise LoadError(f"{path}: cannot be read ({error.strerror}); check the model's files") from error
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise LoadError(f"{path}: is not a file; check the model's files")
        return cls.describe(real, status)

    def digest(self) -> str:
        """SHA-256 of the whole content, in hexadecimal. Raises LoadError if it is not there any more."""
        cache = Cache("digests.json", _MOST_DIGESTS)
        state = [self.size, *self.changed, self.inode]
        if self.size >= _LARGE and (known := _read_entry(cache.load(self.path), state)):
            return known
        try:
            with open(self.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                now = self.describe(Path(self.path), os.fstat(stream.fileno()))
        except OSError as error:
            raise LoadError(f"{self.path}: cannot be read ({error.strerror}); check the model's files") from error
        if now != self:
            raise LoadError(f"{self.path}: has changed since the model was read from it; start again")
        if self.size >= _LARGE and time.time() - max(self.changed) / 1e9 > SETTLED_SECONDS:
            cache.store(self.path, {"state": state, "sha256": digest})
        return digest


def _read_entry(entry: Any, state: list[int]) -> str:
    """The digest, if it is one, and of this state; else an empty text."""
    if not isinstance(entry, dict) or entry.get("state") != state:
        return ""
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else ""


def note_files(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine says of itself, its files as they are now: for a Path a ModelFile, for that of a folder one for
    each file in it. Before the model is loaded, so that nothing can take a file's place unnoticed. Raises LoadError."""

    def note(value: Any) -> Any:
        if not isinstance(value, Path):
            return value
        if value.is_dir():
            files = sorted(path for path in value.rglob("*") if path.is_file())
            return {path.relative_to(value).as_posix(): ModelFile.note(path) for path in files}
        return ModelFile.note(value)

    return dict(_replace(fingerprint, note))


def list_files(noted: Any) -> set[ModelFile]:
    """Those that a fingerprint names."""
    found: set[ModelFile] = set()
    _replace(noted, lambda value: found.add(value) if isinstance(value, ModelFile) else None)
    return found


def complete(name: str, noted: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of an engine or a service, in JSON values. Reads what was never digested: seconds for gigabytes.

    noted: as `note_files` returns it. Raises LoadError.
    """
    whole = _replace(noted, lambda value: value.digest() if isinstance(value, ModelFile) else value)
    return {**whole, "prefork": OUTPUTS, "packages": find_packages(name)}


def find_packages(name: str) -> dict[str, str]:
    """The installed versions of what an engine or a service computes with, as the package that brings it declares
    them, and of that package if it is not prefork. Raises LoadError if there is none of that name."""
    distribution = registry.find_distribution(name)
    owner, version = describe_distribution(distribution) if distribution is not None else ("", "")
    if owner == "prefork":
        needed, found = set(NEEDS.get(name, ())), {}
    else:
        declared = read_requirements(distribution) if distribution is not None else []
        needed = {package.name for package in declared if not package.extra}
        found = {owner: version} if owner else {}
    if not registry.is_service(name):
        needed.add("torch")
    return {**found, **{package: find_version(package) for package in _COMPUTING if package in needed}}


def _replace(value: Any, convert: Callable[[Any], Any]) -> Any:
    """The same tables and lists with other values."""
    if isinstance(value, Mapping):
        return {key: _replace(item, convert) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, convert) for item in value]
    return convert(value)


# -- why something is made again ---------------------------------------------------------------------------------------


def explain(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why what was made with one is made again with the other; empty if they are the same.

    Both are a journal's: `outputs`, and `stages` with the fingerprint of each. The old one may be of any prefork.
    """
    before, now = (list(one.get("stages", ())) for one in (old, new))
    if any("prefork" not in stage for stage in before):  # of before 0.2.0: not even the same things stand in it
        version = next((stage["version"] for stage in before if "version" in stage), "")
        return _explain_version(version, OUTPUTS)
    names = [[stage.get("engine") for stage in stages] for stages in (before, now)]
    if names[0] != names[1]:
        return f"{' and '.join(map(str, names[0]))} made them"
    reasons = [] if old.get("outputs") == new.get("outputs") else ["other outputs are wanted"]
    reasons += [] if old.get("selection") == new.get("selection") else ["another track or other channels are read"]
    reasons += [] if old.get("language") == new.get("language") else ["plain texts are read in another language"]
    reasons += [] if old.get("data") == new.get("data") else ["other rows or columns are wanted"]
    for stages in zip(before, now, strict=True):
        reasons += [_explain_value(*difference) for difference in _find_differences("", *stages)]
    return ", ".join(dict.fromkeys(reasons))


def _explain_version(old: Any, new: Any) -> str:
    return (
        f"prefork {old} made them, whose outputs are not those of {new}"
        if old
        else f"a prefork older than {new} made them"
    )


def _find_differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of whatever differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*new, *old)):
            yield from _find_differences(str(key), old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def _explain_value(name: str, old: Any, new: Any) -> str:
    if name == "prefork":
        return _explain_version(old, new)
    shown = [str(value) for value in (old, new)]
    if any(_DIGEST.fullmatch(text) or len(text) > _LONGEST for text in shown) or None in (old, new):
        return f"{name} has changed"
    return f"{name} was {shown[0]} and is {shown[1]}"


def summarise(reasons: Mapping[str, int]) -> str:
    """One line for the user. reasons: how many files will be made again for each.

    >>> summarise({"dtype was float32 and is int8": 1, "torch was 2.13.0 and is 2.14.1": 12})
    '13 files will be made again: torch was 2.13.0 and is 2.14.1 (12); dtype was float32 and is int8 (1)'
    """
    total = sum(reasons.values())
    parts = sorted(reasons, key=lambda reason: -reasons[reason])
    listed = [f"{reason} ({reasons[reason]})" if len(parts) > 1 else reason for reason in parts[:3]]
    more = [f"other reasons ({sum(reasons[reason] for reason in parts[3:])})"] if len(parts) > 3 else []
    return f"{total} file{'s' * (total != 1)} will be made again: {'; '.join(listed + more)}"
