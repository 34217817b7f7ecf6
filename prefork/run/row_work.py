"""What workers do for a row group: choose its rows, open them, write what became of them; and join a file's parts.

Each function is called in a worker, after the models, of which it needs none; it imports pyarrow there, after the fork.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from prefork.engines.audio.reader import SAMPLE_RATE, probe
from prefork.engines.audio.selection import Selection
from prefork.engines.base import InputError
from prefork.engines.parquet.conditions import find_mask, list_columns, parse_condition
from prefork.engines.parquet.data_set import DataFile
from prefork.engines.parquet.library import import_arrow
from prefork.engines.parquet.options import RowOptions
from prefork.engines.parquet.row_path import RowAddress
from prefork.engines.parquet.rows import open_file, read_slices
from prefork.engines.text.document import Document
from prefork.engines.text.formats import text as plain_text
from prefork.outputs import OutputFolder, WrittenFile
from prefork.platform_matrix.versions import find_version
from prefork.run.corpus import BYTES_PER_SECOND as CHARACTERS_PER_SECOND
from prefork.run.problems import Problem, attempt
from prefork.run.row_results import ADDED, RowResult, make_columns

_METADATA = (b"huggingface", b"pandas")  # of columns that results do not have


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """Those of a row group that pass. rows: their numbers there. lengths: samples, empty if the data set does not say
    them. ids: empty without a column of them."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()

    def take(self, count: int) -> ChosenRows:
        """The first ones."""
        return ChosenRows(self.rows[:count], self.lengths[:count], self.ids[:count])


@dataclass(frozen=True, slots=True)
class OpenedRow:
    """A row with what is known of its recording and its text. document: pickled. error: why it cannot be used."""

    row: int
    seconds: float = 0.0
    selection: Selection = field(default_factory=Selection)
    warnings: tuple[str, ...] = ()
    document: bytes | None = None
    error: str | None = None


def choose_rows(*_: Any, file: DataFile, group: int, options: RowOptions, selection: Selection) -> ChosenRows:
    """The rows that pass the filters. Recordings are opened only to filter lengths that no column has. Raises
    InputError."""
    condition = parse_condition(options.where) if options.where else None
    columns = file.columns
    named = [name for name in list_columns(condition) if name in file.names] if condition else []
    wanted = list(dict.fromkeys([*named, *filter(None, (columns.length, columns.id))]))
    arrow = import_arrow()
    rows: list[int] = []
    lengths: list[int] = []
    ids: list[str] = []
    pieces = _read(file, group, wanted) if wanted else [(0, None)]
    for start, batch in pieces:
        count = file.count_rows(group) if batch is None else batch.num_rows
        table = arrow.table({"": arrow.nulls(count)}) if batch is None else arrow.Table.from_batches([batch])
        found = list(range(count))
        if condition is not None:
            mask = find_mask(condition, table, file.partitions)
            found = [number for number, passes in enumerate(mask.to_pylist()) if passes]
        measured = table.column(columns.length).to_pylist() if columns.length else [None] * count
        if options.filters_lengths and columns.length:
            found = [row for row in found if (length := measured[row]) is None or options.passes(length)]
        rows += [start + row for row in found]
        lengths += [measured[row] or 0 for row in found]
        if columns.id:
            known = table.column(columns.id).to_pylist()
            ids += [str(known[row]) for row in found]
    if options.filters_lengths and not columns.length and columns.audio:
        kept = [i for i, row in enumerate(rows) if _passes(file, group, row, options, selection)]
        rows, lengths, ids = [rows[i] for i in kept], [lengths[i] for i in kept], [ids[i] for i in kept if ids]
    return ChosenRows(tuple(rows), tuple(lengths) if columns.length else (), tuple(ids))


def _read(file: DataFile, group: int, columns: Sequence[str]) -> Any:
    """As `read_slices`, from the file as it was when its footer was read."""
    if not file.state.is_current():
        raise InputError(f"{file.name}: has changed since this run began; run it again")
    try:
        with open_file(file.path) as opened:
            yield from read_slices(opened, group, columns)
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from error


def _passes(file: DataFile, group: int, row: int, options: RowOptions, selection: Selection) -> bool:
    """A recording whose length cannot be found passes: why, its result will say."""
    path = RowAddress(file.path, file.columns.audio, group, row).path
    found = attempt("", lambda: probe(path, selection))
    return isinstance(found, Problem) or options.passes(round(found.seconds * SAMPLE_RATE))


