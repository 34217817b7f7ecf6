"""Columns: which one holds the recordings, and how; which the texts, the ids, the lengths.

binary                          the bytes of a file: WAV, FLAC, MP3 ...
list<int8>, list<uint8>         the same, as omnilingual-asr and fairseq2 write it
struct<bytes: binary, ...>      the same, as Hugging Face's datasets writes it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prefork.engines.errors import InputError
from prefork.engines.parquet.library import import_arrow

LENGTH = "audio_size"  # samples at 16 kHz of the decoded audio: omnilingual-asr's name
_TEXTS = ("text", "transcription", "transcript", "sentence")
_FEATURES = b"huggingface"  # in a schema's metadata


class AudioKind(StrEnum):
    BINARY = "binary"
    INTEGERS = "list of int8"
    STRUCT = "struct of bytes"


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a file's columns; empty where there is none."""

    audio: str = ""
    text: str = ""
    id: str = ""
    length: str = ""


def find_columns(
    schema: Any,
    audio: str | None = None,
    text: str | None = None,
    id: str | None = None,
    *,
    needs_audio: bool = True,
    needs_text: bool = False,
) -> Columns:
    """schema: pyarrow's. audio, text, id: names that the user has given. needs_audio: else the column is named if there
    is just one. Raises InputError, without the file's name, if a column is not there, is of another type, or could be
    one of several."""
    known: list[str] = schema.names
    for option, name in (("--audio-column", audio), ("--text-column", text), ("--id-column", id)):
        if name is not None and known.count(name) != 1:
            what = f"{known.count(name)} columns" if name in known else "no column"
            raise InputError(f"has {what} {name!r}; check {option}, there are {_list(known)}")
    length = LENGTH if LENGTH in known and _is_integer(schema.field(LENGTH).type) else ""
    return Columns(
        _find_audio(schema, audio) if needs_audio or audio is not None else _find_any_audio(schema),
        _find_text(schema, text) if needs_text else text or "",
        id or "",
        length,
    )


def find_kind(type: Any) -> AudioKind | None:
    """How a column of a type may hold recordings; None if it cannot."""
    types = import_arrow().types
    if types.is_binary(type) or types.is_large_binary(type):
        return AudioKind.BINARY
    if (types.is_list(type) or types.is_large_list(type)) and (
        types.is_int8(type.value_type) or types.is_uint8(type.value_type)
    ):
        return AudioKind.INTEGERS
    if types.is_struct(type) and type.get_field_index("bytes") >= 0:
        field = type.field(type.get_field_index("bytes")).type
        return AudioKind.STRUCT if types.is_binary(field) or types.is_large_binary(field) else None
    return None


def _find_audio(schema: Any, asked: str | None) -> str:
    if asked is not None:
        if find_kind(schema.field(asked).type) is None:
            raise InputError(
                f"its column {asked!r} is {schema.field(asked).type}, and recordings are binary, list<int8> or a "
                "struct with the binary field bytes; give another --audio-column"
            )
        return asked
    features = _read_features(schema)
    found = [field.name for field in schema if find_kind(field.type) is not None]
    found = [name for name in found if features.get(name, "Audio") == "Audio"]
    marked = [name for name in found if name in features]
    return _choose(marked or found, "recordings", "--audio-column", schema)


def _find_any_audio(schema: Any) -> str:
    try:
        return _find_audio(schema, None)
    except InputError:  # who reads texts needs none
        return ""


def _find_text(schema: Any, asked: str | None) -> str:
    types = import_arrow().types
    is_text: Callable[[Any], bool] = lambda type: types.is_string(type) or types.is_large_string(type)  # noqa: E731
    if asked is not None:
        if not is_text(schema.field(asked).type):
            raise InputError(
                f"its column {asked!r} is {schema.field(asked).type}, and texts are strings; give another --text-column"
            )
        return asked
    return _choose(
        [name for name in _TEXTS if name in schema.names and is_text(schema.field(name).type)],
        "texts",
        "--text-column",
        schema,
    )


def _choose(found: Sequence[str], what: str, option: str, schema: Any) -> str:
    if not found:
        raise InputError(f"has no column with {what}; there are {_list(schema.names)}: {option} names it")
    if len(found) > 1:
        raise InputError(f"has {len(found)} columns that may be the {what}, {_list(found)}; choose one with {option}")
    return found[0]


def _read_features(schema: Any) -> dict[str, str]:
    """By column: what Hugging Face's datasets says it holds, "Audio" or "Image" for example."""
    try:
        found = json.loads((schema.metadata or {}).get(_FEATURES, b"{}"))["info"]["features"]
        return {name: str(feature["_type"]) for name, feature in found.items() if "_type" in feature}
    except (ValueError, KeyError, TypeError, AttributeError):  # then the types alone tell
        return {}


def _is_integer(type: Any) -> bool:
    return bool(import_arrow().types.is_integer(type))


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
