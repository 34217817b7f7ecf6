"""Private tensors: those of a model that each process may write to, without effect on any other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from prefork.platform_matrix.systems import SYSTEM

if TYPE_CHECKING:
    import torch

_MOST_NAMES = 8  # of those that there are, in a message


def is_private(names: Iterable[str], patterns: Sequence[str]) -> bool:
    """Whether one of a tensor's names is one of the patterns, or matches it as the name of a file would."""
    return any(_matches(name, pattern) for name in names for pattern in patterns)


def check_patterns(found: Iterable[str], patterns: Sequence[str]) -> None:
    """found: the names of a model's tensors. Raises ValueError, with some of them, if a pattern matches none."""
    names = list(dict.fromkeys(found))
    for pattern in patterns:
        if not is_private(names, [pattern]):
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            there = f"has {', '.join(_find_nearest(pattern, names))}{more}" if names else "has no tensors"
            raise ValueError(f"private: {pattern!r} matches no tensor of what load returned, which {there}")


def _find_nearest(pattern: str, names: Sequence[str]) -> list[str]:
    return get_close_matches(pattern, names, _MOST_NAMES, cutoff=0.0)


def _matches(name: str, pattern: str) -> bool:
    """`*.kv_cache` is also the one of the outermost module."""
    return name == pattern or fnmatchcase(name, pattern) or fnmatchcase(f".{name}", pattern)


def is_copied_on_write(memory: torch.Tensor) -> bool:
    """Whether a process that writes there gets a copy of its own, once it is forked. memory: (bytes,) uint8."""
    return SYSTEM.is_copied_on_write(memory.data_ptr(), memory.numel())
