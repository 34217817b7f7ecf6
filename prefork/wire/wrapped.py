"""What a worker calls in place of a user's function. With a model, that comes first, as with the function itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def name_function(function: Callable[..., Any]) -> str:
    """For messages. Not its repr, which may be as long as what a partial holds."""
    while hasattr(function, "func"):  # a partial's
        function = function.func
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


class ChunkOf:
    """Calls the function once for each tuple of arguments; the list of what it returns. What it raises ends the
    chunk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__qualname__ = f"a chunk of {name_function(function)}"

    def __call__(self, *given: Any) -> list[Any]:
        *models, chunk = given
        calls: Sequence[tuple[Any, ...]] = chunk
        return [self.function(*models, *arguments) for arguments in calls]


class OnModel:
    """Calls the function with one of several models."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.__qualname__ = name_function(function)

    def __call__(self, models: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> Any:
        return self.function(models[self.name], *args, **kwargs)


class Reporting:
    """A function whose reports somebody listens to: see prefork.wire.progress. yields: it is a generator function, and
    what it yields is wanted one by one."""

    def __init__(self, function: Callable[..., Any], yields: bool) -> None:
        self.function = function
        self.yields = yields
        self.__qualname__ = name_function(function)


class LoadEach:
    """Calls each of several load functions; what they return, by name."""

    def __init__(self, functions: Mapping[str, Callable[[], Any]]) -> None:
        self.functions = dict(functions)

    def __call__(self) -> dict[str, Any]:
        return {name: self._load(name) for name in self.functions}

    def _load(self, name: str) -> Any:
        try:
            return self.functions[name]()
        except Exception as error:
            error.add_note(f"it is the model {name!r} that cannot be loaded")
            raise
