"""The path of a row's recording: below its parquet file, where no other file can lie.

    corpus/train.parquet/audio/3/17     column audio, row group 3, its row 17, both from 0

So a recording in a data set is named, opened and reported as any other is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class RowAddress:
    """Where a recording lies. row: in its row group."""

    file: Path
    column: str
    group: int
    row: int

    @property
    def path(self) -> Path:
        return self.file / _quote(self.column) / str(self.group) / str(self.row)

    @property
    def place(self) -> str:
        """The same for all rows of a row group."""
        return str(self.path.parent)


def parse(path: Path) -> RowAddress | None:
    """None for the path of anything else.

    >>> parse(Path("a/train.parquet/audio/3/17"))
    RowAddress(file=PosixPath('a/train.parquet'), column='audio', group=3, row=17)
    """
    parts = path.parts[-3:]
    if SUFFIX not in str(path) or len(path.parts) < 4 or path.parents[2].suffix != SUFFIX:
        return None
    column, group, row = parts
    if not (group.isdecimal() and row.isdecimal()):
        return None
    return RowAddress(path.parents[2], unquote(column), int(group), int(row))


def find_place(path: Path | None) -> str:
    """The row group that a recording is read from; empty for a file of its own."""
    address = parse(path) if path is not None else None
    return address.place if address is not None else ""


def _quote(column: str) -> str:
    quoted = quote(column, safe="")
    return quoted.replace(".", "%2E") if not quoted.strip(".") else quoted
