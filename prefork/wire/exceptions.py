"""Exceptions on their way from one process to another.

Each goes twice: as pickle has it, and in parts (its class, its arguments, what was set on it), for classes whose
`__init__` takes something else than the arguments. What cannot be pickled is left out of the parts. Its cause, its
context and the members of a group go with it. Of what does not survive the way, its type's name and its text do.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefork.wire.pickling import dump

_MOST = 50  # exceptions that go with one: the traceback has the others, as text


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in a worker, as text."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


@dataclass(slots=True)
class _Parts:
    """Of one exception, pickled. kind: its class. attributes: those that could be. cause, context, members: of a group:
    their places among all."""

    text: str
    itself: bytes | None
    kind: bytes | None
    arguments: bytes | None
    attributes: Mapping[str, bytes]
    suppress: bool
    cause: int | None
    context: int | None
    members: Sequence[int] | None


def pickle_error(error: BaseException, trace: str) -> bytes:
    """For the way from a worker to who asked: the exception, what it says, and its traceback."""
    found = [error]

    def place(other: BaseException | None) -> int | None:
        known = next((number for number, one in enumerate(found) if one is other), None)  # chains may have circles
        if other is None or known is not None or len(found) == _MOST:
            return known
        found.append(other)
        return len(found) - 1

    parts = [_take_apart(one, place) for one in found]  # which grows
    return pickle.dumps((parts, trace), pickle.HIGHEST_PROTOCOL)


def unpickle_error(data: bytes) -> BaseException:
    """The exception, or, if it does not survive the way, a RuntimeError that says the same. As with
    `ProcessPoolExecutor` the traceback is its cause; if it has one, that of the last of its causes."""
    parts, trace = pickle.loads(data)
    made: dict[int, BaseException] = {}
    for number in range(len(parts)):
        _make(number, parts, made)
    for number, part in enumerate(parts):
        made[number].__context__ = made.get(part.context)
        made[number].__cause__ = made.get(part.cause)
        made[number].__suppress_context__ = part.suppress
    last, passed = 0, {0}
    while (cause := parts[last].cause) is not None and cause not in passed:
        passed.add(cause)
        last = cause
    made[last].__cause__ = RemoteTraceback(trace)
    return made[0]


def describe_error(error: BaseException, who: str = "") -> str:
    """Its type's name and its text; with who has raised it, sys.exit as a call of theirs."""
    try:
        if who and isinstance(error, SystemExit):
            return f"{who} called sys.exit({'' if error.code is None else repr(error.code)})"
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001  `__str__` is the user's
        return f"{type(error).__name__}, whose text cannot be had"


def _take_apart(error: BaseException, place: Callable[[BaseException | None], int | None]) -> _Parts:
    base = _find_base(type(error))
    arguments: tuple[Any, ...] = error.args
    state: Any = None
    members: list[int] | None = None
    if isinstance(error, BaseExceptionGroup):
        places = [place(member) for member in error.exceptions]
        members = [number for number in places if number is not None]
        arguments, state = (error.message,), vars(error)
    else:  # with what an OSError or an ImportError has beside its arguments
        reduced: Any = base.__reduce__(error)
        arguments, state = reduced[1], reduced[2] if len(reduced) > 2 else None
    attributes = {str(name): _try_dump(value) for name, value in (state or {}).items()}
    return _Parts(
        text=describe_error(error),
        itself=_try_dump(error) if members is None else None,
        kind=_try_dump(type(error)),
        arguments=_try_dump(arguments),
        attributes={name: value for name, value in attributes.items() if value is not None},
        suppress=error.__suppress_context__,
        cause=place(error.__cause__),
        context=place(error.__context__),
        members=members,
    )


def _find_base(kind: type[BaseException]) -> type[BaseException]:
    """What of it is Python's own: the last class in its order of which it is a kind and that lays out its memory."""
    return next(one for one in kind.__mro__ if one.__module__ == "builtins" and issubclass(one, BaseException))


def _try_dump(thing: Any) -> bytes | None:
    """By name where that finds it, else by value; None if it can go neither way."""
    try:
        try:
            return pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError):
            return dump(thing)
    except BaseException:  # noqa: BLE001  it may fail in any way it likes, and the worker has to answer
        return None


def _make(number: int, parts: Sequence[_Parts], made: dict[int, BaseException]) -> BaseException:
    if number not in made:
        part = parts[number]
        members = None if part.members is None else [_make(member, parts, made) for member in part.members]
        made[number] = _put_together(part, members)
    return made[number]


def _put_together(part: _Parts, members: Sequence[BaseException] | None) -> BaseException:
    """The first that can be made, and says what it said; else one that at least can say something."""
    made: list[BaseException] = []
    for make in (lambda: _load(part.itself), lambda: _build(part, members)):
        try:
            error = make()
            text = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001  nor need it be one that can be made again; it may even want to exit
            continue
        if isinstance(error, BaseException):
            made.append(error)
            if text == part.text:
                return error
    return made[-1] if made else RuntimeError(part.text)


def _build(part: _Parts, members: Sequence[BaseException] | None) -> BaseException:
    """Without the `__init__` of its own class, which may take something else. Raises whatever the user's code does."""
    kind = _load(part.kind)
    base = _find_base(kind)
    arguments = (part.text.partition(": ")[2],) if part.arguments is None else pickle.loads(part.arguments)
    if members is not None:
        arguments = (*arguments, members)
    error: BaseException = base.__new__(kind, *arguments)
    base.__init__(error, *arguments)
    error.__setstate__({name: pickle.loads(value) for name, value in part.attributes.items()})
    return error


def _load(data: bytes | None) -> Any:
    if data is None:
        raise pickle.UnpicklingError("it could not be pickled")
    return pickle.loads(data)
