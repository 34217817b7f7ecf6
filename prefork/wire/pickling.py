"""What the user's calls consist of, on its way to another process and back: functions, arguments, results.

Functions go by name where that finds them there, else by value. Large arrays and tensors are left out of the pickle
(protocol 5, PEP 574): whoever sends it says where they lie.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prefork.wire.blocks import LARGE, Buffer
from prefork.wire.reductions import Reducers

_TABLE: Any = pickle.Pickler.dispatch_table  # its descriptor: a class may have an attribute that hides it
_MOST_LARGE = 32  # buffers that are left out of one pickle


@dataclass(slots=True)
class Pickled:
    """Something pickled. buffers: what was left out of it, each in one piece."""

    data: bytes
    buffers: Sequence[Buffer] = ()

    def load(self) -> Any:
        return pickle.loads(self.data, buffers=self.buffers)


def dump(thing: Any) -> bytes:
    """A function, or a call of one. Lambdas, closures, and what a notebook, `python -c` or stdin defines go by value.

    Raises what pickle raises for what can go neither way, such as a lock or an open socket in a closure.
    """
    return _dump(thing, None)


def dump_apart(thing: Any) -> Pickled:
    """As `dump`, with large buffers apart: they are the thing's own memory, and hold it."""
    buffers: list[pickle.PickleBuffer] = []
    return Pickled(_dump(thing, buffers), buffers)


def is_interruption(error: BaseException, thing: Any) -> bool:
    """Whether what was raised while the thing was pickled is none of its doing: Ctrl-C, or in the main thread what the
    handler of another signal raises to end the program. The thing itself raises again."""
    if isinstance(error, KeyboardInterrupt):
        return True
    if isinstance(error, Exception) or threading.current_thread() is not threading.main_thread():
        return False
    try:
        dump_apart(thing)
    except BaseException as again:  # noqa: BLE001  it is only looked at
        return isinstance(again, KeyboardInterrupt)
    return True


def _dump(thing: Any, buffers: list[pickle.PickleBuffer] | None) -> bytes:
    if has_importable_main():
        try:
            return _write(pickle.Pickler, Reducers(), thing, buffers)
        except (pickle.PicklingError, AttributeError, TypeError):
            pass  # a lambda, a closure; or nothing that helps, which is said next
    import cloudpickle  # type: ignore[import-untyped]

    return _write(cloudpickle.Pickler, Reducers(cloudpickle.Pickler.dispatch_table), thing, buffers)


def _write(
    make_pickler: Callable[..., Any],
    table: Reducers,
    thing: Any,
    buffers: list[pickle.PickleBuffer] | None,
) -> bytes:
    """buffers: gets what is left out of the pickle; what an attempt before has put there does not count."""

    def take(buffer: pickle.PickleBuffer) -> bool:
        """Whether it goes into the pickle."""
        if buffers is None or len(buffers) >= _MOST_LARGE or buffer.raw().nbytes < LARGE:
            return True
        buffers.append(buffer)
        return False

    if buffers is not None:
        buffers.clear()
    file = io.BytesIO()
    pickler = make_pickler(file, pickle.HIGHEST_PROTOCOL, buffer_callback=None if buffers is None else take)
    _TABLE.__set__(pickler, table)
    pickler.dump(thing)
    return file.getvalue()


@cache
def has_importable_main() -> bool:
    """Whether another process can import the main module of this one; looked up once, not with every call."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return True
    file = getattr(main, "__file__", None)
    return file is not None and Path(file).is_file()
