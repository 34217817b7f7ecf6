"""Pieces on their way: what the supervisor and a worker tell each other of segments that were computed before.

supervisor    splits are looked up by first keys; what is found is not given to anybody
worker        prepares the others, and looks them up by second keys; what is found is not computed
supervisor    keeps what was computed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefork.cache.keys import SIZE, make_first_key
from prefork.cache.store import Entry, Kind, Reader, Store
from prefork.engines.base import Job


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of a segment. data: pickled, or as the engine's schema writes it. key: the second one; empty if it is
    not to be kept. found: it was kept before. seconds: that it took to compute, then or now."""

    data: bytes
    is_pickled: bool = True
    key: bytes = b""
    found: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a worker needs to know to look up a segment. path: of the file; None if nothing is to be looked up. engine:
    the engine's identity. segment: the digest of what it asks; empty if that has none."""

    path: Path | None
    engine: bytes
    segment: bytes


@dataclass(frozen=True, slots=True)
class DescribedSegment:
    """A segment as the worker that has split the job describes it. size: bytes that it is estimated to take. data:
    itself, pickled. digest: of what it asks; empty if that has none."""

    seconds: float
    size: int
    data: bytes
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class SplitJob:
    """keeps: whether anything may be kept of what the engine makes. recording: the digest of the job's."""

    segments: tuple[DescribedSegment, ...]
    keeps: bool = False
    recording: bytes = b""


@dataclass(slots=True)
class Savings:
    """Of one job. found: segments that were kept before. saved, spent: seconds of computing, of those found and of
    the others. complete: all that it is made of is kept. recording: its digest; empty if it is not known."""

    segments: int = 0
    found: int = 0
    saved: float = 0.0
    spent: float = 0.0
    complete: bool = True
    recording: bytes = b""

    def add(self, other: Savings) -> None:
        """Of the same job, in another runtime."""
        self.segments += other.segments
        self.found += other.found
        self.saved += other.saved
        self.spent += other.spent
        self.complete = self.complete and other.complete
        self.recording = self.recording or other.recording


@dataclass(slots=True)
class PieceCache:
    """The supervisor's side, for all jobs of a run. Of one thread alone.

    store: None if nothing is kept. looks: whether what was kept before is used. identify: the identity of the engine of
    a job's stage, by its number; None if it is not known. recall: the digest of a job's recording, if that is known.
    note: told what came of a job before anybody else is.
    """

    store: Store | None = None
    looks: bool = True
    identify: Callable[[Job, int], bytes | None] = lambda *_: None
    recall: Callable[[Job], bytes] = lambda _: b""
    note: Callable[[Job, Savings], None] = lambda *_: None
    _reader: Reader | None = field(default=None, init=False)

    def open(self, job: Job, stage: int) -> StageCache | None:
        """For the segments of one stage of a job; None if nothing is kept of it."""
        engine = self.identify(job, stage) if self.store is not None else None
        if self.store is None or engine is None:
            return None
        if self._reader is None:
            self._reader = self.store.open_reader()
        return StageCache(self.store, self._reader, self.looks, engine, job)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class StageCache:
    """What is known of the segments of one stage of a job."""

    def __init__(self, store: Store, reader: Reader, looks: bool, engine: bytes, job: Job) -> None:
        self._store = store
        self._reader = reader
        self._looks = looks
        self._engine = engine
        self._job = job
        self._first: list[bytes] = []  # by segment; empty where there is none
        self._links: list[Entry] = []

    def find(self, split: SplitJob) -> list[Piece | None]:
        """For each segment the piece that was kept, if one was."""
        self._first = [self._make_first_key(segment, split.recording) for segment in split.segments]
        return [self._find_one(key) if self._looks and key else None for key in self._first]

    def _make_first_key(self, segment: DescribedSegment, recording: bytes) -> bytes:
        job = self._job
        if not segment.digest or (job.media is not None and not recording):
            return b""
        return make_first_key(self._engine, recording, job.selection, find_length(job), segment.digest)

    def _find_one(self, first: bytes) -> Piece | None:
        link = self._reader.find(first)
        kept = self._reader.find(link.value) if link is not None and len(link.value) == SIZE else None
        if link is None or kept is None:
            return None
        self._store.use(first, link.value)
        return Piece(kept.value, False, link.value, True, kept.seconds)

    def make_order(self, segment: DescribedSegment) -> Keeping:
        """For a worker, of a segment that was not found."""
        return Keeping(self._store.path if self._looks else None, self._engine, segment.digest)

    def keep(self, number: int, piece: Piece) -> None:
        """What a worker has sent of a segment."""
        if not piece.key:
            return
        if piece.found:
            self._store.use(piece.key)
        else:
            self._store.put(Entry(piece.key, Kind.PIECE, piece.data, piece.seconds))
        if self._first and (first := self._first[number]):
            self._links.append(Entry(first, Kind.LINK, piece.key))

    def close(self) -> None:
        """The stage is over. What led to its pieces is true unless a file was changed meanwhile."""
        if all(state.is_current() for state in self._job.states):
            self._store.put(*self._links)


def find_length(job: Job) -> float:
    """Seconds of its recording, 0 where there is none: what a text is said to take depends on all of it."""
    return job.seconds if job.media is not None else 0.0


def count(pieces: Sequence[Piece]) -> Savings:
    """Of the segments of one stage."""
    found = [piece for piece in pieces if piece.found]
    return Savings(
        segments=len(pieces),
        found=len(found),
        saved=sum(piece.seconds for piece in found),
        spent=sum(piece.seconds for piece in pieces if not piece.found),
        complete=all(piece.key for piece in pieces),
    )
