"""Several calls of one function that go to a worker together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class ChunkOf:
    """Calls the function once for each tuple of arguments; the list of what it returns. What it raises ends the chunk.

    With a model, that comes first, as with a single call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__qualname__ = f"a chunk of {getattr(function, '__qualname__', repr(function))}"

    def __call__(self, *given: Any) -> list[Any]:
        *models, chunk = given
        calls: Sequence[tuple[Any, ...]] = chunk
        return [self.function(*models, *arguments) for arguments in calls]
