"""Engines and services by name: this package's own and those that other packages bring (entry points `prefork.engines`
and `prefork.services`). What one of them brings that is broken costs nobody else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from prefork.engines.base import Engine
from prefork.engines.errors import LoadError
from prefork.platform_matrix.imports import explain_import, find_reason
from prefork.platform_matrix.versions import describe_distribution, normalise

GROUP = "prefork.engines"
SERVICES = "prefork.services"
_OWN = "prefork"


def names() -> list[str]:
    """The engines that are installed. Imports none of them."""
    return sorted({entry.name for entry in _read(GROUP)[0]})


def create(name: str, options: Mapping[str, Any]) -> Engine:
    """An engine with its options. Raises LoadError if there is none of that name, or it refuses an option."""
    found = find(name)
    kind = _import(found)
    if not (isinstance(kind, type) and issubclass(kind, Engine)):
        raise LoadError(f"engine {name}: {found.value} is not a prefork.engines.base.Engine; fix its entry point")
    engine: Engine = _call(name, kind, options)
    return engine


def create_service(name: str, options: Mapping[str, Any]) -> Any:
    """A service with its options: what does an engine's work elsewhere. Raises LoadError as `create` does."""
    return _call(name, _import(_choose(name, SERVICES)), options)


@cache
def is_service(name: str) -> bool:
    """Whether what is called so is a service, and no engine."""
    return any(entry.name == name for entry in _read(SERVICES)[0])


def find(name: str) -> EntryPoint:
    """The entry point of an engine. Raises LoadError if there is none of that name, or several packages have one."""
    return _choose(name, GROUP)


def find_distribution(name: str) -> Distribution | None:
    """The package that brings an engine or a service; None if that cannot be known. Raises LoadError as `find` does."""
    return _choose(name, SERVICES if is_service(name) else GROUP).dist


def list_models(engines: list[str]) -> dict[str, str]:
    """What each of the engines is imported from; of those that several packages have, the first one's."""
    entries = {entry.name: entry.value for entry in reversed(_read(GROUP)[0])}
    return {name: entries[name] for name in engines}


def list_problems() -> list[str]:
    """What cannot be used of what other packages bring, a line each."""
    entries, problems = _read(GROUP)
    for name in sorted({entry.name for entry in entries}):
        try:
            find(name)
        except LoadError as error:
            problems.append(str(error))
    return problems


def _choose(name: str, group: str) -> EntryPoint:
    """prefork's own name is nobody else's."""
    entries, problems = _read(group)
    found = [entry for entry in entries if entry.name == name]
    if not found:
        known = sorted({entry.name for entry in entries})
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "install the package that provides it"
        more = "".join(f"; {problem}" for problem in problems)
        raise LoadError(f"no engine named {name!r}; there are {', '.join(known) or 'none'}; {hint}{more}")
    own = [entry for entry in found if _describe_owner(entry)[0] == _OWN]
    if len(found) > 1 and not own:
        owners = " and ".join(" ".join(filter(None, _describe_owner(entry))) or "another package" for entry in found)
        raise LoadError(f"engine {name} is provided by {owners}; uninstall all but one of them")
    return (own or found)[0]


def _describe_owner(entry: EntryPoint) -> tuple[str, str]:
    """The package that brings it, and its version; empty where it does not say them."""
    return describe_distribution(entry.dist) if entry.dist is not None else ("", "")


def _read(group: str) -> tuple[list[EntryPoint], list[str]]:
    """The entry points of all packages, of each that is there several times those of the first, as Python imports it;
    and what cannot be read, a line each."""
    entries: list[EntryPoint] = []
    problems: list[str] = []
    seen: set[str] = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeDecodeError) as error:
            problems.append(_describe_problem(distribution, error))
            continue
        if group not in text:
            continue
        name = normalise(describe_distribution(distribution)[0])
        if name and name in seen:
            continue
        seen.add(name)
        try:
            entries += distribution.entry_points.select(group=group)
        except (TypeError, ValueError) as error:  # of a line that names nothing, importlib.metadata says no more
            problems.append(_describe_problem(distribution, error))
    return entries, problems


def _describe_problem(distribution: Distribution, error: Exception) -> str:
    owner = " ".join(filter(None, describe_distribution(distribution))) or "a package"
    return f"the entry points of {owner} cannot be read ({find_reason(error)}); reinstall or uninstall it"


def _import(found: EntryPoint) -> Any:
    try:
        return found.load()
    except KeyboardInterrupt:
        raise
    except LoadError as error:
        raise LoadError(f"engine {found.name}: {error}") from error
    except BaseException as error:
        reason = explain_import(error) or f"{_describe(error)}; fix it, or uninstall {_name_owner(found)}"
        raise LoadError(f"engine {found.name} cannot be imported from {found.value}: {reason}") from error


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it calls sys.exit"
    return find_reason(error)


def _name_owner(found: EntryPoint) -> str:
    return _describe_owner(found)[0] or "the package that provides it"


def _call(name: str, kind: Any, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except TypeError as error:
        raise LoadError(f"engine {name} does not take these options: {error}") from error
