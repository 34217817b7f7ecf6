"""The status of runs: a small file beside each journal, which says of which run it is and how far that has come.

Who looks at it from outside cannot read the journal while the run has it locked; that it is locked says that the run
lives, on whatever machine. What a run has not written any more before it was killed, its journal says.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prefork.engines.base import InputError, Job
from prefork.platform_matrix.systems import SYSTEM
from prefork.run.journal import FOLDER, VERSION, Journal, is_locked, name_journal
from prefork.run.salvage import DATABASE_ERRORS, decode
from prefork.run.shards import MOST, Shard

_SECONDS = 5.0  # between two times that a run writes it
_MOST_CORPORA = 50
_MOST_PROBLEMS = 1000
_REMEDY = "repeat the command that wrote it: what its outputs prove to be done stays done"
_NAME = re.compile(r"status(?:-(\d+)-of-(\d+))?\.json")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run, or one shard of several. Times in seconds since 1970.

    jobs: what is to be done, with what an earlier run has done (`skipped`) and what cannot be used (`problems`, which
    are among `failed`). everything: that of all shards together. corpora: digests of the divisions that this journal
    has been used for.
    """

    command: str
    host: str
    started: float
    updated: float
    number: int = 1
    count: int = 1
    jobs: int = 0
    everything: int = 0
    unit: str = "files"
    skipped: int = 0
    done: int = 0
    failed: int = 0
    ended: bool = False
    corpora: Sequence[str] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """By this run or an earlier one."""
        return self.skipped + self.done

    @property
    def left(self) -> int:
        return max(0, self.jobs - self.skipped - self.done - self.failed)


@dataclass(frozen=True, slots=True)
class Figures:
    """How far a run is."""

    jobs: int
    skipped: int
    done: int
    failed: int
    unit: str = "files"


class StatusFile:
    """Written by the run that has the journal of the same name."""

    def __init__(self, root: Path, command: str, shard: Shard | None, notice: Callable[[str], None]) -> None:
        self._path = root / FOLDER / f"status{shard.suffix if shard else ''}.json"
        self._notice = notice
        known = _read(self._path)
        self._status = RunStatus(
            command,
            socket.gethostname(),
            time.time(),
            time.time(),
            shard.number if shard else 1,
            shard.count if shard else 1,
            corpora=known.corpora if known is not None else (),
        )
        self._due = 0.0  # seconds of time.monotonic
        self._failed = False

    def begin(
        self,
        journal: Journal,
        whole: Sequence[Job],
        own: Sequence[Job],
        everything: int,
        problems: Mapping[str, str],
    ) -> None:
        """Has the journal take over what others know of this run's own jobs. whole: those of all shards; everything:
        how many they are, with what cannot be used. problems: of its own. Raises InputError if a run that divides them
        otherwise is writing."""
        count = self._status.count
        corpus = digest_corpus(whole, count)
        journal.adopt(own, list_strangers(self._path.parent, journal.path.name, corpus), count)
        corpora = [*(other for other in self._status.corpora if other != corpus), corpus]
        shown = dict(list(problems.items())[:_MOST_PROBLEMS])
        self._status = replace(self._status, everything=everything, corpora=corpora[-_MOST_CORPORA:], problems=shown)

    def refresh(self, count: Callable[[], Figures]) -> None:
        """Writes it if it is time to."""
        if time.monotonic() >= self._due:
            self._write(count(), ended=False)

    def end(self, figures: Figures) -> None:
        """The run has ended in order, whether or not something is left."""
        self._write(figures, ended=True)

    def _write(self, figures: Figures, ended: bool) -> None:
        self._due = time.monotonic() + _SECONDS
        self._status = replace(self._status, **asdict(figures), updated=time.time(), ended=ended)
        beside = self._path.with_suffix(".part")
        try:
            beside.write_text(json.dumps(asdict(self._status)) + "\n", encoding="utf-8")
            SYSTEM.replace(beside, self._path)
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._notice(f"{self._path}: {error.strerror or error}; prefork status will not know how far this is")


