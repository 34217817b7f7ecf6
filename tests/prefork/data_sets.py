"""Data sets for the commands to work on: recordings of silence, and texts for the script engine."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "list": pa.list_(pa.int8()),
    "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}


def make_wav(samples: int) -> bytes:
    """Silence at 16 kHz."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * samples))
    return content.getvalue()


def make_audio(recordings: Sequence[bytes | None], kind: str = "binary") -> Any:
    """A pyarrow array of recordings."""
    values: list[Any] = list(recordings)
    if kind == "list":
        values = [None if r is None else np.frombuffer(r, np.int8) for r in recordings]
    elif kind == "struct":
        values = [None if r is None else {"bytes": r, "path": None} for r in recordings]
    return pa.array(values, KINDS[kind])


def write_rows(
    path: Path,
    texts: Sequence[str | None],
    *,
    recordings: Sequence[bytes | None] | None = None,
    kind: str = "binary",
    group: int = 3,
    more: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """A parquet file with the columns audio and text, and others. group: rows of a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = make_audio(recordings or [make_wav(1600 * (1 + n % 5)) for n in range(len(texts))], kind)
    table = pa.table({"audio": audio, "text": pa.array(texts, pa.string()), **(more or {})})
    pq.write_table(table, path, row_group_size=group)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
