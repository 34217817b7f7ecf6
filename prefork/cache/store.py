"""The file that results are kept in: SQLite, a value for each key.

The supervisor's process alone writes it, in a thread of its own, so that nobody waits for a disk or for another run;
any process may read. What cannot be read or written is not there: the run goes on without it, and says so once.
A value has a checksum; a file that is damaged, or of a newer prefork, is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from prefork.cache.folder import Unusable, make_folder

VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY,    -- SHA-256 of what the value was made from
    kind INTEGER NOT NULL,
    size INTEGER NOT NULL,   -- bytes that the row takes, about
    made INTEGER NOT NULL,   -- seconds since 1970, as used
    used INTEGER NOT NULL,
    seconds REAL NOT NULL,   -- that it took to compute
    value BLOB NOT NULL      -- 8 bytes of the SHA-256 of what follows once it is inflated, then zlib
);
CREATE INDEX IF NOT EXISTS by_use ON entries (used, size);
CREATE INDEX IF NOT EXISTS by_age ON entries (made);
"""
_PUT = """
INSERT INTO entries (key, kind, size, made, used, seconds, value) VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6)
ON CONFLICT (key) DO UPDATE SET size = ?3, made = ?4, used = ?4, seconds = ?5, value = ?6
"""
_CHECKED = 8  # bytes of a digest
_ROW = 120  # bytes of a row besides its value
_PATIENCE = 5.0  # seconds that the writer waits for another run's
_GLANCE = 0.2  # seconds that a reader does
_TOGETHER = 0.25  # seconds between two transactions
_MOST_WAITING = 64 << 20  # bytes that wait for the disk; what is more is not kept
_SHRUNK = 0.9  # of the limit, once it has been reached
_FAULTS = (sqlite3.Error, OSError, zlib.error)


class Kind(IntEnum):
    """What an entry is. LINK: from a first key to a second one. PIECE: what `finish` made of a segment. DOCUMENT: what
    the last stage made of a job. OUTPUTS: the files that were written of it. FILE: a recording's digest. MODEL: what
    engines say of themselves."""

    LINK = 1
    PIECE = 2
    DOCUMENT = 3
    FILE = 4
    MODEL = 5
    OUTPUTS = 6