def open_rows(
    *_: Any,
    file: DataFile,
    group: int,
    rows: Sequence[int],
    selection: Selection,
    with_text: bool,
    with_audio: bool,
    language: str,
) -> list[OpenedRow]:
    """Looks at the recordings of rows, and reads their texts, if they are wanted. language: of the texts."""
    texts: dict[int, str | None] = {}
    if with_text:
        for start, batch in _read(file, group, [file.columns.text]):
            texts |= dict(enumerate(batch.column(0).to_pylist(), start))
    opened = []
    for row in rows:
        found = attempt("", partial(_open_row, file, group, row, selection if with_audio else None, texts, language))
        opened.append(OpenedRow(row, error=found.reason) if isinstance(found, Problem) else found)
    return opened


def _open_row(
    file: DataFile, group: int, row: int, selection: Selection | None, texts: dict[int, str | None], language: str
) -> OpenedRow:
    """selection: of its recording, None if that is not wanted."""
    document = Document((), media=f"{Path(file.name).stem}-{group}-{row}")
    if texts:
        document = replace(_parse_text(texts[row], file.columns.text, language), media=document.media)
    if selection is None:
        return OpenedRow(row, len(document.source) / CHARACTERS_PER_SECOND, document=pickle.dumps(document))
    recording = probe(RowAddress(file.path, file.columns.audio, group, row).path, selection)
    document = replace(document, seconds=recording.seconds)
    return OpenedRow(row, recording.seconds, recording.selection, recording.warnings, pickle.dumps(document))


def _parse_text(text: str | None, column: str, language: str) -> Document:
    if text is None:
        raise InputError(f"its {column!r} is null; leave the row out, or write its text there")
    document = plain_text.parse(text, column, language)
    if not any(utterance.words for utterance in document.utterances):
        raise InputError(f"its {column!r} has no words; there is nothing to do")
    return document


def write_part(
    *_: Any,
    file: DataFile,
    group: int,
    results: Sequence[tuple[int, RowResult]],
    options: RowOptions,
    target: Path,
    path: PurePath,
) -> WrittenFile:
    """The rows of a row group with their results, in order, as a file of their own. results: by row. Raises
    InputError."""
    arrow = import_arrow()
    dropped = {*ADDED, *(() if options.keep_audio else (file.columns.audio,))}
    version = find_version("prefork")
    with open_file(file.path) as opened:
        schema = opened.schema_arrow
    names = [name for name in schema.names if name not in dropped]

    def make(sink: BinaryIO) -> None:
        kept = arrow.schema([schema.field(name) for name in names], _drop_stale(schema.metadata))
        added = make_columns([], version)
        for name, column in added.items():
            kept = kept.append(arrow.field(name, column.type))
        with import_arrow("pyarrow.parquet").ParquetWriter(sink, kept) as writer:
            for start, batch in _read_or_count(file, group, names):
                count = file.count_rows(group) if batch is None else batch.num_rows
                here = [(row - start, result) for row, result in results if start <= row < start + count]
                table = arrow.table({}) if batch is None else arrow.Table.from_batches([batch])
                taken = table.take(arrow.array([row for row, _ in here], arrow.int64())).columns if names else []
                columns = [*taken, *make_columns([result for _, result in here], version).values()]
                if here:
                    writer.write_table(arrow.Table.from_arrays(columns, schema=kept))

    return OutputFolder(target).write_by(path, make)


def _read_or_count(file: DataFile, group: int, names: Sequence[str]) -> Any:
    return _read(file, group, names) if names else [(0, None)]


def _drop_stale(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
    return {key: value for key, value in (metadata or {}).items() if key not in _METADATA}


def join_parts(*_: Any, parts: Sequence[PurePath], target: Path, path: PurePath) -> WrittenFile:
    """One file of several, each of which becomes a row group, or some if it is large. Raises InputError."""
    arrow, parquet = import_arrow(), import_arrow("pyarrow.parquet")
    folder = OutputFolder(target)

    def make(sink: BinaryIO) -> None:
        with open_file(folder.locate(parts[0])) as first:
            schema = first.schema_arrow
        with parquet.ParquetWriter(sink, schema) as writer:
            for part in parts:
                with open_file(folder.locate(part)) as opened:
                    for number in range(opened.num_row_groups):
                        for _, batch in read_slices(opened, number, schema.names):
                            writer.write_table(arrow.Table.from_batches([batch]))

    return folder.write_by(path, make)
