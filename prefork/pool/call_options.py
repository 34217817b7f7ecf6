"""What a program wants of a call, beyond that it is done."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_logger = logging.getLogger("prefork")


@dataclass(frozen=True, slots=True)
class CallOptions:
    """As `Runtime.with_options` takes them; stream: what it yields is wanted one by one. Raises ValueError or TypeError
    for what is none."""

    timeout: float | None = None
    retry: bool = True
    priority: int = 0
    model: str | None = None
    on_progress: Callable[[Any], object] | None = None
    stream: bool = False

    def __post_init__(self) -> None:
        limit = self.timeout
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if limit is not None and not (is_number and 0 < limit <= sys.float_info.max):  # a larger int is no float
            raise ValueError(f"timeout must be a number of seconds above 0, or None for no limit, not {limit!r}")
        if not isinstance(self.retry, bool):
            raise TypeError(f"retry must be True or False, not {self.retry!r}")
        if not isinstance(self.priority, int) or isinstance(self.priority, bool):
            raise TypeError(f"priority must be a whole number, higher ones first, not {self.priority!r}")
        if self.on_progress is not None and not callable(self.on_progress):
            raise TypeError(f"on_progress must be a function of what is reported, not {self.on_progress!r}")


USUAL = CallOptions()


def tell(listener: Callable[[Any], object], who: str, value: Any) -> None:
    """Passes a value on to an `on_progress`; that it fails is of no concern to what it is told of."""
    try:
        listener(value)
    except BaseException:
        _logger.exception("%s: on_progress has failed", who)
