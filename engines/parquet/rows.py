"""Rows: the bytes of their recordings, a slice of one row group at a time, and no more of the file.

A process keeps one slice: who goes through a row group from its beginning reads it once. Nothing is read ahead, and
pyarrow's threads are not used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefork.engines.errors import InputError
from prefork.engines.files import FileState
from prefork.engines.parquet.columns import AudioKind, find_kind
from prefork.engines.parquet.library import import_arrow
from prefork.engines.parquet.row_path import RowAddress, parse
from prefork.platform_matrix.systems import SYSTEM

SLICE_BYTES = 64_000_000  # of a row group that are in memory at once, as far as its rows are of equal size
_BUFFER = 1 << 20  # bytes read at a time


def open_file(path: Path) -> Any:
    """A pyarrow.parquet.ParquetFile that reads no more than it is asked for. Raises InputError, which names no file,
    if it is not whole, or none."""
    arrow, parquet = import_arrow(), import_arrow("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=_BUFFER)
    except OSError as error:
        if isinstance(error, arrow.ArrowException) or error.errno is None:
            raise InputError(f"is damaged ({_shorten(error)}); copy it again") from error
        raise InputError(f"cannot be read: {error.strerror}; check the file") from error
    except arrow.ArrowException as error:
        raise InputError(f"is no parquet file, or is cut off ({_shorten(error)}); copy it again") from error


def read_slices(file: Any, group: int, columns: Sequence[str], use_threads: bool = False) -> Iterator[tuple[int, Any]]:
    """A row group in pieces: the number of a piece's first row in the group, and a pyarrow.RecordBatch. file: as
    `open_file` returns it. use_threads: pyarrow's, one for each column. Raises InputError, which names no file, where
    the data is damaged."""
    arrow = import_arrow()
    if not columns or group >= file.metadata.num_row_groups or not file.metadata.row_group(group).num_rows:
        return
    metadata = file.metadata.row_group(group)
    parts = [metadata.column(number) for number in range(metadata.num_columns)]
    # A list of bytes may take less in the file than it has elements, and takes that many in memory.
    wanted = sum(max(c.total_uncompressed_size, c.num_values) for c in parts if _is_part(c.path_in_schema, columns))
    rows = max(1, SLICE_BYTES * metadata.num_rows // max(1, wanted))
    start = 0
    try:
        for batch in file.iter_batches(
            min(rows, metadata.num_rows), row_groups=[group], columns=list(columns), use_threads=use_threads
        ):
            yield start, batch
            start += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"row group {group} is damaged ({_shorten(error)}); copy it again") from error


def _is_part(path: str, columns: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def project(schema: Any, column: str) -> str:
    """What is to be read of a column with recordings: of a struct, its bytes alone."""
    return f"{column}.bytes" if find_kind(schema.field(column).type) is AudioKind.STRUCT else column


def get_bytes(column: Any, row: int) -> bytes | None:
    """A recording, out of a column of a record batch; None where the row has none."""
    if find_kind(column.type) is AudioKind.STRUCT:
        column = column.field("bytes") if column[row].is_valid else column.slice(row, 0)
        if not len(column):
            return None
    scalar = column[row]
    if not scalar.is_valid:
        return None
    if find_kind(column.type) is AudioKind.BINARY:
        return bytes(scalar.as_buffer())
    return bytes(scalar.values.to_numpy(zero_copy_only=False).tobytes())


class _OpenGroup:
    """The process's one slice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drop()

    def _drop(self) -> None:
        self._key: tuple[str, FileState] | None = None
        self._file: Any = None
        self._slices: Iterator[tuple[int, Any]] = iter(())
        self._start, self._batch = 0, None

    def read(self, address: RowAddress) -> bytes | None:
        with self._lock:
            try:
                return self._read(address)
            except BaseException:
                self._drop()
                raise

    def _read(self, address: RowAddress) -> bytes | None:
        try:
            key = address.place, FileState.note(address.file)
        except OSError as error:
            raise InputError(f"{address.file}: cannot be read: {error.strerror}; check the file") from error
        if key != self._key or address.row < self._start:
            self._open(address)
            self._key = key
        while self._batch is None or address.row >= self._start + self._batch.num_rows:
            self._batch = None  # before the next one is made
            try:
                self._start, self._batch = next(self._slices)
            except StopIteration:
                raise InputError(f"{address.file}: row group {address.group} has no row {address.row}") from None
            except InputError as error:
                raise InputError(f"{address.file}: {error}") from error
        return get_bytes(self._batch.column(0), address.row - self._start)

    def _open(self, address: RowAddress) -> None:
        self._drop()
        try:
            self._file = open_file(address.file)
            schema = self._file.schema_arrow
            self._slices = read_slices(self._file, address.group, [project(schema, address.column)])
        except (InputError, KeyError, IndexError) as error:
            raise InputError(f"{address.file}: {error}") from error


_open_group = _OpenGroup()


def _forget_group() -> None:
    global _open_group  # noqa: PLW0603
    _open_group = _OpenGroup()


# A child shares the parent's file offset: reading on with the parent's file would garble both.
SYSTEM.run_at_fork(after_in_child=_forget_group)


def read_row(path: Path) -> bytes | None:
    """The bytes of a row's recording; None for the path of a file. Raises InputError if there are none."""
    address = parse(path)
    if address is None:
        return None
    data = _open_group.read(address)
    if data is None:
        raise InputError(f"{path} is null; leave the row out, or put its recording there")
    return data


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
