"""The content of a recording: a file, or the bytes that a row of a data set holds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from prefork.engines.parquet.row_path import parse
from prefork.engines.parquet.rows import read_row

_lent: dict[Path, bytes] = {}  # of rows that somebody else has read


@contextmanager
def lend(path: Path, content: bytes) -> Iterator[None]:
    """As long as it lasts, that is what the row of this path holds; nothing is read of its file."""
    _lent[path] = content
    try:
        yield
    finally:
        del _lent[path]


def _read(path: Path) -> bytes | None:
    return _lent[path] if path in _lent else read_row(path)


def is_row(path: Path) -> bool:
    """Whether the recording lies in a data set; FFmpeg and the system know no file of that path."""
    return parse(path) is not None


def open_content(path: Path) -> BinaryIO:
    """Raises OSError; for a row that has none InputError."""
    data = _read(path)
    return path.open("rb") if data is None else io.BytesIO(data)


def measure_content(path: Path) -> int:
    """Bytes. Raises as `open_content` does."""
    data = _read(path)
    return path.stat().st_size if data is None else len(data)
