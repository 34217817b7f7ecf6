"""From a folder to jobs: which transcript goes with which recording, and what becomes of the rest."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_LINK = "is a symbolic link that leads elsewhere and is not followed; copy it here"
_LOCKED = "cannot be read; change its permissions"
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
    media: dict[Path, list[Path]] = field(default_factory=dict)  # by path without suffix, as `_fold` has it
    media_names: dict[str, list[Path]] = field(default_factory=dict)  # the same, by name without suffix
    refused: dict[Path, str] = field(default_factory=dict)  # what is not looked into, and why


def find_jobs(source: Path, target: Path, names: Sequence[str] = (), media: Path | None = None) -> Corpus:
    """The jobs that a folder, or a single transcript, makes.

    names: output formats, by default CHAT. media: where recordings are that do not lie beside their transcripts.
    Raises InputError where nothing can be done at all.
    """
    _check_places(source, target, media)
    outputs = [(name, formats.find_suffix(name)) for name in dict.fromkeys(names or ("chat",))]
    skip = os.path.realpath(target)
    single = not source.is_dir()
    found = _walk(source.parent if single else source, skip, deep=not single)
    elsewhere = _walk(media, skip) if media is not None else None
    if single:
        found.transcripts = [Path(source.name)]
        found.refused = {path: why for path, why in found.refused.items() if path.suffix.lower() in MEDIA_SUFFIXES}
    paired, problems = _pair(found, elsewhere, outputs)
    problems += [_explain(path, why) for path, why in found.refused.items() if _may_hide_transcripts(path, why)]
    if not paired and not problems:
        raise InputError(f"{source}: has no transcripts; those that can be read end in {', '.join(formats.READABLE)}")
    distinct, collisions = _refuse_collisions(paired)
    jobs, unheard = _probe(distinct)
    problems += [*collisions, *unheard]
    notices = [] if single else _list_unused(found, paired, problems)
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    return Corpus(tuple(jobs), tuple(sorted(problems, key=lambda problem: problem.id)), tuple(notices))


def _check_places(source: Path, target: Path, media: Path | None) -> None:
    known = ", ".join(formats.READABLE)
    if not os.path.exists(source):  # noqa: PTH110  unlike Path.exists it never raises
        raise InputError(f"{source}: no such file or folder; check IN")
    if not source.is_dir() and (not source.is_file() or source.suffix.lower() not in formats.READABLE):
        raise InputError(f"{source}: no transcript; give a folder, or a file that ends in {known}")
    if media is not None and not media.is_dir():
        raise InputError(f"{media}: no such folder; check --media")
    if os.path.exists(target) and not target.is_dir():  # noqa: PTH110
        raise InputError(f"{target}: is a file; OUT must be a folder")
    root = source if source.is_dir() else source.parent
    inner, outer = Path(os.path.realpath(root)), Path(os.path.realpath(target))
    if outer == inner:
        raise InputError(f"{target}: is IN itself, whose transcripts would be written over; give another OUT")
    if source.is_dir() and inner.is_relative_to(outer):
        raise InputError(f"{target}: holds IN, whose files could be written over; give an OUT beside IN, or in it")
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root}: {_LOCKED}")


def _walk(root: Path, skip: str, deep: bool = True) -> _Found:
    """What lies in a folder, and below it if deep; but for hidden files, links out, and what lies below `skip`."""
    found = _Found(root)
    inside = Path(os.path.realpath(root))

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise InputError(f"{root}: {_LOCKED}") from error
        found.refused[Path(error.filename).relative_to(root)] = _LOCKED

    for folder, folders, files in os.walk(root, onerror=refuse):
        here = Path(folder)
        visible = [name for name in sorted(folders) if not name.startswith(".")]
        visible = [name for name in visible if os.path.realpath(here / name) != skip] if deep else []
        links = [name for name in visible if (here / name).is_symlink()]  # os.walk does not follow them
        found.refused |= {(here / name).relative_to(root): _LINK for name in links}
        folders[:] = [name for name in visible if name not in links]
        for name in sorted(files):
            path = here / name
            if not name.startswith(".") and path.suffix.lower() in MEDIA_SUFFIXES | formats.READABLE.keys():
                _sort_in(found, path, inside)
    return found


def _sort_in(found: _Found, path: Path, inside: Path) -> None:
    relative = path.relative_to(found.root)
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
        found.refused[relative] = _LINK
    elif not os.path.isfile(path):  # noqa: PTH113  unlike Path.is_file it never raises
        found.refused[relative] = "is no file that can be read to its end; put a regular file there"
    elif path.suffix.lower() in MEDIA_SUFFIXES:
        key = _fold(relative.with_suffix(""))
        found.media.setdefault(key, []).append(path)
        found.media_names.setdefault(key.name, []).append(path)
    else:
        found.transcripts.append(relative)


def _fold(path: PurePath) -> Path:
    """Some systems write é as one character, some as two; the same name is meant."""
    return Path(unicodedata.normalize("NFC", str(path)))


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
    wanted = name or transcript.stem
    stems = [PurePath(wanted)]
    if name and stems[0].suffix.lower() in MEDIA_SUFFIXES:
        stems.append(stems[0].with_suffix(""))
    for candidates in _list_candidates(stems, transcript.parent, found, elsewhere):
        if candidates:
            return _choose(candidates, name, kind)
    for place in [found, elsewhere] if elsewhere else [found]:
        for path, why in place.refused.items():
            if wanted in (path.stem, path.name) and path.suffix.lower() in MEDIA_SUFFIXES:
                raise InputError(_explain(path, why).reason)
    where = (
        f"beside it or below {elsewhere.root}; put it there"
        if elsewhere
        else "beside it; put it there, or give --media DIR"
    )
    raise InputError(f"no recording named {wanted!r} {where}")


def _list_candidates(
    stems: Sequence[PurePath], folder: Path, found: _Found, elsewhere: _Found | None
) -> Iterator[list[Path]]:
    """The recordings of a name, place by place: the best place first."""
    places: list[tuple[Mapping[Path, list[Path]], Path]] = [(found.media, folder)]
    if elsewhere is not None:
        places += [(elsewhere.media, folder), (elsewhere.media, Path())]
    for media, parent in places:
        for stem in stems:
            yield media.get(_fold(parent / stem), [])
    if elsewhere is not None:
        for stem in stems:
            yield elsewhere.media_names.get(_fold(stem).name, [])


def read_media_header(transcript: Path) -> tuple[str | None, str | None]:
    """What @Media says: the recording's name, and whether it is `audio` or `video`.

    Raises InputError if the name is more than a name, or the transcript cannot be read.
    """
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
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(f"@Media names a path ({name}); it must be the recording's name alone: use --media DIR")
    return name or None, kind


def _choose(candidates: Sequence[Path], name: str | None, kind: str | None) -> Path:
    """The one recording of that name; of several, the one with the suffix or of the kind that @Media states."""
    if len(candidates) > 1 and name:
        candidates = [path for path in candidates if path.name == name] or candidates
    if len(candidates) > 1 and kind in ("audio", "video"):
        wanted = AUDIO_SUFFIXES if kind == "audio" else VIDEO_SUFFIXES
        candidates = [path for path in candidates if path.suffix.lower() in wanted] or candidates
    if len(candidates) > 1:
        paths = ", ".join(sorted(str(path) for path in candidates))
        raise InputError(f"two media for it: {paths}; leave one there, or name it with its suffix in @Media")
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


def _list_unused(found: _Found, paired: Iterable[Job], problems: Iterable[Problem]) -> list[Problem]:
    used = {job.media for job in paired}
    explained = {_fold(PurePath(problem.id).with_suffix("")) for problem in problems}
    notices = [
        Problem(path.relative_to(found.root).as_posix(), "no transcript goes with it; add one of the same name")
        for stem, paths in found.media.items()
        for path in paths
        if path not in used and stem not in explained
    ]
    notices += [_explain(path, why) for path, why in found.refused.items() if not _may_hide_transcripts(path, why)]
    return sorted(notices, key=lambda notice: notice.id)


def _may_hide_transcripts(path: Path, why: str) -> bool:
    return path.suffix.lower() in formats.READABLE or why == _LOCKED


def _explain(path: Path, why: str) -> Problem:
    return Problem(path.as_posix(), f"{path.name} {why}")
