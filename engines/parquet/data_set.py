"""A data set: its files in order, with what their footers say. No rows are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from prefork.engines.errors import InputError
from prefork.engines.files import FileState
from prefork.engines.parquet.columns import Columns
from prefork.engines.parquet.conditions import Value
from prefork.engines.parquet.rows import open_file, project

_READERS = 16  # threads that read footers: a file system of the network keeps them waiting
_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,17})")
_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class RowGroup:
    """number: in its file, from 0. audio_bytes: of the column with recordings, unpacked."""

    number: int
    rows: int
    audio_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DataFile:
    """name: its path in the data set. partitions: what hive folders (`language=eng`) say of all its rows. names: of all
    its columns."""

    path: Path
    name: str
    state: FileState
    columns: Columns
    names: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    partitions: Mapping[str, Value] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def count_rows(self, group: int) -> int:
        """Of the row group of that number."""
        return next(one.rows for one in self.groups if one.number == group)

    def narrow(self, group: int) -> DataFile:
        """The same without its other row groups, to be sent to a worker."""
        return replace(self, groups=tuple(one for one in self.groups if one.number == group))


def read_footers(
    root: Path, names: Sequence[Path], choose: Callable[[Any], Columns]
) -> tuple[list[DataFile], dict[str, str]]:
    """The files, in their order; by name, why others cannot be used.

    names: paths below `root`. choose: finds the columns in a pyarrow schema; may raise InputError.
    """

    def read(name: Path) -> DataFile | str:
        try:
            return _read_footer(root, name, choose)
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror}; check the file"

    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(map(Path.as_posix, names), pool.map(read, names), strict=True))
    files = [file for file in found.values() if isinstance(file, DataFile)]
    return files, {name: why for name, why in found.items() if isinstance(why, str)}


def _read_footer(root: Path, name: Path, choose: Callable[[Any], Columns]) -> DataFile:
    path = root / name
    state = FileState.note(path)
    schema, sizes = _open_footer(state)
    columns = choose(schema)
    prefix = project(schema, columns.audio) if columns.audio else ""
    groups = [
        RowGroup(number, rows, sum(size for part, size in parts if _belongs(part, prefix)))
        for number, (rows, parts) in enumerate(sizes)
    ]
    groups = groups or [RowGroup(0, 0)]  # what has no rows has an output all the same
    return DataFile(path, name.as_posix(), state, columns, tuple(schema.names), tuple(groups), find_partitions(name))


def _belongs(part: str, column: str) -> bool:
    return bool(column) and (part == column or part.startswith(f"{column}."))


@lru_cache(maxsize=1 << 16)
def _open_footer(state: FileState) -> tuple[Any, list[tuple[int, list[tuple[str, int]]]]]:
    """The schema; of each row group its rows, and the bytes of each column."""
    with open_file(Path(state.path)) as file:
        metadata = file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = []
        for group in groups:
            columns = [group.column(number) for number in range(group.num_columns)]
            sizes.append((group.num_rows, [(c.path_in_schema, c.total_uncompressed_size) for c in columns]))
        return file.schema_arrow, sizes


def find_partitions(name: Path) -> dict[str, Value]:
    """What the folders of a file say of its rows, as hive names them.

    >>> find_partitions(Path("split=train/year=2020/part-0.parquet"))
    {'split': 'train', 'year': 2020}
    """
    found: dict[str, Value] = {}
    for part in name.parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key and value != _NULL:
            value = unquote(value)
            found[key] = int(value) if _WHOLE.fullmatch(value) else value
    return found


def find_splits(name: Path) -> set[str]:
    """The names of the splits that a file may belong to: the value of a hive folder, or as the hub has it, the name of
    a folder, or the first part of a file's name.

    >>> sorted(find_splits(Path("data/train-00000-of-00002.parquet"))), find_splits(Path("split=dev/0.parquet"))
    (['data', 'train'], {'dev'})
    """
    partitions = find_partitions(name)
    if "split" in partitions:
        return {str(partitions["split"])}
    folders = {part for part in PurePosixPath(name).parts[:-1] if "=" not in part}
    return folders | {re.split(r"-\d|\.", name.stem, maxsplit=1)[0].rstrip("-_")}


def choose_split(names: Sequence[Path], split: str | None) -> list[Path]:
    """Those that belong to a split. Raises InputError if none does."""
    chosen = [name for name in names if split is None or split in find_splits(name)]
    if names and not chosen:
        known = sorted(set().union(*map(find_splits, names)))
        raise InputError(f"has no split {split!r}; by the names of its files there are {', '.join(known)}")
    return chosen
