"""Text as it is shown: names that may hold anything, and times."""

from __future__ import annotations


def make_printable(name: str) -> str:
    """A name or text as it can be printed on one line whatever is in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def format_duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
