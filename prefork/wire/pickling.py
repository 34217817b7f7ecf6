"""Functions of the user's on their way to another process: by name where that finds them there, else by value."""

from __future__ import annotations

import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

from prefork.wire.reductions import dumps


def dump(thing: Any) -> bytes:
    """A function, or a call of one. Lambdas, closures, and what a notebook, `python -c` or stdin defines go by value.

    Raises what pickle raises for what can go neither way, such as a lock or an open socket in a closure.
    """
    if has_importable_main():
        try:
            return dumps(thing)
        except (pickle.PicklingError, AttributeError, TypeError):
            pass  # a lambda, a closure; or nothing that helps, which is said next
    import cloudpickle  # type: ignore[import-untyped]

    return dumps(thing, cloudpickle.Pickler, cloudpickle.Pickler.dispatch_table)


@cache
def has_importable_main() -> bool:
    """Whether another process can import the main module of this one; looked up once, not with every call."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return True
    file = getattr(main, "__file__", None)
    return file is not None and Path(file).is_file()