def digest_corpus(jobs: Iterable[Job], count: int) -> str:
    """Of the names of all jobs, and the number of shards that they are divided into."""
    digest = hashlib.sha256(str(count).encode())
    for job in jobs:
        digest.update(job.id.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def list_strangers(folder: Path, own: str, corpus: str) -> list[Path]:
    """Journals of the folder that may know of jobs that are this run's: those that were not written for the same
    division of the same corpus alone. own: the name of its own journal."""
    found = []
    for path in sorted(folder.glob("journal*.sqlite")):
        if path.name == own or "unreadable" in path.name:
            continue
        status = _read(folder / path.name.replace("journal", "status").replace(".sqlite", ".json"))
        if status is None or list(status.corpora) != [corpus]:
            found.append(path)
    return found


def _read(path: Path) -> RunStatus | None:
    """None if there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        status = RunStatus(**found)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    kinds: dict[str, Any] = {"command": str, "host": str, "unit": str, "ended": bool}
    kinds |= dict.fromkeys(("started", "updated"), (int, float))
    numbers = ("number", "count", "jobs", "everything", "skipped", "done", "failed")
    sound = all(type(getattr(status, name)) is int for name in numbers) and isinstance(status.corpora, list)
    sound = sound and isinstance(status.problems, dict) and 1 <= status.number <= status.count <= MOST
    return status if sound and all(isinstance(getattr(status, name), kind) for name, kind in kinds.items()) else None


# -- looked at from outside --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run, or a shard that nobody has begun. state: done, running, stopped, unreadable, not begun. failures: reasons,
    by job; as long as it runs only those that were known when it began. problem: what is the matter with its journal,
    and the remedy; figures are then those that it last wrote beside it."""

    status: RunStatus
    state: str
    failures: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """What is known of an output folder: the runs of its newest division, and how many jobs are in none of them."""

    runs: Sequence[ShownRun]
    unknown: int = 0  # jobs of shards that were not begun

    def total(self, name: str) -> int:
        """finished, failed, jobs or left."""
        known: int = sum(getattr(run.status, name) for run in self.runs)
        return known + (self.unknown if name in ("jobs", "left") else 0)

    @property
    def is_done(self) -> bool:
        return not self.total("left") and not self.total("failed") and not any(run.problem for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """In JSON values."""
        names = {"jobs": "jobs", "done": "finished", "failed": "failed", "left": "left"}
        runs = [
            {
                "shard": run.status.number,
                "shards": run.status.count,
                "state": run.state,
                "command": run.status.command,
                "host": run.status.host,
                "updated": run.status.updated,
                **{shown: getattr(run.status, name) for shown, name in names.items()},
                "failures": dict(run.failures),
                **({"problem": run.problem} if run.problem else {}),
            }
            for run in self.runs
        ]
        return {**{shown: self.total(name) for shown, name in names.items()}, "runs": runs}


def read_folder(root: Path) -> FolderStatus:
    """Raises InputError if nothing is known of it."""
    folder = root / FOLDER
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the OUT of a run")
    found = [status for path in folder.glob("status*.json") if _NAME.fullmatch(path.name) and (status := _read(path))]
    if not found:
        raise InputError(f"{root}: no run has begun there, or one of an older prefork; give the OUT of a run")
    newest = max(found, key=lambda status: status.started)
    runs = {status.number: _look(root, status) for status in found if status.count == newest.count}
    everything = max(run.status.everything for run in runs.values())
    missing = [number for number in range(1, newest.count + 1) if number not in runs]
    unknown = max(0, everything - sum(run.status.jobs for run in runs.values())) if missing else 0
    for number in missing:
        nothing = RunStatus(newest.command, "", 0.0, 0.0, number, newest.count, unit=newest.unit)
        path = folder / f"status{Shard(number, newest.count).suffix}.json"
        problem = f"{path}: cannot be read; {_REMEDY}" if path.exists() else ""
        runs[number] = ShownRun(nothing, "unreadable" if problem else "not begun", problem=problem)
    return FolderStatus([runs[number] for number in sorted(runs)], unknown)


def _look(root: Path, status: RunStatus) -> ShownRun:
    shard = Shard(status.number, status.count) if status.count > 1 else None
    journal = root / FOLDER / name_journal(shard.suffix if shard else "")
    if is_locked(journal):
        return ShownRun(status, "running", status.problems)
    try:
        failed, done = _read_journal(journal, status.started)
    except (*DATABASE_ERRORS, ValueError) as error:
        reason = " ".join(str(error).split())
        return ShownRun(status, "unreadable", status.problems, f"{journal}: cannot be read ({reason}); {_REMEDY}")
    failures = {**status.problems, **failed}
    if not status.ended and status.unit == "files":  # it was killed since it last wrote
        status = replace(status, done=max(status.done, done), failed=max(status.failed, len(failures)))
    return ShownRun(status, "stopped" if status.left or not status.ended else "done", failures)


def _read_journal(path: Path, since: float) -> tuple[dict[str, str], int]:
    """What failed, with the reason, and how many were done since then, in seconds since 1970. Raises DATABASE_ERRORS,
    ValueError."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0.0)) as connection:
        connection.text_factory = decode
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise ValueError(f"is of another prefork: version {version}; this one has {VERSION}")
        query = "SELECT id, error FROM jobs WHERE error IS NOT NULL AND finished >= ?"
        failures = {str(job): str(reason) for job, reason in connection.execute(query, (since,))}
        query = "SELECT count(*) FROM jobs WHERE error IS NULL AND finished >= ?"
        (done,) = connection.execute(query, (since,)).fetchone()
    return failures, done
