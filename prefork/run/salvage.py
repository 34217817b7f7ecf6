"""What can be had of a damaged journal: the rows that can be read, each proven by the bytes of the outputs it names.

A row says what its job's outputs were made of and what their digests are. Where the outputs are still those, the row is
right whatever became of its neighbours; where they are not, or the row cannot be read, the job counts as not done.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from prefork.outputs import OutputFolder, WrittenFile

COLUMNS = ("id", "inputs", "fingerprint", "files", "error", "finished")
Row = tuple[Any, ...]  # of these columns
# What SQLite raises of a damaged file. Python cannot decode a message that quotes a text which is not UTF-8.
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_UNREADABLE = (ValueError, TypeError, RecursionError)


def decode(data: bytes) -> str:
    """A text of the journal. What is not UTF-8 is damage, and comes out as a text that nothing else is equal to."""
    return data.decode("utf-8", "replace")


def read_object(text: object) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except _UNREADABLE:
        return None
    return found if isinstance(found, dict) else None


def read_files(text: object) -> list[WrittenFile] | None:
    """The outputs that a row names; None if it names none, or cannot be read."""
    try:
        entries = json.loads(text) if isinstance(text, str) else []
        files = [WrittenFile(**entry) for entry in entries]
    except _UNREADABLE:
        return None
    sound = all((type(f.path), type(f.size), type(f.sha256)) == (str, int, str) for f in files)
    return files if files and sound else None


def list_proven(path: Path, folder: OutputFolder) -> list[Row]:
    """The rows of a damaged journal whose outputs are in the folder, byte for byte."""
    return [row for row in _read_rows(path).values() if _is_proven(row, folder)]


def read_done(path: Path) -> Iterator[Row]:
    """What a journal that may be written at this moment says is done, as far as it can be read."""
    listed = ", ".join(COLUMNS)
    with suppress(sqlite3.Error), closing(_open(path)) as connection:  # that cannot be opened, it says nothing
        for row in _read_while_sound(connection, f"SELECT {listed} FROM jobs WHERE error IS NULL"):
            if isinstance(row[0], str) and isinstance(row[-1], float):
                yield row


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
    connection.text_factory = decode
    return connection


def _is_proven(row: Row, folder: OutputFolder) -> bool:
    id, inputs, fingerprint, files, error, finished = row
    texts = all(isinstance(value, str) for value in (id, inputs, fingerprint))
    if not texts or error is not None or not isinstance(finished, float) or read_object(fingerprint) is None:
        return False
    written = read_files(files)
    return written is not None and all(map(folder.is_whole, written))


def _read_rows(path: Path) -> dict[Any, Row]:
    """By id. From both ends to where the damage is, then one by one what the index knows beyond that."""
    rows: dict[Any, Row] = {}
    listed = ", ".join(COLUMNS)
    with closing(_open(path)) as connection:
        for order in ("", "DESC"):
            for row in _read_while_sound(connection, f"SELECT {listed} FROM jobs NOT INDEXED ORDER BY rowid {order}"):
                rows[row[0]] = row
        known = [
            id
            for order in ("", "DESC")
            for (id,) in _read_while_sound(connection, f"SELECT id FROM jobs ORDER BY id {order}")
        ]
        for id in dict.fromkeys(known):
            if id not in rows:
                for row in _read_while_sound(connection, f"SELECT {listed} FROM jobs WHERE id = ?", id):
                    rows[id] = row
    return rows


def _read_while_sound(connection: sqlite3.Connection, query: str, *values: Any) -> Iterator[Row]:
    """The rows of an answer as far as it can be read."""
    with suppress(*DATABASE_ERRORS):  # that is where the damage begins
        yield from connection.execute(query, values)
