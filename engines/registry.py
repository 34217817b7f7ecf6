"""Engines and services by name: this package's own and those that other packages bring (entry points `prefork.engines`
and `prefork.services`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from prefork.engines.base import Engine, LoadError

GROUP = "prefork.engines"
SERVICES = "prefork.services"


def names() -> list[str]:
    """The engines that are installed. Imports none of them."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def create(name: str, options: Mapping[str, Any]) -> Engine:
    """An engine with its options. Raises LoadError if there is none of that name, or it refuses an option."""
    found = find(name)
    kind = _import(found)
    if not (isinstance(kind, type) and issubclass(kind, Engine)):
        raise LoadError(f"engine {name}: {found.value} is not a prefork.engines.base.Engine; mend its entry point")
    engine: Engine = _call(name, kind, options)
    return engine


def create_service(name: str, options: Mapping[str, Any]) -> Any:
    """A service with its options: what does an engine's work elsewhere. Raises LoadError as `create` does."""
    (found,) = entry_points(group=SERVICES, name=name)
    return _call(name, _import(found), options)


@cache
def is_service(name: str) -> bool:
    """Whether what is called so is a service, and no engine."""
    return bool(entry_points(group=SERVICES, name=name))


def _import(found: EntryPoint) -> Any:
    try:
        return found.load()
    except ImportError as error:
        reason = f"engine {found.name} cannot be imported from {found.value}: {error}; install what it needs"
        raise LoadError(reason) from error


def _call(name: str, kind: Any, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except TypeError as error:
        raise LoadError(f"engine {name} does not take these options: {error}") from error


def find(name: str) -> EntryPoint:
    """The entry point of an engine. Raises LoadError if there is none of that name."""
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        known = names()
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "install the package that brings it"
        raise LoadError(f"no engine named {name!r}; there are {', '.join(known) or 'none'}; {hint}")
    return found[0]
