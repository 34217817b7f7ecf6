"""What could not be imported, in a line: which package, its version, why, and what to type."""

from __future__ import annotations

import errno
import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, distributions, packages_distributions
from types import TracebackType

from prefork.platform_matrix.versions import (
    PAIRED,
    Package,
    Versions,
    describe_distribution,
    describe_pair,
    find_conflict,
    find_module,
    is_in,
    normalise,
    read_distribution,
    read_versions,
)

_OWN = ("prefork", "__main__", "__mp_main__")
_Module = tuple[str, str]  # its name, and its file


def explain_import(error: BaseException) -> str:
    """What made an import fail, in a line; empty if it was none that failed, or no package's that is known.

    error: with its traceback. Whatever a package raises while it is imported counts: OSError of a library that is not
    there, AttributeError of another package's that has changed.
    """
    chain = list(_follow(error))
    if not chain or _is_for_memory(chain[-1]):
        return ""
    versions = read_versions()
    modules = [module for link in chain for module in _list_modules(link.__traceback__)]
    foreign = [module for module in modules if _find_top(module[0]) not in (*_OWN, *sys.stdlib_module_names)]
    importer = _identify(versions, *foreign[-1]) if foreign else None
    root = chain[-1]
    named = (root.name or "") if isinstance(root, ImportError) else ""
    if isinstance(root, ModuleNotFoundError) and named and not _exists(_find_top(named)):
        return _describe_missing(versions, named, importer)
    if named and not foreign and _find_top(named) not in _OWN:
        importer = _identify(versions, named)
    if importer is None:
        return ""
    if _has_asked_for_metadata(root.__traceback__) and (culprit := _find_unreadable()) is not None:
        what = f"{importer.name} {importer.version} cannot be imported"
        return f"{what}, because it asks what all packages bring: {culprit}"
    return _describe_broken(versions, importer, find_reason(root))


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


def _find_top(module: str) -> str:
    return module.partition(".")[0]


def _is_for_memory(error: BaseException) -> bool:
    """Then the package is not to blame."""
    starved = isinstance(error, OSError) and error.errno == errno.ENOMEM
    # The loader says `failed to map segment from shared object` where the address space is limited (ulimit -v).
    said = any(text in str(error) for text in ("annot allocate memory", "failed to map segment"))
    return starved or isinstance(error, MemoryError) or said


def _find_package(versions: Versions, module: str) -> Package | None:
    """Of those that prefork needs, the one that a module belongs to."""
    return next((package for package in versions.packages if is_in(module, find_module(package.name))), None)


def _identify(versions: Versions, module: str, file: str = "") -> Package | None:
    """The package that a module belongs to."""
    package = _find_package(versions, module)
    if package is not None and package.present:
        return package
    top = _find_top(module)
    found = read_distribution(top, file)
    if found is None:
        wanted = normalise(module)
        names = packages_distributions().get(top, [])  # takes half a second, which has no importance any more
        nearest = max(names, key=lambda name: wanted.startswith(normalise(name)), default=None)
        found = distribution(nearest) if nearest is not None else None
    return Package(*describe_distribution(found)) if found is not None else None


def _has_asked_for_metadata(trace: TracebackType | None) -> bool:
    """Whether Python's own reader of what all packages say of themselves has raised this."""
    name = ""
    while trace is not None:
        name, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return is_in(str(name), "importlib.metadata")


def _find_unreadable() -> str | None:
    """What the first package says of itself that cannot be read, and what to type."""
    for found in distributions():
        try:
            found.entry_points  # noqa: B018  it is read here
        except (TypeError, ValueError) as error:
            package = Package(*describe_distribution(found))
            what = f"the entry points of {package.name} {package.version} cannot be read ({find_reason(error)})"
            return f"{what}; type: pip uninstall -y {package.name}"
    return None


def find_reason(error: BaseException) -> str:
    """What it says, in a line; the loader's messages and those of imports need no class to be understood."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "".join(character for character in (lines or [""])[0] if character.isprintable())
    if text and isinstance(error, ImportError | OSError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _describe_missing(versions: Versions, module: str, importer: Package | None) -> str:
    package = _find_package(versions, module)
    if package is not None and package.present:
        return _describe_broken(versions, package, "its files are not there, only what pip has noted of them")
    if package is not None and (conflict := find_conflict(versions, [package.name])) is not None:
        return str(conflict)
    needed = f", which {importer.name} {importer.version} needs" if importer is not None else ""
    if _find_top(module) in sys.stdlib_module_names:
        python = platform.python_version()
        return f"Python {python} was built without its module {module}{needed}; take another Python, or build it anew"
    if importer is not None and importer.name:
        return f"there is no module {module}{needed}; type: {_reinstall(versions, importer)}"
    return f"there is no module {module}; install the package that has it, or name its folder in PYTHONPATH"


def _describe_broken(versions: Versions, package: Package, reason: str) -> str:
    """A conflict that is known, or else what it is and how to have it anew."""
    needed = PAIRED if package.name in PAIRED else (package.name,)
    if (conflict := find_conflict(versions, needed)) is not None:
        return str(conflict)
    what = f"{package.name} {package.version or 'of an unknown version'}"
    return f"{what} cannot be imported: {reason}; type: {_reinstall(versions, package)}"


def _reinstall(versions: Versions, package: Package) -> str:
    if package.name in PAIRED:
        command = describe_pair(versions)
    elif package.wanted or not package.version:
        command = f"pip install {package.requirement}"
    else:
        command = f"pip install {package.name}=={package.version}"
    return command.replace("pip install", "pip install --force-reinstall", 1)
