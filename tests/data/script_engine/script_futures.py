"""Results and exceptions that make trouble where they arrive."""

from __future__ import annotations

import builtins
import time
from pathlib import Path
from typing import Any


def _fail(kind: str) -> Any:
    raise getattr(builtins, kind)("as it is unpickled")


class BadResult:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.kind,)


class BadError(Exception):
    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.kind,)


def make_bad_result(kind: str) -> BadResult:
    return BadResult(kind)


def make_bad_exception(kind: str) -> None:
    raise BadError(kind)


def put(queue: Any, value: int) -> int:
    queue.put(value)
    return value


def touch(path: Path, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    path.touch()
