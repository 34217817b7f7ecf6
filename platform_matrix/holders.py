"""Who has an object: the name of what refers to it, for messages."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

_LEVELS = 4  # a file's bytes, its buffer, its text, and who has that
_BETWEEN = ("_io", "builtins")  # modules whose objects stand between a thing and who has it


class Tracked:
    """What the garbage collector knows, for the time of a block; what was frozen for the sake of forks included."""

    def __enter__(self) -> list[Any]:
        self._frozen = gc.get_freeze_count() > 0
        if self._frozen:
            gc.unfreeze()
        return gc.get_objects()

    def __exit__(self, *_: object) -> None:
        if self._frozen:
            gc.freeze()


def name_holder(holder: Any, thing: Any) -> str:
    """'module.name' or 'module.Class.name' of what refers to a thing; "" if that has no name."""
    if not isinstance(holder, dict):
        kind = type(holder)
        if kind.__module__ == "builtins":  # frames, methods, lists, cells
            return ""
        try:
            keys = [key for key, value in object.__getattribute__(holder, "__dict__").items() if value is thing]
        except AttributeError:  # it has slots
            keys = [key for key in getattr(kind, "__slots__", ()) if getattr(holder, key, None) is thing]
        return f"{kind.__module__}.{kind.__qualname__}" + (f".{keys[0]}" if keys else "")
    key = next((key for key, value in holder.items() if value is thing), "")
    module = sys.modules.get(str(holder.get("__name__")))
    if module is not None and vars(module) is holder:
        return f"{module.__name__}.{key}"
    for owner in gc.get_referrers(holder):
        kind = owner if isinstance(owner, type) else type(owner)
        if kind.__module__ != "builtins":
            return f"{kind.__module__}.{kind.__qualname__}.{key}"
    return ""


def find_holder(thing: Any) -> str:
    """The name of who has a file or a connection, or the buffer or the container that has it; "" if none has one."""
    level = [thing]
    for _ in range(_LEVELS):
        above = [holder for holder in gc.get_referrers(*level) if holder is not level]
        names = {name for holder in above for name in _name_parts(holder, level)}
        if names:
            return min(names)
        level = [
            holder for holder in above if type(holder).__module__ in _BETWEEN and not isinstance(holder, FrameType)
        ]
        if not level:
            break
    return ""


def _name_parts(holder: Any, parts: Sequence[Any]) -> Iterator[str]:
    """What the holder calls those of the parts that it has."""
    if type(holder).__module__ == "_io":
        return
    held = {id(thing) for thing in gc.get_referents(holder)}
    for part in parts:
        if id(part) in held and (name := name_holder(holder, part)):
            yield name
