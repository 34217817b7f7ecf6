"""What is installed, looked at before anything heavy is imported: what an engine needs, and whether it is of use."""

from __future__ import annotations

from collections.abc import Iterable

from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.platform_matrix.versions import Conflict, Versions, find_conflict, read_versions

_SPEECH = ("torchaudio", "transformers", "huggingface-hub", "safetensors", "num2words", "pyyaml")
# By engine: packages that it imports and no process of prefork's needs without it.
NEEDS = {
    "ctc": _SPEECH,
    "wav2vec2": _SPEECH,
    "ctc-recovery": _SPEECH,
    "match": ("torchaudio",),
    "whisper": _SPEECH,
    "language": _SPEECH,
    "whisper-aligner": _SPEECH,
    "diarize": ("torchaudio", "huggingface-hub", "pyyaml", "pyannote-audio"),
    "stanza": ("stanza", "transformers", "huggingface-hub", "pyyaml"),
    "assign": (),
}
_PARTICULAR = {name for names in NEEDS.values() for name in names}
_FOR_DEVELOPING = "test"  # an extra of prefork


def find_needs(versions: Versions, engines: Iterable[str]) -> set[str]:
    """Packages that these cannot do without. Nothing is known of engines that other packages bring."""
    common = {package.name for package in versions.packages if not package.extra} - _PARTICULAR
    return common | {"torch"} | {name for engine in engines for name in NEEDS.get(engine, ())}


def find_obstacle(engines: Iterable[str] | None) -> Conflict | None:
    """Why none of the engines could be loaded; None if nothing is known. engines: None for all of prefork's that need
    no more than prefork itself."""
    versions = read_versions()
    extras = {package.name for package in versions.packages if package.extra}
    needs = find_needs(versions, NEEDS if engines is None else engines)
    return find_conflict(versions, needs - extras if engines is None else needs)


def require(engines: Iterable[str] | None) -> None:
    """Raises LoadError if what these engines need is not installed, or cannot be used."""
    if (conflict := find_obstacle(engines)) is not None:
        raise LoadError(str(conflict))


def list_versions() -> list[tuple[str, str]]:
    """prefork's, Python's, and those of what prefork needs, with what of its extras is there."""
    versions = read_versions()
    rows = [("prefork", versions.prefork or "not installed, but imported from a folder"), ("python", versions.python)]
    for package in versions.packages:
        if not package.present and not package.extra:
            rows.append((package.name, "not installed"))
        elif package.present and package.extra != _FOR_DEVELOPING:
            rows.append((package.name, package.version or "unknown"))
    return rows


def describe_installation() -> list[tuple[str, str]]:
    """For `prefork matrix`: names and values, a line each."""
    rows = list_versions()
    packages = ", ".join(f"{name} {version}" for name, version in rows if name != "python")
    conflict = find_obstacle(None)
    engines = "; ".join(registry.list_problems())
    return [
        ("packages", packages),
        *([("conflict", str(conflict))] if conflict is not None else []),
        *([("engines", engines)] if engines else []),
    ]
