"""Engines by name: this package's own and those that other packages bring (entry points `prefork.engines`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from engines.base import Engine, LoadError

GROUP = "prefork.engines"


def names() -> list[str]:
    """The engines that are installed. Imports none of them."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def create(name: str, options: Mapping[str, Any]) -> Engine:
    """An engine with its options. Raises LoadError if there is none of that name, or it refuses an option."""
    found = find(name)
    try:
        kind = found.load()
    except ImportError as error:
        raise LoadError(
            f"engine {name} cannot be imported from {found.value}: {error}; install what it needs"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Engine)):
        raise LoadError(f"engine {name}: {found.value} is not an engines.base.Engine; mend its entry point")
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
