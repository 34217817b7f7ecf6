"""The files of a data set that a command is given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefork.engines.audio.reader import SAMPLE_RATE
from prefork.engines.base import InputError
from prefork.engines.parquet.columns import Columns, find_columns
from prefork.engines.parquet.conditions import list_columns, parse_condition
from prefork.engines.parquet.data_set import DataFile, choose_split, read_footers
from prefork.engines.parquet.options import RowOptions
from prefork.engines.parquet.row_path import SUFFIX
from prefork.engines.parquet.rows import open_file, read_slices
from prefork.pool.pipeline import Intake
from prefork.run.corpus import check_target
from prefork.run.folder import LOCKED, Links, explain, walk
from prefork.run.problems import Problem


def find_files(
    source: Path,
    target: Path | None,
    options: RowOptions,
    intake: Intake = Intake.RECORDINGS,
    follow_links: bool = False,
) -> tuple[list[DataFile], list[Problem]]:
    """The files, in the order of their names; those that cannot be used. source: a parquet file, or a folder of them.
    Raises InputError where nothing can be done at all."""
    if not os.path.exists(source):  # noqa: PTH110  unlike Path.exists it never raises
        raise InputError(f"{source}: no such file or folder; check DATA")
    root = source if source.is_dir() else source.parent
    if root != source and source.suffix != SUFFIX:
        raise InputError(f"{source}: no data set; give a file that ends in {SUFFIX}, or a folder of them")
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root}: {LOCKED}")
    if target is not None:
        check_target(source, root, target)
    skip = os.path.realpath(target) if target is not None else ""
    links = Links(follow_links, source.name if root != source else "")
    found = walk(root, skip, (SUFFIX,), root == source, links)
    names = sorted(found.transcripts) if root == source else [Path(source.name)]
    problems = [explain(path, why) for path, why in found.refused.items() if path.suffix == SUFFIX and path in names]
    if root == source:
        problems = [explain(path, why) for path, why in found.refused.items() if path.suffix == SUFFIX]
    if not names and not problems:
        raise InputError(_explain_absence(source))
    names = choose_split(names, options.split)
    condition = parse_condition(options.where) if options.where else None  # refused before anything is opened
    files, refused = read_footers(root, names, partial(_choose, options, intake))
    problems += [Problem(name, why) for name, why in refused.items()]
    if not files and len({problem.reason for problem in problems}) == 1:
        raise InputError(f"{source}: {problems[0].reason}")
    if condition is not None:
        missing = [name for name in list_columns(condition) if not any(_has(file, name) for file in files)]
        if files and missing:
            known = ", ".join([*files[0].names, *files[0].partitions])
            raise InputError(f"{source}: has no column {missing[0]!r}; check --where, its columns are {known}")
    return files, problems


def _has(file: DataFile, column: str) -> bool:
    return column in file.names or column in file.partitions


def _choose(options: RowOptions, intake: Intake, schema: Any) -> Columns:
    return find_columns(
        schema,
        options.audio_column,
        options.text_column,
        options.id_column,
        needs_audio=intake is not Intake.TEXTS,
        needs_text=intake is not Intake.RECORDINGS,
    )


def read_lengths(files: Sequence[DataFile]) -> list[float]:
    """Seconds, of the recordings of files that have a column of lengths. Raises InputError."""
    found: list[float] = []
    for file in files:
        if file.columns.length:
            with open_file(file.path) as opened:
                for group in range(len(file.groups)):
                    for _, batch in read_slices(opened, group, [file.columns.length]):
                        found += [length / SAMPLE_RATE for length in batch.column(0).to_pylist() if length is not None]
    return found


def _explain_absence(source: Path) -> str:
    if any(source.glob("*.arrow")) or (source / "dataset_dict.json").exists():
        return (
            f"{source}: was written by save_to_disk of Hugging Face's datasets, as Arrow files; write it with "
            "to_parquet, and give that"
        )
    return f"{source}: has no parquet files; their names must end in {SUFFIX}"
