"""What is done in every process of prefork's."""

from __future__ import annotations

import contextlib
import sys


def flush_output() -> None:
    """What the user's code has printed, wherever it goes: the streams are the user's, and may be gone."""
    for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
        with contextlib.suppress(BaseException):
            stream.flush()  # type: ignore[union-attr]
