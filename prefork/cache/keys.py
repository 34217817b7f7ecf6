"""What results are kept under: hashes of everything that they were made from.

    first key    engine, recording, where a segment lies in it and what it asks   known before anything is decoded
    second key   engine, what `infer` gets, what the segment asks                 does not say where that came from
    document     engines, whole files, and how they are called                    known before anything is split

The first leads to the second, and the second to the piece that `finish` made.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from prefork.engines.audio.selection import Selection

SIZE = 32  # bytes of a key
_FLOAT = struct.Struct("<d")


def digest(*values: Any) -> bytes:
    """Of dataclasses, tuples, lists, mappings, texts, bytes, numbers, paths and None: the same for equal values of the
    same types alone. Raises TypeError for anything else.

    >>> digest("a", 1) == digest("a", 1), digest("a", 1) == digest("a", 1.0), digest(("a", "b")) == digest("a", "b")
    (True, False, False)
    """
    parts: list[bytes] = []
    for value in values:
        _describe(value, parts)
    return hashlib.sha256(b"".join(parts)).digest()


def digest_file(path: Path) -> bytes:
    """Of all of it. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _describe(value: Any, parts: list[bytes]) -> None:  # noqa: PLR0912  one for each type
    """Adds bytes that no other value has: each begins with its type and its length."""
    match value:
        case None | bool():
            parts.append(b"n" if value is None else b"y" if value else b"z")
        case Enum():
            _describe((type(value).__qualname__, value.value), parts)
        case str():
            data = value.encode("utf-8", "surrogatepass")
            parts.append(b"s%d:%b" % (len(data), data))
        case int():
            parts.append(b"i%d;" % value)
        case float():
            parts.append(b"f" + _FLOAT.pack(value))
        case bytes():
            parts.append(b"b%d:%b" % (len(value), value))
        case PurePath():
            _describe(os.fsencode(value), parts)
        case tuple() | list():
            parts.append(b"%c%d:" % (b"t" if isinstance(value, tuple) else b"l", len(value)))
            for item in value:
                _describe(item, parts)
        case Mapping():
            parts.append(b"m%d:" % len(value))
            for name in sorted(value):
                _describe(name, parts)
                _describe(value[name], parts)
        case _ if is_dataclass(value) and not isinstance(value, type):
            parts.append(b"d")
            named = [(field.name, getattr(value, field.name)) for field in fields(value)]
            _describe((type(value).__qualname__, *named), parts)
        case _:
            raise TypeError(f"a {type(value).__name__} cannot be part of a key")


def make_first_key(engine: bytes, recording: bytes, selection: Selection, seconds: float, segment: bytes) -> bytes:
    """engine: as `Identity` has it. recording: its digest; empty where there is none. seconds: its length, 0 where
    there is none. segment: the digest of what `Engine.describe_segment` says."""
    return digest("first", engine, recording, selection, seconds, segment)


def make_second_key(engine: bytes, seconds: float, segment: bytes, tensors: bytes) -> bytes:
    """tensors: the digest of what `prepare` has made; the rest as for the first one."""
    return digest("second", engine, seconds, segment, tensors)
