"""Pickle for what goes to another process of the same machine: what multiprocessing passes on by descriptor goes so.

Connections, sockets and tensors in shared memory arrive as the same ones, as with `ProcessPoolExecutor`. A descriptor
can be had once: a call that is tried again, because its worker died with it, cannot have it again. Tensors that are not
shared, and those of a GPU, are copied.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

from prefork.wire.tensors import Memories

Reducer = Callable[[Any], Any]


class Reducers:
    """The dispatch table of one pickle, looked up and not made: most pickles need nothing of it. others: what is not
    in it.

    What only a process that is started can be given, such as a lock, raises RuntimeError.
    """

    def __init__(self, others: Mapping[type, Reducer] | None = None) -> None:
        self._others = others if others is not None else {}
        self._memories = Memories()

    def __getitem__(self, kind: type) -> Reducer:
        """Raises KeyError if there is none: then a thing says itself how it is pickled."""
        reduce: Reducer | None = ForkingPickler._extra_reducers.get(kind)  # type: ignore[attr-defined]
        if (kind.__module__, kind.__name__) == ("numpy", "ndarray"):
            return _reduce_array
        if reduce is None:
            return copyreg.dispatch_table.get(kind) or self._others[kind]
        if not kind.__module__.startswith("torch"):
            return reduce
        return partial(_share, reduce, self._memories.reduce if kind.__name__ == "Tensor" else _copy)


def _reduce_array(array: Any) -> Any:
    """A read-only array arrives writable, as with `ProcessPoolExecutor`; protocol 5 would keep it read-only."""
    return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL if array.flags.writeable else 4)


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