@dataclass(frozen=True, slots=True)
class Found:
    """An entry's value, and the seconds that it took to compute."""

    value: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be kept."""

    key: bytes
    kind: Kind
    value: bytes
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """size: bytes of the file. age: seconds after which an entry goes."""

    size: int = 2_000_000_000
    age: float = 90 * 86400.0


class Reader:
    """Looks up entries. Of one thread alone; opens the file when it is first asked."""

    def __init__(self, path: Path, fail: Callable[[str], None] = lambda _: None) -> None:
        """fail: told why nothing is found any more."""
        self._path = path
        self._fail = fail
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False

    def find(self, key: bytes) -> Found | None:
        """None if there is no such entry, or it cannot be read."""
        if self._is_closed:
            return None
        try:
            if self._connection is None:
                self._connection = _connect(self._path, _GLANCE)
            row = self._connection.execute("SELECT value, seconds FROM entries WHERE key = ?", (key,)).fetchone()
            return None if row is None else Found(_inflate(row[0]), float(row[1]))
        except _FAULTS as error:
            if _find_code(error) in _BUSY:  # another run tidies up
                return None
            self.close()
            self._fail(describe_fault(error))
            return None

    def close(self) -> None:
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()


_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Store:
    """The file, for the process that writes it. Entries are put and used at any time, and written when it is
    convenient; `close` writes what is left."""

    def __init__(
        self, path: Path, limits: Limits, notice: Callable[[str], None], begin: Callable[[], None] = lambda: None
    ) -> None:
        """notice: told, once, that nothing can be kept any more. begin: called before a new file gets its first result.
        Raises Unusable."""
        self.path = path
        self._is_new = not path.exists()
        self._begin = begin
        self._limits = limits
        self._notice = notice
        self._queue: queue.SimpleQueue[Entry | bytes | None] = queue.SimpleQueue()
        self._waiting = 0  # bytes
        self._broken = threading.Event()
        self._lock = threading.Lock()
        make_folder(path.parent)
        try:
            if self._is_new:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._writer = _connect(path, _PATIENCE)
            _prepare(self._writer)
        except _FAULTS as error:
            raise Unusable(f"{path}: {describe_fault(error)}") from error
        self._thread = threading.Thread(target=self._run, name="prefork-cache", daemon=True)
        self._thread.start()

    def open_reader(self) -> Reader:
        return Reader(self.path, self._give_up)

    def put(self, *entries: Entry) -> None:
        for entry in entries:
            if self._broken.is_set() or self._waiting > _MOST_WAITING:
                return
            with self._lock:
                self._waiting += len(entry.value)
                begins = self._is_new and entry.kind in (Kind.PIECE, Kind.DOCUMENT, Kind.OUTPUTS)
                self._is_new = self._is_new and not begins
            if begins:
                self._begin()
            self._queue.put(entry)

    def use(self, *keys: bytes) -> None:
        """These entries were of use now."""
        for key in keys:
            self._queue.put(key)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _give_up(self, reason: str) -> None:
        with self._lock:
            told = self._broken.is_set()
            self._broken.set()
        if not told:
            self._notice(f"the result cache {self.path}: {reason}; this run goes on without it")

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._tidy()
            while (taken := self._take())[-1] is not None:
                self._write(taken)
            self._write(taken)
            self._tidy()
        except _FAULTS as error:
            self._give_up(describe_fault(error))
        finally:
            self._writer.close()

    def _take(self) -> list[Entry | bytes | None]:
        """What is to be written in one go: it ends with None if nothing comes after it."""
        taken, until = [self._queue.get()], time.monotonic() + _TOGETHER
        while taken[-1] is not None:
            try:
                taken.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return taken

    def _write(self, items: Iterable[Entry | bytes | None]) -> None:
        now = int(time.time())
        with _transaction(self._writer):
            for item in items:
                if item is None:
                    break
                if isinstance(item, bytes):
                    self._writer.execute("UPDATE entries SET used = ? WHERE key = ?", (now, item))
                    continue
                value = _deflate(item.value)
                self._writer.execute(_PUT, (item.key, item.kind, len(value) + _ROW, now, item.seconds, value))
                with self._lock:
                    self._waiting -= len(item.value)

    def _tidy(self) -> None:
        """What is too old goes, then what was used longest ago, until the rest fits. A clock that was set back must not
        keep anything for ever."""
        now = int(time.time())
        with _transaction(self._writer):
            self._writer.execute(
                "UPDATE entries SET made = min(made, ?1), used = min(used, ?1) WHERE used > ?1", (now,)
            )
            self._writer.execute("DELETE FROM entries WHERE made < ?", (now - self._limits.age,))
            (size,) = self._writer.execute("SELECT coalesce(sum(size), 0) FROM entries").fetchone()
            if size > self._limits.size:
                self._evict(size - _SHRUNK * self._limits.size)
        self._writer.executescript("PRAGMA incremental_vacuum")  # `execute` would free a single page

    def _evict(self, excess: float) -> None:
        gone = []
        for key, size in self._writer.execute("SELECT key, size FROM entries ORDER BY used"):
            if excess <= 0:
                break
            gone.append((key,))
            excess -= size
        self._writer.executemany("DELETE FROM entries WHERE key = ?", gone)


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    """Raises sqlite3.Error, also for a file that prefork has not written."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None, check_same_thread=False
    )
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, and this prefork writes {VERSION}")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last entries, and nothing else
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect before the first table alone
    connection.execute("PRAGMA journal_mode = WAL")
    with _transaction(connection):
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite may have ended it
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _deflate(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()[:_CHECKED] + zlib.compress(value, 1)


def _inflate(value: bytes) -> bytes:
    """Raises zlib.error if it is not what was written."""
    if not isinstance(value, bytes):
        raise zlib.error("an entry is not what was written")
    data = zlib.decompress(value[_CHECKED:])
    if hashlib.sha256(data).digest()[:_CHECKED] != value[:_CHECKED]:
        raise zlib.error("an entry is not what was written")
    return data


def _find_code(error: Exception) -> int:
    """SQLite's own number for it, without what says more."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)) & 0xFF


def describe_fault(error: Exception) -> str:
    """What is wrong with the file, and what to do."""
    code = _find_code(error)
    if isinstance(error, OSError):
        return f"{error.strerror}; make it writable, or give --cache off"
    if code in _BUSY:
        return "another process has locked it; wait for that, or give --cache off"
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; make room, or lower --cache-limit"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{error}; make it writable, or give --cache off"
    if code == sqlite3.SQLITE_IOERR:
        return f"{error}; check the disk, or give --cache off"
    return f"it cannot be used ({error}); remove it with: prefork cache clear"


# -- for the commands -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Count:
    """Of one kind of entries. size: bytes. oldest: seconds since 1970. seconds: that they took to compute."""

    kind: Kind
    number: int
    size: int
    oldest: int
    seconds: float


def count_entries(path: Path) -> list[Count]:
    """Raises Unusable."""
    query = "SELECT kind, count(*), sum(size), min(made), sum(seconds) FROM entries GROUP BY kind ORDER BY kind"
    try:
        with closing(_connect(path, _PATIENCE)) as connection:
            return [Count(Kind(kind), *rest) for kind, *rest in connection.execute(query)]
    except (*_FAULTS, ValueError) as error:
        raise Unusable(f"{path}: {describe_fault(error)}") from error


def sample_keys(path: Path, kind: Kind, most: int) -> list[bytes]:
    """Of entries chosen at random. Raises Unusable."""
    query = "SELECT key FROM entries WHERE kind = ? ORDER BY random() LIMIT ?"
    try:
        with closing(_connect(path, _PATIENCE)) as connection:
            return [bytes(key) for (key,) in connection.execute(query, (kind, most))]
    except _FAULTS as error:
        raise Unusable(f"{path}: {describe_fault(error)}") from error


def remove(path: Path) -> int:
    """Everything that was kept, whatever state it is in; the bytes that it took. Raises OSError."""
    taken = 0
    for end in ("", "-wal", "-shm", "-journal"):
        part = path.with_name(path.name + end)
        if part.exists():
            taken += part.stat().st_size
            part.unlink()
    return taken
