"""Fragments: what of a data set is read at once, a row group or a file; their rows, lengths and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prefork.data.options import PipelineOptions
from prefork.engines.audio.reader import SAMPLE_RATE, probe
from prefork.engines.audio.selection import Selection
from prefork.engines.base import InputError
from prefork.engines.parquet.columns import Columns, find_columns
from prefork.engines.parquet.conditions import parse_condition
from prefork.engines.parquet.data_set import DataFile, choose_split, read_footers
from prefork.engines.parquet.options import RowOptions
from prefork.engines.parquet.row_path import SUFFIX, RowAddress
from prefork.engines.parquet.rows import get_bytes, open_file, project, read_slices
from prefork.run.folder import walk
from prefork.run.problems import Problem, attempt
from prefork.run.row_work import choose_rows


class Row(NamedTuple):
    """group, number: where it lies in its file. content: the bytes of its recording, None where it has none."""

    group: int
    number: int
    content: bytes | None
    text: str | None
    id: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """number: in the data set's order. groups: of its file. partition: its corpus and language, as hive folders name
    them."""

    number: int
    file: DataFile
    groups: tuple[int, ...]
    partition: tuple[str, str] = ("", "")

    @property
    def audio_bytes(self) -> int:
        """Of its recordings, unpacked."""
        return sum(self.file.groups[group].audio_bytes for group in self.groups)

    @property
    def rows(self) -> int:
        return sum(self.file.groups[group].rows for group in self.groups)


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """The rows of a fragment that pass: (group, row) of each, and its length in samples."""

    places: tuple[tuple[int, int], ...] = ()
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """problems: by file, why it is not used."""

    fragments: tuple[Fragment, ...]
    problems: dict[str, str] = field(default_factory=dict)


def open_data_set(source: Path, options: PipelineOptions) -> DataSet:
    """What there is, in order, limits applied. Raises InputError if nothing can be used."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check the path")
    if options.where:
        parse_condition(options.where)
    root = source if source.is_dir() else source.parent
    names = sorted(walk(root, "", (SUFFIX,)).transcripts) if root == source else [Path(source.name)]
    if not names:
        raise InputError(f"{source}: has no parquet files; their names must end in {SUFFIX}")
    names = choose_split(names, options.split)
    if options.fraction_of_files is not None:
        names = names[: max(round(options.fraction_of_files * len(names)), 1)]
    names = names[: options.nb_files]
    files, problems = read_footers(root, names, lambda schema: _choose(options, schema))
    if not files:
        name, reason = next(iter(problems.items()))
        raise InputError(f"{name}: {reason}")
    return DataSet(tuple(_limit(_list_fragments(files, options.split_to_row_groups), options)), problems)


def _choose(options: PipelineOptions, schema: Any) -> Columns:
    names = (options.audio_column, options.text_column, options.id_column)
    if options.text_column is None:
        try:
            return find_columns(schema, *names, needs_text=True)
        except InputError:  # there need be none; what else is wrong is said below
            pass
    return find_columns(schema, *names, needs_text=options.text_column is not None)


def _list_fragments(files: Iterable[DataFile], split: bool) -> Iterable[Fragment]:
    number = 0
    for file in files:
        whole = tuple(group.number for group in file.groups if group.rows)
        for groups in [(group,) for group in whole] if split else [whole] if whole else []:
            partition = (str(file.partitions.get("corpus", "")), str(file.partitions.get("language", "")))
            yield Fragment(number, file, groups, partition)
            number += 1


def _limit(fragments: Iterable[Fragment], options: PipelineOptions) -> Iterable[Fragment]:
    rows = 0
    for count, fragment in enumerate(fragments, 1):
        yield fragment
        rows += fragment.rows
        if count == options.nb_fragments or (options.nb_rows is not None and rows >= options.nb_rows):
            return


def choose_fragment(
    fragment: Fragment, options: PipelineOptions, measure: Callable[[DataFile, int], Sequence[int | None]]
) -> ChosenRows:
    """The rows that pass, by small columns alone. measure: lengths of a row group's recordings, where no column has
    them; None for what cannot be read. Raises InputError."""
    wanted = RowOptions(where=options.where, min_audio_len=options.min_audio_len, max_audio_len=options.max_audio_len)
    places: list[tuple[int, int]] = []
    lengths: list[int] = []
    for group in fragment.groups:
        if fragment.file.columns.length:
            chosen = choose_rows(file=fragment.file, group=group, options=wanted, selection=Selection())
            found = list(zip(chosen.rows, chosen.lengths, strict=True))
        else:
            known = measure(fragment.file, group)
            passing = RowOptions(where=options.where)
            rows = choose_rows(file=fragment.file, group=group, options=passing, selection=Selection()).rows
            found = [(row, length) for row in rows if (length := known[row]) is not None and wanted.passes(length)]
        places += [(group, row) for row, length in found if wanted.passes(length)]
        lengths += [length for _, length in found if wanted.passes(length)]
    return ChosenRows(tuple(places), tuple(lengths))


def measure_group(file: DataFile, group: int) -> list[int | None]:
    """Lengths in samples; None for what cannot be read. Reads the recordings: for workers."""
    return [_measure_row(file, group, row) for row in range(file.count_rows(group))]


def _measure_row(file: DataFile, group: int, row: int) -> int | None:
    path = RowAddress(file.path, file.columns.audio, group, row).path
    found = attempt("", lambda: probe(path))
    return None if isinstance(found, Problem) else round(found.seconds * SAMPLE_RATE)


def load_rows(fragment: Fragment, places: Iterable[tuple[int, int]], use_threads: bool) -> dict[tuple[int, int], Row]:
    """Rows with their bytes, which nothing else of the file stays in memory for. Raises InputError."""
    file, columns = fragment.file, fragment.file.columns
    if not file.state.is_current():
        raise InputError(f"{file.name}: has changed since it was opened; open the data set anew")
    wanted: dict[int, list[int]] = {}
    for group, number in places:
        wanted.setdefault(group, []).append(number)
    found: dict[tuple[int, int], Row] = {}
    try:
        with open_file(file.path) as opened:
            names = [project(opened.schema_arrow, columns.audio), *filter(None, (columns.text, columns.id))]
            for group, rows in wanted.items():
                numbers = iter(sorted(rows))
                row: int | None = next(numbers, None)
                for start, batch in read_slices(opened, group, list(dict.fromkeys(names)), use_threads):
                    while row is not None and row < start + batch.num_rows:
                        found[group, row] = _take_row(batch, columns, group, row, row - start)
                        row = next(numbers, None)
                    if row is None:
                        break
    except InputError as error:
        raise InputError(f"{file.name}: {error}") from error
    return found


def _take_row(batch: Any, columns: Columns, group: int, row: int, place: int) -> Row:
    def get(name: str) -> str | None:
        value = batch.column(batch.schema.get_field_index(name))[place].as_py() if name else None
        return None if value is None else str(value)

    audio = batch.column(batch.schema.get_field_index(columns.audio))
    return Row(group, row, get_bytes(audio, place), get(columns.text), get(columns.id))
