"""Places in Python code, in words: which function, in which file, and who of the user's called it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

Frame = tuple[str, str, str]  # file, line, function

_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = str(Path(os.__file__).parent)


def describe_frame(file: str, line: str, name: str) -> str:
    """'poll (client.py:12)'; of a package that is installed, with its name: 'search (faiss/swigfaiss.py:12)'."""
    parts = Path(file).parts
    places = [number for number, part in enumerate(parts) if part in _INSTALLED]
    short = "/".join(parts[places[-1] + 1 :]) if places else Path(file).name
    return f"{name} ({short}:{line})"


def locate(frames: Sequence[Frame]) -> str:
    """The innermost frame, which is the first, and the first below it that belongs to no library: whose code it is."""
    text = describe_frame(*frames[0])
    libraries = (*_INSTALLED, _STANDARD)
    caller = next((frame for frame in frames if not any(library in frame[0] for library in libraries)), frames[0])
    return text if caller == frames[0] else f"{text}, called by {describe_frame(*caller)}"


def is_standard(file: str) -> bool:
    """Whether a file belongs to Python's own library."""
    return file.startswith(_STANDARD) and not any(folder in file for folder in _INSTALLED)
