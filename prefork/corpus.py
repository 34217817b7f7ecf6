"""From a folder to jobs: which transcript goes with which recording, and what becomes of the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from engines import formats
from engines.audio import probe
from engines.base import InputError, Job, Output

AUDIO_SUFFIXES = frozenset(
    [".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".amr"]
)
VIDEO_SUFFIXES = frozenset([".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp"])
MEDIA_SUFFIXES = AUDIO_SUFFIXES | VIDEO_SUFFIXES
_MEDIA_HEADER = re.compile(rb"^@Media:[ \t]*([^\r\n]*)", re.MULTILINE)
_HEADER_BYTES = 16_384  # @Media stands among the first lines
_PROBERS = 4  # threads that look at recordings' headers


@dataclass(frozen=True, slots=True)
class Problem:
    """An input, and why it cannot be used; with the remedy."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is to be done, longest first; what cannot be, which is an error; what was not used, which is none."""

    jobs: tuple[Job, ...]
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Found:
    """The files below a folder, by their path in it."""

    root: Path
    transcripts: list[Path] = field(default_factory=list)
    media: dict[Path, list[Path]] = field(default_factory=dict)  # by path without suffix
    outside: list[Path] = field(default_factory=list)  # symbolic links that leave the folder
    unreadable: list[Path] = field(default_factory=list)


def find_jobs(source: Path, target: Path, names: Sequence[str] = (), media: Path | None = None) -> Corpus:
    """The jobs that a folder, or a single transcript, makes.

    names: output formats, by default CHAT. media: where recordings are that do not lie beside their transcripts.
    Raises InputError where nothing can be done at all.
    """
    _check_places(source, target, media)
    outputs = [(name, formats.find_suffix(name)) for name in dict.fromkeys(names or ("chat",))]
    root = source if source.is_dir() else source.parent
    found = _walk(root, skip=target.resolve())
    elsewhere = _walk(media, skip=target.resolve()) if media is not None else None
    if source.is_file():
        found.transcripts = [Path(source.name)]
    if not found.transcripts:
        raise InputError(f"{source}: has no transcripts; those that can be read end in {', '.join(formats.READABLE)}")
    jobs, problems = _pair(found, elsewhere, outputs)
    jobs, collisions = _refuse_collisions(jobs)
    jobs, silent = _probe(jobs)
    problems += [_explain_link(path) for path in found.outside if path.suffix.lower() in formats.READABLE]
    problems += [Problem(path.as_posix(), "cannot be read; change its permissions") for path in found.unreadable]
    notices = [] if source.is_file() else _list_unused(found, jobs, [*problems, *collisions, *silent])
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    return Corpus(tuple(jobs), (*problems, *collisions, *silent), tuple(notices))


def _check_places(source: Path, target: Path, media: Path | None) -> None:
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check IN")
    if source.is_file() and source.suffix.lower() not in formats.READABLE:
        known = ", ".join(formats.READABLE)
        raise InputError(f"{source}: no transcript; give a folder, or a file that ends in {known}")
    if media is not None and not media.is_dir():
        raise InputError(f"{media}: no such folder; check --media")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; OUT must be a folder")
    root = source if source.is_dir() else source.parent
    if target.resolve() == root.resolve():
        raise InputError(f"{target}: is IN itself, whose transcripts would be written over; give another OUT")
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root}: cannot be read; change its permissions")


def _walk(root: Path, skip: Path) -> _Found:
    """Hidden files, what lies below `skip`, and links out of the folder are left alone."""
    found = _Found(root)
    inside = root.resolve()
    for folder, folders, files in os.walk(root, onerror=lambda e: found.unreadable.append(_relative(e.filename, root))):
        here = Path(folder)
        for name in sorted(folders):
            if (here / name).is_symlink() and not name.startswith("."):
                found.outside.append((here / name).relative_to(root))  # os.walk does not follow it
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (here / n).resolve() != skip)
        for name in sorted(files):
            path = here / name
            relative = path.relative_to(root)
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix not in MEDIA_SUFFIXES | formats.READABLE.keys():
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                found.outside.append(relative)
            elif suffix in MEDIA_SUFFIXES:
                found.media.setdefault(relative.with_suffix(""), []).append(path)
            else:
                found.transcripts.append(relative)
    return found


def _relative(name: str | None, root: Path) -> Path:
    return Path(name).relative_to(root) if name else Path()


def _pair(
    found: _Found, elsewhere: _Found | None, outputs: Sequence[tuple[str, str]]
) -> tuple[list[Job], list[Problem]]:
    jobs, problems = [], []
    for transcript in found.transcripts:
        try:
            media = _find_media(transcript, found, elsewhere)
        except InputError as error:
            problems.append(Problem(transcript.as_posix(), str(error)))
            continue
        wanted = tuple(Output(name, transcript.with_suffix(suffix)) for name, suffix in outputs)
        jobs.append(Job(transcript.as_posix(), found.root / transcript, media, wanted))
    return jobs, problems


