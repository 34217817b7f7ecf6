"""What could not be imported, in a line: which package, its version, why, and what to type."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, packages_distributions
from types import TracebackType

from prefork.platform_matrix.versions import (
    PAIRED,
    Versions,
    describe_distribution,
    describe_pair,
    find_conflict,
    find_module,
    normalise,
    read_distribution,
    read_versions,
)

_OWN = ("prefork", "__main__", "__mp_main__")


def explain_import(error: BaseException) -> str:
    """What made an import fail, in a line; empty if it was none that failed, or no package's that is installed.

    error: with its traceback. Whatever a package raises while it is imported counts: OSError of a library that is not
    there, AttributeError of another package's that has changed.
    """
    chain = list(_follow(error))
    if not chain or isinstance(chain[-1], MemoryError | KeyboardInterrupt):
        return ""
    modules = [module for link in chain for module in _list_modules(link.__traceback__)]
    importers = [
        (name, file) for name, file in modules if name.partition(".")[0] not in (*_OWN, *sys.stdlib_module_names)
    ]
    root = chain[-1]
    named = (root.name or "") if isinstance(root, ImportError) else ""
    if named and not _exists(named.partition(".")[0]):
        return _describe_missing(named, *importers[-1:])
    if not importers and named.partition(".")[0] not in _OWN:
        importers = [(named, "")] if named else []
    found = _find_distribution(*importers[-1]) if importers else None
    if found is None:
        return ""
    name, version = describe_distribution(found)
    return _describe_broken(normalise(name), version, _find_reason(root))


def _follow(error: BaseException) -> Iterator[BaseException]:
    """The first exception of the chain that an import has failed with, and those that it was raised from."""
    link: BaseException | None = error
    began = False
    while link is not None:
        began = began or isinstance(link, ImportError) or bool(list(_list_modules(link.__traceback__)))
        if began:
            yield link
        link = link.__cause__ or (link.__context__ if began and not link.__suppress_context__ else None)


def _list_modules(trace: TracebackType | None) -> Iterator[tuple[str, str]]:
    """Names and files of those that were being imported, outermost first."""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code.co_name == "<module>":
            name, file = frame.f_globals.get("__name__"), frame.f_globals.get("__file__")
            if isinstance(name, str) and name not in _OWN:
                yield name, file if isinstance(file, str) else ""


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # it is in sys.modules, or was to be kept out of it
        return sys.modules.get(module) is not None


def _find_distribution(module: str, file: str) -> Distribution | None:
    """The one that a module belongs to."""
    top = module.partition(".")[0]
    found = read_distribution(top, file)
    if found is not None:
        return found
    names = packages_distributions().get(top, [])  # half a second, which has no importance any more
    wanted = normalise(module)
    nearest = max(names, key=lambda name: wanted.startswith(normalise(name)), default=None)
    return distribution(nearest) if nearest is not None else None


def _find_reason(error: BaseException) -> str:
    """What it says, in a line; the loader's messages and those of imports need no class to be understood."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "".join(character for character in (lines or [""])[-1] if character.isprintable())
    if text and isinstance(error, ImportError | OSError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _describe_missing(module: str, importer: tuple[str, str] = ("", "")) -> str:
    top = module.partition(".")[0]
    found = _find_distribution(*importer) if importer[0] else None
    name, version = describe_distribution(found) if found is not None else ("", "")
    needed = f", which {name} {version} needs" if name else ""
    if top in sys.stdlib_module_names:
        python = platform.python_version()
        return f"Python {python} was built without its module {module}{needed}; take another Python, or build it anew"
    versions = read_versions()
    for package in versions.packages:
        if find_module(package.name) == top:
            conflict = find_conflict(versions, [package.name])
            if conflict is not None and not package.present:
                return str(conflict)
            return _describe_broken(package.name, package.version, f"there is no module {top}")
    remedy = (
        f"pip install --force-reinstall {name}=={version}" if name and version else "install the package that has it"
    )
    return f"{module} is not installed{needed}; {remedy}"


def _describe_broken(name: str, version: str, reason: str) -> str:
    """A conflict that is known, or else what it is and how to have it anew."""
    versions = read_versions()
    needed = PAIRED if name in PAIRED else (name,)
    if (conflict := find_conflict(versions, needed)) is not None:
        return str(conflict)
    return f"{name} {version or '(of unknown version)'} cannot be imported: {reason}; type: {_find_remedy(versions, name, version)}"


def _find_remedy(versions: Versions, name: str, version: str) -> str:
    if name in PAIRED:
        return describe_pair(versions).replace("pip install", "pip install --force-reinstall", 1)
    package = versions.find(name)
    if package is not None and package.wanted:
        return f"pip install --force-reinstall {package.requirement}"
    return f"pip install --force-reinstall {name}=={version}" if version else f"pip install --force-reinstall {name}"
