"""Values as bytes and back, by the type that they are to have: nothing that is read says what it is made of.

A type is a frozen dataclass of others, a tuple, a list, a dict with texts as keys, one of these or None, an enumeration
of values, an array of numpy's, or str, bytes, bool, int, float. A value comes back equal, and of the same types; what
is not of its type is refused, on both ways.
"""

from __future__ import annotations

import base64
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np

_Convert = Callable[[Any], Any]
_PLAIN: dict[Any, frozenset[type]] = {
    bool: frozenset([bool]),
    int: frozenset([int]),
    float: frozenset([int, float]),
    str: frozenset([str]),
    type(None): frozenset([type(None)]),
}
_ARRAYS = "biuf"  # kinds of numpy's types: numbers


class SchemaError(Exception):
    """A value that is not of its type, or a type that has no schema."""


@dataclass(frozen=True, slots=True)
class Schema:
    """How the values of one type are written. There is one for each type: see `find_schema`. plain: the types of values
    that are written as they are; empty for others."""

    write: _Convert
    read: _Convert
    plain: frozenset[type] = frozenset()

    def encode(self, value: Any) -> bytes:
        """Raises SchemaError."""
        try:
            return json.dumps(self.write(value), separators=(",", ":")).encode("ascii")
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise SchemaError(f"{type(value).__name__}: {error}") from error

    def decode(self, data: bytes) -> Any:
        """Raises SchemaError."""
        try:
            return self.read(json.loads(data))
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise SchemaError(str(error)) from error


@cache
def find_schema(kind: Any) -> Schema:
    """Of a type. Raises SchemaError if it has none.

    >>> schema = find_schema(tuple[tuple[str, float], ...])
    >>> schema.encode((("a", 0.5),)), schema.decode(b'[["a",0.5]]')
    (b'[["a",0.5]]', (('a', 0.5),))
    """
    origin, given = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return _make_plain(_PLAIN[kind])
    if kind is bytes:
        return Schema(lambda v: base64.b64encode(v).decode(), lambda v: base64.b64decode(v, validate=True))
    if origin in (typing.Union, types.UnionType):
        return _make_optional(kind, given)
    if origin is np.ndarray:
        return Schema(_write_array, _read_array)
    if origin is tuple:
        return _make_tuple(given)
    if origin is list:
        return _make_sequence(find_schema(given[0]), list)
    if origin is dict and given[0] is str:
        return _make_dict(find_schema(given[1]))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Schema(lambda value: _check(value, kind).value, kind)
    if isinstance(kind, type) and is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return _make_record(kind)
    raise SchemaError(f"{kind} has no schema; it must be made of frozen dataclasses, tuples, texts and numbers")


def _check(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _make_plain(kinds: frozenset[type]) -> Schema:
    def pass_on(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(
                f"{value!r:.40} is a {type(value).__name__}, not a {' or '.join(k.__name__ for k in kinds)}"
            )
        return value

    return Schema(pass_on, pass_on, kinds)


def _make_optional(kind: Any, given: tuple[Any, ...]) -> Schema:
    others = [one for one in given if one is not type(None)]
    if len(others) != 1:
        raise SchemaError(f"{kind} has no schema: it may be several things")
    schema = find_schema(others[0])
    if schema.plain:
        return _make_plain(schema.plain | {type(None)})
    write, read = schema.write, schema.read
    return Schema(
        lambda value: None if value is None else write(value), lambda value: None if value is None else read(value)
    )


def _make_sequence(item: Schema, make: type) -> Schema:
    write, read, plain = item.write, item.read, item.plain

    def convert_all(value: Any, convert: _Convert) -> Any:
        return value if plain and plain.issuperset(map(type, value)) else map(convert, value)

    return Schema(
        lambda value: list(convert_all(_check(value, make), write)),
        lambda value: make(convert_all(_check(value, list), read)),
    )


def _make_tuple(given: tuple[Any, ...]) -> Schema:
    if len(given) == 2 and given[1] is Ellipsis:
        return _make_sequence(find_schema(given[0]), tuple)
    row = _Row([find_schema(one) for one in given if one != ()])
    return Schema(lambda value: row.write(_check(value, tuple)), lambda value: tuple(row.read(_check(value, list))))


def _make_dict(item: Schema) -> Schema:
    write, read = item.write, item.read
    return Schema(
        lambda value: {_check(name, str): write(one) for name, one in _check(value, dict).items()},
        lambda value: {name: read(one) for name, one in _check(value, dict).items()},
    )


class _Row:
    """A fixed number of values, each with a schema of its own. There are very many rows: what types their plain values
    have is looked at once for each combination."""

    def __init__(self, items: list[Schema]) -> None:
        self._items = items
        self._deep = [(place, item) for place, item in enumerate(items) if not item.plain]
        self._known: set[tuple[type, ...]] = set()

    def write(self, values: Any) -> list[Any]:
        found = list(values)
        self._check(found)
        for place, item in self._deep:
            found[place] = item.write(found[place])
        return found

    def read(self, values: list[Any]) -> list[Any]:
        self._check(values)
        for place, item in self._deep:
            values[place] = item.read(values[place])
        return values

    def _check(self, values: list[Any]) -> None:
        kinds = tuple(map(type, values))
        if kinds in self._known:
            return
        for item, value in zip(self._items, values, strict=True):
            if item.plain:
                item.read(value)
        self._known.add(kinds)


def _make_record(kind: Any) -> Schema:
    """Its fields, in their order."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    row = _Row([find_schema(hints[name]) for name in names])
    get = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]
    return Schema(lambda value: row.write(get(_check(value, kind))), lambda value: kind(*row.read(_check(value, list))))


def _write_array(value: Any) -> list[Any]:
    _check(value, np.ndarray)
    if value.dtype.kind not in _ARRAYS:
        raise TypeError(f"an array of {value.dtype} is none of numbers")
    return [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]


def _read_array(value: Any) -> Any:
    kind, shape, data = _check(value, list)
    dtype = np.dtype(_check(kind, str))
    if dtype.kind not in _ARRAYS:
        raise TypeError(f"an array of {dtype} is none of numbers")
    return np.frombuffer(base64.b64decode(data, validate=True), dtype).reshape(shape).copy()
