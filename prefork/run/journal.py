"""The journal: which jobs of a run are done, which failed and why, so that the same command goes on where it stopped.

A SQLite file in the output folder. Only the supervisor's process writes it, one transaction for each finished job,
after that job's outputs have been synced and renamed: what it says is done is done. It is checked when it is opened. If
it is damaged it is kept beside, and a new one begins with what the outputs prove of it; where there is any doubt about
a row, its job is not done.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefork.engines.base import InputError, Job, Output
from prefork.engines.files import FileState
from prefork.engines.text import formats
from prefork.engines.text.cues import CueLayout
from prefork.fingerprint import explain
from prefork.outputs import OutputFolder, WrittenFile
from prefork.platform_matrix.systems import SYSTEM
from prefork.run.salvage import COLUMNS, DATABASE_ERRORS, decode, list_proven, read_done, read_files, read_object

FOLDER = ".prefork"  # below the output folder
VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    inputs TEXT NOT NULL,       -- JSON: size, time of change and, of transcripts, SHA-256 of every file the job reads
    fingerprint TEXT NOT NULL,  -- JSON: outputs asked for, and of each stage what prefork/fingerprint.py makes
    files TEXT NOT NULL,        -- JSON: path, size, SHA-256 of every file it wrote
    error TEXT,                 -- why it was set aside; NULL when it is done
    finished REAL NOT NULL      -- seconds since 1970
)
"""

