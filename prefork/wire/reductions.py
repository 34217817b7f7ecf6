"""Pickle for what goes to another process of the same machine: what multiprocessing passes on by descriptor goes so.

Connections, sockets and tensors in shared memory arrive as the same ones, as with `ProcessPoolExecutor`. A descriptor
can be had once: a call that is tried again, because its worker died with it, cannot have it again. Tensors that are not
shared, and those of a GPU, are copied.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

from prefork.wire.tensors import Memories

Reducer = Callable[[Any], Any]


def make_table() -> Mapping[type, Reducer]:
    """For one pickle. What only a process that is started can be given, such as a lock, raises RuntimeError."""
    extra: dict[type, Reducer] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    table, tensors = _list_reducers(len(copyreg.dispatch_table), len(extra))
    memories = Memories()
    return {**table, **{kind: partial(_share, reduce, memories.reduce) for kind, reduce in tensors}}


@lru_cache(maxsize=1)
def _list_reducers(*_: int) -> tuple[dict[type, Reducer], list[tuple[type, Reducer]]]:
    """All that are registered, and that of torch for tensors; looked up anew when there are more of them."""
    extra: dict[type, Reducer] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    from_torch = {kind: reduce for kind, reduce in extra.items() if kind.__module__.startswith("torch")}
    shared = {kind: partial(_share, reduce, _copy) for kind, reduce in from_torch.items()}
    tensors = [(kind, reduce) for kind, reduce in from_torch.items() if kind.__name__ == "Tensor"]
    return {**copyreg.dispatch_table, **extra, **shared}, tensors


def _copy(thing: Any) -> Any:
    return thing.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _share(reduce: Reducer, copy: Reducer, thing: Any) -> Any:
    """reduce: torch's own, which moves every tensor into shared memory. copy: of what is not in it."""
    try:
        storage = getattr(thing, "_untyped_storage", thing)  # of a TypedStorage, which is deprecated itself
        is_shared = storage.device.type == "cpu" and storage.is_shared()
    except (AttributeError, NotImplementedError, RuntimeError):  # it has no storage that could be
        is_shared = False
    return reduce(thing) if is_shared else copy(thing)
