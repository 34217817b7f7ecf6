"""The recordings of a corpus: which files are some, how long they are, and what their outputs are called."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

from prefork.engines.audio.reader import Recording, Selection, probe
from prefork.engines.base import Job, Output
from prefork.platform_matrix.facts import count_usable_cores
from prefork.run.folder import FoundFiles, fold
from prefork.run.known_recordings import KnownRecordings
from prefork.run.problems import Problem, attempt

_LEAST_PROBERS = 4  # threads that look at recordings' headers: a disk of the network keeps them waiting
_NO_SOUND = "holds no sound that FFmpeg can read"
_LISTED = 10  # files of one suffix that are listed one by one


def measure_recordings(jobs: Sequence[Job], selection: Selection) -> tuple[list[Job], list[Problem]]:
    """The jobs with the lengths of their recordings, and what is read of them; those whose recording is none, or has
    not what was selected, are problems."""
    known = KnownRecordings()

    def recall(job: Job) -> Job:
        assert job.media is not None
        noted = job if job.states else job.note_files()
        recording = known.find(job.media, noted.states[-1], selection)  # it is the last of a job's files
        return noted if recording is None else _measure(noted, recording)

    def look(job: Job) -> Job:
        assert job.media is not None
        recording = probe(job.media, selection)
        known.add(job.states[-1], selection, recording)
        return _measure(job, recording)

    looked = [attempt(job.id, partial(recall, job)) for job in jobs]
    new = [(number, job) for number, job in enumerate(looked) if isinstance(job, Job) and not job.seconds]
    probers = max(_LEAST_PROBERS, count_usable_cores())
    results = _map_in_threads(lambda job: attempt(job.id, partial(look, job)), [job for _, job in new], probers)
    for (number, _), result in zip(new, results, strict=True):
        looked[number] = result
    known.store()
    return [x for x in looked if isinstance(x, Job)], [x for x in looked if isinstance(x, Problem)]


def _map_in_threads(work: Callable[[Job], Job | Problem], jobs: Sequence[Job], most: int) -> list[Job | Problem]:
    """What work makes of each job. Ctrl-C does not wait for a thread, nor does the end of the program: one may be
    reading a file of hundreds of gigabytes."""
    futures: list[Future[Job | Problem]] = [Future() for _ in jobs]
    todo = iter(zip(jobs, futures, strict=True))
    turn = threading.Lock()

    def take() -> tuple[Job, Future[Job | Problem]] | None:
        with turn:
            return next(todo, None)

    def run() -> None:
        while (taken := take()) is not None:
            job, future = taken
            try:
                future.set_result(work(job))
            except BaseException as error:  # noqa: BLE001  it is raised where the result is wanted
                future.set_exception(error)

    for _ in range(min(most, len(jobs))):
        threading.Thread(target=run, name="prefork-look", daemon=True).start()
    return [future.result() for future in futures]


def _measure(job: Job, recording: Recording) -> Job:
    return replace(job, seconds=recording.seconds, warnings=recording.warnings, selection=recording.selection)


def find_recordings(
    found: FoundFiles, single: PurePath | None, outputs: Sequence[tuple[str, str]], selection: Selection
) -> tuple[list[Job], list[Problem], list[Problem]]:
    """A job for each recording, or for a single file, which must be one; the problems; and the files that were looked
    at and are no recordings."""
    media = [path.relative_to(found.root) for paths in found.media.values() for path in paths]
    others = [path for paths in found.others.values() for path in paths]
    if single is not None:
        media, others = [path for path in [*media, *others] if path == single], []
    wanted = [Job(path.as_posix(), found.root / path, found.root / path) for path in sorted([*media, *others])]
    jobs, problems = measure_recordings(wanted, selection)
    named = _name_outputs(jobs, outputs)
    doubtful = {path.as_posix() for path in others}
    passed = [problem.id for problem in problems if problem.id in doubtful]
    return named, [problem for problem in problems if problem.id not in doubtful], list(_list_passed(passed))


def _name_outputs(jobs: Sequence[Job], outputs: Sequence[tuple[str, str]]) -> list[Job]:
    """The jobs with their outputs: named after the recordings without their suffix, but for those that only that would
    tell apart."""
    stems = Counter(fold(Path(job.id).with_suffix("")) for job in jobs)
    named = []
    for job in jobs:
        path = Path(job.id)
        shared = stems[fold(path.with_suffix(""))] > 1
        files = [Output(n, path.with_name(path.name + s) if shared else path.with_suffix(s)) for n, s in outputs]
        named.append(replace(job, outputs=tuple(files)))
    return named


def _list_passed(files: Sequence[str]) -> Iterator[Problem]:
    """Where there are many of one suffix, they are counted."""
    counts = Counter(PurePath(file).suffix for file in files)
    yield from (Problem(file, _NO_SOUND) for file in files if counts[PurePath(file).suffix] <= _LISTED)
    for suffix, count in counts.items():
        if count > _LISTED:
            yield Problem(f"*{suffix}", f"{count} files hold no sound that FFmpeg can read")
