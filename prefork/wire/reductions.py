"""Pickle for what goes to another process of the same machine: what multiprocessing passes on by descriptor goes so.

Connections, sockets and tensors in shared memory arrive as the same ones, as with `ProcessPoolExecutor`. A descriptor
can be had once: a call that is tried again, because its worker died with it, cannot have it again. Tensors that are not
shared, and those of a GPU, are copied.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

Reducer = Callable[[Any], Any]
_TABLE: Any = pickle.Pickler.dispatch_table  # its descriptor: a class may have an attribute that hides it


def dumps(thing: Any, kind: Any = pickle.Pickler, base: Mapping[type, Reducer] | None = None) -> bytes:
    """As pickle.dumps. kind: of pickler; base: the reducers that it has beside those of copyreg. Raises RuntimeError
    for what only a process that is started can be given, such as a lock."""
    extra: dict[type, Reducer] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    table = _make_table(len(copyreg.dispatch_table), len(extra))
    pickler = kind(buffer, pickle.HIGHEST_PROTOCOL)
    _TABLE.__set__(pickler, {**(base or {}), **table})
    pickler.dump(thing)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _make_table(*_: int) -> dict[type, Reducer]:
    """Of all that is registered; made anew when there is more of it."""
    extra: dict[type, Reducer] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    shared = {kind: partial(_share, reduce) for kind, reduce in extra.items() if kind.__module__.startswith("torch")}
    return {**copyreg.dispatch_table, **extra, **shared}


def _share(reduce: Reducer, thing: Any) -> Any:
    """reduce: torch's own, which moves every tensor into shared memory."""
    try:
        storage = getattr(thing, "_untyped_storage", thing)  # of a TypedStorage, which is deprecated itself
        is_shared = storage.device.type == "cpu" and storage.is_shared()
    except (AttributeError, NotImplementedError, RuntimeError):  # it has no storage that could be
        is_shared = False
    return reduce(thing) if is_shared else thing.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