_INSERT = "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?)"
_UNCLEAR = "what the journal says of them is damaged"
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# What SQLite says of the disk, the folder or the machine. All else that it says, it says of the file's content.
_ELSEWHERE = (
    *_BUSY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
_PARTS = ("", "-journal", "-wal", "-shm")  # of a database, by the ends of their names


class _DamagedError(Exception):
    """The file is no journal of this version, or not whole. Says what it is."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of a damaged journal. path: where it was put. reason: what is the matter with it. proven: jobs that
    their outputs prove to be done."""

    path: Path
    reason: str
    proven: int

    def describe(self) -> str:
        said = f"the journal {self.reason} and is kept as {self.path}"
        proven = f"what the outputs prove to be done, {self.proven} files, stays done; " if self.proven else ""
        return f"{said}; {proven}{'all others are' if self.proven else 'every output is'} computed again"


class Journal:
    """What is known of the jobs of one output folder, whose files were noted. Holds the file's lock as long as it is
    open."""

    def __init__(self, folder: OutputFolder, notice: Callable[[str], None] = lambda _: None, suffix: str = "") -> None:
        """notice: told what became of a damaged journal. suffix: of a shard's. Raises InputError where none can be
        written."""
        self._folder = folder
        self._notice = notice
        self.path = folder.root / FOLDER / name_journal(suffix)
        self.recovery: Recovery | None = None  # if there was a damaged one
        self._waiting: list[Sequence[object]] | None = None  # rows that are to be written together
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except _DamagedError as damage:
                self._connection = self._begin_again(str(damage))
        except (*DATABASE_ERRORS, _DamagedError) as error:
            raise InputError(self._explain(error)) from error
        except FileExistsError as error:
            where = self.path.parent
            raise InputError(
                f"{where}: is no folder; the journal belongs there: remove it, or give another OUT"
            ) from error
        except OSError as error:
            raise InputError(f"{folder.root}: cannot write there: {error.strerror}; give another OUT") from error

    def _open(self) -> sqlite3.Connection:
        """Raises _DamagedError, and sqlite3.Error for what is not the file's fault."""
        connection = sqlite3.connect(self.path, timeout=0.0, isolation_level=None)
        connection.text_factory = decode
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # a second run into the same folder is refused
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN EXCLUSIVE")
            _check(connection)
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        except _DamagedError:
            connection.close()
            raise
        except DATABASE_ERRORS as error:
            connection.close()
            if _find_code(error) in _ELSEWHERE:
                raise
            raise _DamagedError(_name_damage(error)) from error
        return connection

    def _begin_again(self, reason: str) -> sqlite3.Connection:
        """Puts the damaged file beside, with all that belongs to it: what SQLite finds of an old transaction it would
        write into the new one."""
        kept = self._name_damaged()
        for part in _PARTS:
            source = self.path.with_name(self.path.name + part)
            if source.exists():
                SYSTEM.replace(source, kept.with_name(kept.name + part))
        connection = self._open()
        proven = list_proven(kept, self._folder)
        _insert(connection, proven)
        self.recovery = Recovery(kept, reason, len(proven))
        self._notice(self.recovery.describe())
        return connection

    def _name_damaged(self) -> Path:
        stamp = int(time.time())
        while (path := self.path.with_name(f"{self.path.stem}-unreadable-{stamp}.sqlite")).exists():
            stamp += 1
        return path

    def _explain(self, error: Exception) -> str:
        if _find_code(error) in _BUSY:
            return f"{self._folder.root}: another run is writing there; wait for it, or give another OUT"
        return f"{self.path}: {error}; make room or make it writable, or give another OUT"

    def close(self) -> None:
        self._connection.close()

    def adopt(self, jobs: Iterable[Job], paths: Iterable[Path], count: int) -> None:
        """Takes over what other journals of the folder say is done of these jobs, and this one has not, or not so
        late. They are read although their runs may be writing: what they say is believed where the outputs prove it.

        count: shards of this run. Raises InputError if a run without shards, or of another number of them, is writing:
        both would write the same outputs.
        """
        others = list(paths)
        if not others:
            return
        for path in others:
            if _count_shards(path) != count and is_locked(path):
                raise InputError(
                    f"{self._folder.root}: another run is writing there, which divides its files otherwise "
                    f"({path.name}); wait for it, or give another OUT"
                )
        known = dict(self._connection.execute("SELECT id, finished FROM jobs WHERE error IS NULL"))
        wanted = set(map(_key, jobs))
        for path in others:
            rows = [
                row
                for row in read_done(path)
                if (row[0] in wanted or _find_file(row[0]) in wanted) and row[-1] > known.get(row[0], 0.0)
            ]
            known |= {row[0]: row[-1] for row in rows}
            _insert(self._connection, rows)

    def is_done(self, job: Job, fingerprint: Mapping[str, Any]) -> bool:
        """Whether the job's outputs are there, whole, and would come out the same if they were made again."""
        row = self._find(job)
        if row is None or row[:2] != (_describe_inputs(job), _describe_settings(job, fingerprint)):
            return False
        files = read_files(row[2])
        if files is None or sorted(file.path for file in files) != sorted(str(output.path) for output in job.outputs):
            return False
        return all(map(self._folder.is_whole, files))

    def may_be_done(self, job: Job) -> bool:
        """Whether it says that the job is done, of the same inputs, with outputs that are there. Of what they were made
        with it is not asked."""
        row = self._find(job)
        files = read_files(row[2]) if row is not None and row[0] == _describe_inputs(job) else None
        return files is not None and bool(files) and all(map(self._folder.has, files))

    def _find(self, job: Job) -> tuple[Any, ...] | None:
        """What it says of a job that is done: inputs, fingerprint, files."""
        query = "SELECT inputs, fingerprint, files FROM jobs WHERE id = ? AND error IS NULL"
        try:
            row: tuple[Any, ...] | None = self._connection.execute(query, (_key(job),)).fetchone()
        except DATABASE_ERRORS:  # damaged since it was opened: what cannot be read is not done
            return None
        return row

    def has_done_any(self) -> bool:
        """Raises InputError if the journal cannot be read any more."""
        try:
            found = self._connection.execute("SELECT 1 FROM jobs WHERE error IS NULL LIMIT 1").fetchone()
        except DATABASE_ERRORS as error:
            raise InputError(self._explain(error)) from error
        return found is not None

    def explain(self, job: Job, fingerprint: Mapping[str, Any]) -> str:
        """Why a job that is done is to be done again although its inputs are the same; empty if that is not so."""
        row = self._find(job)
        if row is None or row[0] != _describe_inputs(job):
            return ""
        old = read_object(row[1])
        if old is None or not _has_stages(old):
            return _UNCLEAR
        try:
            return explain(old, json.loads(_describe_settings(job, fingerprint)))
        except RecursionError:  # no fingerprint is so deep
            return _UNCLEAR

    def record(
        self,
        job: Job,
        fingerprint: Mapping[str, Any],
        files: tuple[WrittenFile, ...] = (),
        error: str | None = None,
    ) -> None:
        """Says that a job is done, or why it was set aside. Raises InputError if the disk does not take it. A journal
        that turns out to be damaged begins anew."""
        described = json.dumps([{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files])
        row = (_key(job), _describe_inputs(job), _describe_settings(job, fingerprint), described, error, time.time())
        if self._waiting is None:
            self._write([row])
        else:
            self._waiting.append(row)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is recorded in it is written at its end, in one go: a disk needs 1 to 50 ms to take it, however much it
        is. Raises InputError as `record` does."""
        self._waiting = []
        try:
            yield
            rows = self._waiting
        finally:
            self._waiting = None
        self._write(rows)

    def _write(self, rows: Sequence[Sequence[object]]) -> None:
        try:
            try:
                _insert(self._connection, rows)
            except DATABASE_ERRORS as damage:
                if _find_code(damage) in _ELSEWHERE:
                    raise
                self._connection.close()
                self._connection = self._begin_again(_name_damage(damage))
                _insert(self._connection, rows)
        except (*DATABASE_ERRORS, _DamagedError) as problem:
            raise InputError(self._explain(problem)) from problem


def _insert(connection: sqlite3.Connection, rows: Sequence[Sequence[object]]) -> None:
    """All of them or none."""
    connection.execute("BEGIN")
    try:
        connection.executemany(_INSERT, rows)
        connection.execute("COMMIT")
    except BaseException:
        with suppress(*DATABASE_ERRORS):  # it may have been rolled back already
            connection.execute("ROLLBACK")
        raise


def _check(connection: sqlite3.Connection) -> None:
    """Raises _DamagedError unless the file is empty, or a whole journal of this version and nothing else."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        raise _DamagedError(f"is of another prefork (version {version}; this one has {VERSION})")
    objects = connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    if not objects:
        return
    columns = tuple(row[1] for row in connection.execute("PRAGMA table_info(jobs)"))
    if objects != [("table", "jobs")] or columns != COLUMNS:
        raise _DamagedError(_name_damage("it holds what prefork has not written"))
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _DamagedError(_name_damage(" ".join(str(verdict).split())))


def _name_damage(reason: object) -> str:
    return f"was damaged ({reason})"


def _find_code(error: Exception) -> int:
    """SQLite's own number for it, without what says more."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _has_stages(fingerprint: Mapping[str, Any]) -> bool:
    stages = fingerprint.get("stages", [])
    return isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)


def name_journal(suffix: str) -> str:
    """suffix: of a shard's, else empty."""
    return f"journal{suffix}.sqlite"


def _count_shards(path: Path) -> int:
    """By a journal's name."""
    count = path.stem.rpartition("-of-")[2]
    return int(count) if count.isdigit() else 1


def is_locked(path: Path) -> bool:
    """Whether a run has this journal open, on this machine or on another."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0.0)) as connection:
            connection.execute("SELECT 1 FROM jobs LIMIT 1")
    except DATABASE_ERRORS as error:
        return _find_code(error) in _BUSY
    return False


def _find_file(id: str) -> str:
    """Of a row group, the data set's file that it is of."""
    return id.rpartition("[")[0]


def _key(job: Job) -> str:
    return job.id.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _describe_inputs(job: Job) -> str:
    """Size and time of change, as they were before the job began, and of a transcript its digest: who edits it
    may set the time back. A recording of hours is not read through to learn that nothing has changed. Where a file lies
    on the disk is left out: a corpus may be copied to another."""
    return json.dumps([(Path(s.path).name, s.size, s.changed[0], _digest(s)) for s in job.states])


@lru_cache(maxsize=4096)
def _digest(state: FileState) -> str:
    """SHA-256 of a transcript, in hexadecimal; empty for others, and for one that is no more what it was."""
    path = Path(state.path)
    if path.suffix.lower() not in formats.READABLE:
        return ""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
    return digest if state.is_current() else ""


def _describe_output(output: Output) -> list[Any]:
    plain = output.layout == CueLayout() or output.format not in ("srt", "vtt")
    return [output.format, str(output.path), *([] if plain else [asdict(output.layout)])]


def _describe_settings(job: Job, fingerprint: Mapping[str, Any]) -> str:
    outputs = [_describe_output(output) for output in job.outputs]
    selected = job.selection.track or job.selection.channels  # as a rule nothing is
    selection = {"selection": [job.selection.track, job.selection.channels]} if selected else {}
    language = {"language": job.language} if job.language else {}
    return json.dumps({"outputs": outputs, **selection, **language, **fingerprint}, sort_keys=True)
