"""Progress of a call, from the worker that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Progress:
    """listener: of the call that runs in this process; None if nobody listens, or none runs."""

    listener: Callable[[Any], None] | None = None


_progress = _Progress()


def report_progress(value: Any) -> None:
    """In a function that was given to a Runtime: passes the value on to its `on_progress`. It goes the way of results:
    whatever can be pickled. Where nobody listens, and outside of a call, nothing happens."""
    if _progress.listener is not None:
        _progress.listener(value)


def listen(listener: Callable[[Any], None] | None) -> None:
    """What is reported in this process from here on goes there."""
    _progress.listener = listener
