"""What a Runtime is given: whether it can be meant, and as what other processes get it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from prefork.platform_matrix.matrix import Strategy
from prefork.wire.pickling import dump, has_importable_main
from prefork.wire.wrapped import LoadEach


def check_names(private: Sequence[str], has_load: bool, strategy: str | None) -> None:
    """Raises ValueError."""
    if isinstance(private, str) or not all(isinstance(pattern, str) for pattern in private):
        raise ValueError(f'private must be a sequence of patterns, as ("*.kv_cache",), not {private!r}')
    if private and not has_load:
        raise ValueError("private names tensors of what load returns, and there is no load")
    if strategy is not None and strategy not in list(Strategy):
        raise ValueError(f"strategy must be one of {', '.join(Strategy)}, not {strategy!r}")


def check_numbers(**numbers: int | None) -> None:
    """Raises ValueError."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def dump_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes | None:
    """Pickled. Raises TypeError, and what pickle raises."""
    if initializer is None:
        return None
    if not callable(initializer):
        raise TypeError(f"initializer must be a function, not {initializer!r}")
    return dump((initializer, tuple(initargs)))


def check_model(name: str | None, names: Sequence[str]) -> None:
    """Raises ValueError if there is no model of that name."""
    if name is None or name in names:
        return
    if not names:
        raise ValueError(f"model={name!r}: this Runtime has no models by name; load={{{name!r}: ...}} gives it one")
    near = get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no model {name!r}, but {', '.join(map(repr, names))}{hint}")


Load = Callable[[], Any] | Mapping[str, Callable[[], Any]]


def join_again(first: Load | None, again: Load | None) -> Callable[[], Any]:
    """One function that loads all anew. again: by default as at first. Raises TypeError, ValueError."""
    if first is None:
        raise ValueError("reload replaces what load has returned, and this Runtime has no load; make a new one")
    function, names = join_loads(first if again is None else again)
    before = join_loads(first)[1]
    if names != before:
        raise ValueError(f"reload takes models of the same names: {before}, not {names}")
    assert function is not None
    return function


def join_loads(
    load: Load | None,
) -> tuple[Callable[[], Any] | None, tuple[str, ...]]:
    """One function that loads all, and the names of the models, if they have names. Raises TypeError, ValueError."""
    if load is None or callable(load):
        return load, ()
    wanted = "load must be a function without arguments, or a mapping of names to such functions"
    if not isinstance(load, Mapping):
        raise TypeError(f"{wanted}, not {load!r}")
    if not load:
        raise ValueError(f"{wanted}, and this one is empty")
    for name, function in load.items():
        if not (isinstance(name, str) and callable(function)):
            raise TypeError(f"{wanted}, and {name!r}: {function!r} is none of it")
    return LoadEach(load), tuple(load)


def describe_main() -> dict[str, Any]:
    """What another process needs to import this program's main module."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a Runtime was created while its own script is imported by the process that loads the models; "
            'put the code that starts it under `if __name__ == "__main__":`'
        )
    preparation = multiprocessing.spawn.get_preparation_data("prefork-zygote")
    known = {key: value for key, value in preparation.items() if key not in ("authkey", "log_to_stderr", "log_level")}
    if not has_importable_main():  # what is defined there goes by value
        known = {key: value for key, value in known.items() if not key.startswith("init_main")}
    # What a manager's proxies need to answer to each other; multiprocessing lets it be pickled as plain bytes alone.
    return {**known, "authkey": bytes(multiprocessing.current_process().authkey)}
