"""The journal: which jobs of a run are done, which failed and why, so that the same command goes on where it stopped.

A SQLite file in the output folder. Only the supervisor's process writes it, one transaction for each finished job,
after that job's outputs have been synced and renamed: what it says is done is done.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefork.engines.base import InputError, Job
from prefork.fingerprint import explain
from prefork.outputs import OutputFolder, WrittenFile

FOLDER = ".prefork"  # below the output folder
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    inputs TEXT NOT NULL,       -- JSON: size and time of change of every file the job reads
    fingerprint TEXT NOT NULL,  -- JSON: outputs asked for, and of each stage what prefork/fingerprint.py makes
    files TEXT NOT NULL,        -- JSON: path, size, SHA-256 of every file it wrote
    error TEXT,                 -- why it was set aside; NULL when it is done
    finished REAL NOT NULL      -- seconds since 1970
)
"""


class Journal:
    """What is known of the jobs of one output folder, whose files were noted. Holds the file's lock as long as it is
    open."""

    def __init__(self, folder: OutputFolder) -> None:
        self._folder = folder
        self.path = folder.root / FOLDER / "journal.sqlite"
        self.recovered: Path | None = None  # where an unreadable journal was put
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._open()
        except sqlite3.OperationalError as error:
            raise InputError(self._explain(error)) from error
        except sqlite3.DatabaseError:  # not a database, or a torn one: nothing in it can be relied on
            self.recovered = self.path.with_name(f"journal-unreadable-{int(time.time())}.sqlite")
            self.path.rename(self.recovered)
            self._connection = self._open()
        except OSError as error:
            raise InputError(f"{folder.root}: cannot write there: {error.strerror}; give another OUT") from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=0.0, isolation_level=None)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # a second run into the same folder is refused
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN EXCLUSIVE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"journal of version {version}")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
            connection.execute("SELECT id, error FROM jobs LIMIT 1").fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _explain(self, error: sqlite3.OperationalError) -> str:
        if "locked" in str(error):
            return f"{self._folder.root}: another run is writing there; wait for it, or give another OUT"
        return f"{self.path}: {error}; make room or make it writable, or give another OUT"

    def close(self) -> None:
        self._connection.close()

    def is_done(self, job: Job, fingerprint: Mapping[str, Any]) -> bool:
        """Whether the job's outputs are there, whole, and would come out the same if they were made again."""
        row = self._connection.execute(
            "SELECT inputs, fingerprint, files FROM jobs WHERE id = ? AND error IS NULL", (_key(job),)
        ).fetchone()
        if row is None or row[:2] != (_describe_inputs(job), _describe_settings(job, fingerprint)):
            return False
        return all(self._folder.is_whole(WrittenFile(**file)) for file in json.loads(row[2]))

    def has_done_any(self) -> bool:
        return self._connection.execute("SELECT 1 FROM jobs WHERE error IS NULL LIMIT 1").fetchone() is not None

    def explain(self, job: Job, fingerprint: Mapping[str, Any]) -> str:
        """Why a job that is done is to be done again although its inputs are the same; empty if that is not so."""
        row = self._connection.execute(
            "SELECT fingerprint FROM jobs WHERE id = ? AND inputs = ? AND error IS NULL",
            (_key(job), _describe_inputs(job)),
        ).fetchone()
        return "" if row is None else explain(json.loads(row[0]), json.loads(_describe_settings(job, fingerprint)))

    def record(
        self,
        job: Job,
        fingerprint: Mapping[str, Any],
        files: tuple[WrittenFile, ...] = (),
        error: str | None = None,
    ) -> None:
        """Says that a job is done, or why it was set aside. Raises InputError if the disk does not take it."""
        described = json.dumps([{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files])
        row = (_key(job), _describe_inputs(job), _describe_settings(job, fingerprint), described, error, time.time())
        try:
            self._connection.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.OperationalError as problem:
            raise InputError(self._explain(problem)) from problem


def _key(job: Job) -> str:
    return job.id.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _describe_inputs(job: Job) -> str:
    """Size and time of change, as they were before the job began: a recording of hours is not read through to learn
    that nothing has changed. Where a file lies on the disk is left out: a corpus may be copied to another."""
    return json.dumps([(Path(state.path).name, state.size, state.changed[0]) for state in job.states])


def _describe_settings(job: Job, fingerprint: Mapping[str, Any]) -> str:
    outputs = [[output.format, str(output.path)] for output in job.outputs]
    return json.dumps({"outputs": outputs, **fingerprint}, sort_keys=True)