def _find_media(transcript: Path, found: _Found, elsewhere: _Found | None) -> Path:
    """By @Media, else by the transcript's name; beside it, else in --media: the same folder, its root, anywhere."""
    name, kind = read_media_header(found.root / transcript)
    stems = [PurePath(name), PurePath(name).with_suffix("")] if name else [PurePath(transcript.stem)]
    places: list[tuple[Mapping[Path, list[Path]], Path]] = [(found.media, transcript.parent)]
    if elsewhere is not None:
        places += [(elsewhere.media, transcript.parent), (elsewhere.media, Path())]
    for media, folder in places:
        for stem in stems:
            if candidates := media.get(folder / stem):
                return _choose(candidates, name, kind)
    if elsewhere is not None:
        for stem in stems:
            below = [path for key, paths in elsewhere.media.items() if key.name == stem.name for path in paths]
            if below:
                return _choose(below, name, kind)
    wanted = name or transcript.stem
    linked = [p for p in [*found.outside, *(elsewhere.outside if elsewhere else [])] if wanted in (p.stem, p.name)]
    if linked:
        raise InputError(_explain_link(linked[0]).reason)
    where = "beside it" + (f" or below {elsewhere.root}" if elsewhere else "; put it there, or give --media DIR")
    raise InputError(f"no recording named {wanted!r} {where}")


def read_media_header(transcript: Path) -> tuple[str | None, str | None]:
    """What @Media says: the recording's name, and whether it is `audio` or `video`. Raises InputError if the name
    is more than a name, or the recording is said to be missing."""
    if transcript.suffix.lower() != ".cha":
        return None, None
    try:
        with transcript.open("rb") as file:
            match = _MEDIA_HEADER.search(file.read(_HEADER_BYTES))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}; check the file") from error
    if match is None:
        return None, None
    fields = [part.strip().strip('"') for part in match.group(1).decode("utf-8", "replace").split(",")]
    name, kind = fields[0], fields[1] if len(fields) > 1 else None
    if not name:
        return None, kind
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(f"@Media names a path ({name}); it must be the recording's name alone: use --media DIR")
    return name, kind


def _choose(candidates: Sequence[Path], name: str | None, kind: str | None) -> Path:
    """The one recording of that name; of several, the one with the suffix or of the kind that @Media states."""
    if len(candidates) > 1 and name:
        candidates = [path for path in candidates if path.name == name] or candidates
    if len(candidates) > 1 and kind in ("audio", "video"):
        wanted = AUDIO_SUFFIXES if kind == "audio" else VIDEO_SUFFIXES
        candidates = [path for path in candidates if path.suffix.lower() in wanted] or candidates
    if len(candidates) > 1:
        names = ", ".join(sorted(path.name for path in candidates))
        raise InputError(f"several recordings for it: {names}; leave one, or name it with its suffix in @Media")
    return candidates[0]


def _refuse_collisions(jobs: Sequence[Job]) -> tuple[list[Job], list[Problem]]:
    """Of several jobs that would write the same file, only the first stays."""
    owners: dict[Path, str] = {}
    kept, problems = [], []
    for job in jobs:
        taken = [(output.path, owners[output.path]) for output in job.outputs if output.path in owners]
        if taken:
            path, owner = taken[0]
            problems.append(Problem(job.id, f"would be written to {path}, as {owner} is; rename one of them"))
            continue
        kept.append(job)
        owners |= {output.path: job.id for output in job.outputs}
    return kept, problems


def _probe(jobs: Sequence[Job]) -> tuple[list[Job], list[Problem]]:
    """The jobs with the lengths of their recordings; those whose recording is none are problems."""

    def look(job: Job) -> Job | Problem:
        assert job.media is not None
        try:
            return replace(job, seconds=probe(job.media).seconds)
        except InputError as error:
            return Problem(job.id, str(error))

    with ThreadPoolExecutor(_PROBERS) as pool:
        looked = list(pool.map(look, jobs))
    return [x for x in looked if isinstance(x, Job)], [x for x in looked if isinstance(x, Problem)]


def _list_unused(found: _Found, jobs: Iterable[Job], problems: Iterable[Problem]) -> list[Problem]:
    used = {job.media for job in jobs}
    explained = {Path(problem.id).with_suffix("") for problem in problems}
    reason = "no transcript goes with it; add one of the same name"
    notices = [
        Problem(path.relative_to(found.root).as_posix(), reason)
        for stem, paths in found.media.items()
        for path in paths
        if path not in used and stem not in explained
    ]
    notices += [_explain_link(path) for path in found.outside if path.suffix.lower() not in formats.READABLE]
    return sorted(notices, key=lambda notice: notice.id)


def _explain_link(path: Path) -> Problem:
    return Problem(
        path.as_posix(), f"{path.name} is a symbolic link that leads elsewhere and is not followed; copy it here"
    )
