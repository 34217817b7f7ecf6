"""From a folder to jobs: which transcript goes with which recording, and what becomes of the rest."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from prefork.engines.audio.media import AUDIO_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from prefork.engines.audio.reader import probe
from prefork.engines.base import InputError, Job, Output
from prefork.engines.text import formats
from prefork.pool.pipeline import Intake

_MEDIA_KNOWN = ", ".join([*sorted(AUDIO_SUFFIXES), *sorted(VIDEO_SUFFIXES)])
_MEDIA_HEADER = re.compile(rb"^@Media:[ \t]*([^\r\n]*)", re.MULTILINE)
_HEADER_BYTES = 16_384  # @Media stands among the first lines
_LINK = "is a symbolic link that leads elsewhere and is not followed; copy it here"
_LOCKED = "cannot be read; change its permissions"
_PROBERS = 4  # threads that look at recordings' headers
_LANGUAGES_HEADER = re.compile(rb"^@Languages:[ \t]*([^\r\n]*)", re.MULTILINE)
_BYTES_PER_SECOND = 15  # of text, as it is usually spoken
_NOTES = frozenset({"readme", "license", "licence", "copying", "changelog", "changes", "notes", "0readme"})
_NOTE = "looks like a note about the others; give it alone, or under another name, if it is not"


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


@dataclass(frozen=True, slots=True)
class MediaHeader:
    """What @Media says. kind: `audio` or `video`. status: `missing`, `unlinked` or `notrans`."""

    name: str | None = None
    kind: str | None = None
    status: str | None = None


class _NoRecording(InputError):
    """There is none of the transcript's name."""


@dataclass(slots=True)
class _Found:
    """The files below a folder, by their path in it."""

    root: Path
    transcripts: list[Path] = field(default_factory=list)
    media: dict[Path, list[Path]] = field(default_factory=dict)  # by path without suffix, as `_fold` has it
    media_names: dict[str, list[Path]] = field(default_factory=dict)  # the same, by name without suffix
    refused: dict[Path, str] = field(default_factory=dict)  # what is not looked into, and why


def find_jobs(
    source: Path,
    target: Path | None,
    names: Sequence[str] = (),
    media: Path | None = None,
    intake: Intake = Intake.PAIRS,
) -> Corpus:
    """The jobs that a folder, or a single file, makes.

    target: where the outputs will be, None if there will be none. names: output formats, by default CHAT; of texts,
    CHAT for CHAT and CoNLL-U for all others. media: where recordings are that do not lie beside their transcripts.
    intake: what else lies there is left where it is. Raises InputError where nothing can be done at all.
    """
    _check_places(source, target, media, intake)
    outputs = _name_outputs(names or ("chat",))
    skip = os.path.realpath(target) if target is not None else ""
    single = not source.is_dir()
    known = formats.READABLE if intake is Intake.TEXTS else formats.TRANSCRIPTS
    found = _walk(source.parent if single else source, skip, known, deep=not single)
    only = PurePath(source.name) if single else None
    if intake is Intake.RECORDINGS:
        return _find_recordings(found, only, outputs)
    if intake is Intake.TEXTS:
        return _find_texts(found, only, outputs if names else None)
    elsewhere = _walk(media, skip, known) if media is not None else None
    if single:
        found.transcripts = [Path(source.name)]
        found.refused = {path: why for path, why in found.refused.items() if path.suffix.lower() in MEDIA_SUFFIXES}
    paired, problems, strays = _pair(found, elsewhere, outputs)
    if single:
        problems, strays = [*problems, *strays], []
    problems += [_explain(path, why) for path, why in found.refused.items() if _may_hide_transcripts(path, why)]
    if strays and not paired and not problems:
        raise InputError(f"{source}: no recording goes with any of its transcripts: {strays[0].id}: {strays[0].reason}")
    if not paired and not problems:
        raise InputError(
            f"{source}: has no transcripts; those that can be read end in {', '.join(formats.TRANSCRIPTS)}"
        )
    distinct, collisions = _refuse_collisions(paired)
    jobs, unheard = _probe(distinct)
    problems += [*collisions, *unheard]
    notices = [] if single else sorted([*strays, *_list_unused(found, paired, problems)], key=_get_id)
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    return Corpus(tuple(jobs), tuple(sorted(problems, key=_get_id)), tuple(notices))


def _name_outputs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Formats, and the suffixes of files in them."""
    return [(name, formats.find_suffix(name)) for name in dict.fromkeys(names)]


def _find_texts(found: _Found, single: PurePath | None, outputs: Sequence[tuple[str, str]] | None) -> Corpus:
    """A job for each transcript or text, or for a single one. outputs: by default what each file is itself."""
    texts = [path for path in found.transcripts if single is None or path == single]
    notes = [path for path in texts if single is None and _is_note(path)]
    wanted: list[Job] = []
    problems = [
        _explain(path, why)
        for path, why in found.refused.items()
        if (single is None and _may_hide_transcripts(path, why)) or path == single
    ]
    for path in texts:
        if path in notes:
            continue
        chosen = outputs or _name_outputs(["chat" if path.suffix.lower() == ".cha" else "conllu"])
        try:
            seconds = (found.root / path).stat().st_size / _BYTES_PER_SECOND
        except OSError as error:
            problems.append(_explain(path, f"cannot be read: {error.strerror}; check the file"))
            continue
        files = tuple(Output(name, path.with_suffix(suffix)) for name, suffix in chosen)
        wanted.append(Job(path.as_posix(), found.root / path, None, files, seconds))
    if not wanted and not problems:
        raise InputError(f"{found.root}: has no texts; those that can be read end in {', '.join(formats.READABLE)}")
    jobs, collisions = _refuse_collisions(wanted)
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    notices = tuple(Problem(path.as_posix(), _NOTE) for path in notes)
    return Corpus(tuple(jobs), tuple(sorted([*problems, *collisions], key=_get_id)), notices)


def _is_note(path: PurePath) -> bool:
    return path.suffix.lower() == ".txt" and path.stem.lower() in _NOTES


def find_languages(source: Path, target: Path | None = None) -> tuple[str, ...]:
    """The languages that the texts of a folder, or a single one, are in: a look at their first lines. An empty one
    stands for those that do not say it.

    target: where the outputs are, which are not looked at. What cannot be read names none: it is complained about when
    its turn comes.
    """
    skip = os.path.realpath(target) if target is not None else ""
    paths = [source] if os.path.isfile(source) else []  # noqa: PTH113  unlike Path.is_file it never raises
    if source.is_dir():
        with suppress(InputError):
            found = _walk(source, skip, formats.READABLE)
            paths = [source / path for path in found.transcripts if not _is_note(path)]
    return tuple(dict.fromkeys(name for path in paths for name in read_languages(path)))


def read_languages(path: Path) -> Sequence[str]:
    """Those of one text; none if it cannot be read."""
    if path.suffix.lower() != ".cha":
        return [""]
    try:
        with path.open("rb") as file:
            header = _LANGUAGES_HEADER.search(file.read(_HEADER_BYTES))
    except OSError:
        return []
    return (header[1].decode("utf-8", "replace").replace(",", " ").split() if header else []) or [""]


def _find_recordings(found: _Found, single: PurePath | None, outputs: Sequence[tuple[str, str]]) -> Corpus:
    """A job for each recording, or for a single one."""
    media = [path.relative_to(found.root) for paths in found.media.values() for path in paths]
    refused = {
        path: why for path, why in found.refused.items() if path.suffix.lower() in MEDIA_SUFFIXES or why == _LOCKED
    }
    if single is not None:
        media = [path for path in media if path == single]
        refused = {path: why for path, why in refused.items() if path == single}
    problems = [_explain(path, why) for path, why in refused.items()]
    if not media and not problems:
        raise InputError(f"{found.root}: has no recordings; those that can be read end in {_MEDIA_KNOWN}")
    wanted = [
        Job(
            path.as_posix(),
            found.root / path,
            found.root / path,
            tuple(Output(n, path.with_suffix(s)) for n, s in outputs),
        )
        for path in sorted(media)
    ]
    distinct, collisions = _refuse_collisions(wanted)
    jobs, unheard = _probe(distinct)
    problems += [*collisions, *unheard]
    jobs.sort(key=lambda job: (-job.seconds, job.id))
    return Corpus(tuple(jobs), tuple(sorted(problems, key=_get_id)))


def _check_places(source: Path, target: Path | None, media: Path | None, intake: Intake) -> None:
    suffixes, what, known = {
        Intake.PAIRS: (formats.TRANSCRIPTS.keys(), "transcript", ", ".join(formats.TRANSCRIPTS)),
        Intake.RECORDINGS: (MEDIA_SUFFIXES, "recording", _MEDIA_KNOWN),
        Intake.TEXTS: (formats.READABLE.keys(), "transcript or text", ", ".join(formats.READABLE)),
    }[intake]
    if not os.path.exists(source):  # noqa: PTH110  unlike Path.exists it never raises
        raise InputError(f"{source}: no such file or folder; check IN")
    if not source.is_dir() and (not source.is_file() or source.suffix.lower() not in suffixes):
        raise InputError(f"{source}: no {what}; give a folder, or a file that ends in {known}")
    if media is not None and not media.is_dir():
        raise InputError(f"{media}: no such folder; check --media")
    root = source if source.is_dir() else source.parent
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root}: {_LOCKED}")
    if target is not None:
        _check_target(source, root, target)


def _check_target(source: Path, root: Path, target: Path) -> None:
    if os.path.exists(target) and not target.is_dir():  # noqa: PTH110
        raise InputError(f"{target}: is a file; OUT must be a folder")
    inner, outer = Path(os.path.realpath(root)), Path(os.path.realpath(target))
    if outer == inner:
        raise InputError(f"{target}: is IN itself, whose transcripts would be written over; give another OUT")
    if source.is_dir() and inner.is_relative_to(outer):
        raise InputError(f"{target}: holds IN, whose files could be written over; give an OUT beside IN, or in it")


def _walk(root: Path, skip: str, known: Iterable[str], deep: bool = True) -> _Found:
    """What lies in a folder, and below it if deep; but for hidden files, links out, and what lies below `skip`. known:
    the suffixes of transcripts."""
    wanted = MEDIA_SUFFIXES | set(known)
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
            if not name.startswith(".") and path.suffix.lower() in wanted:
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
) -> tuple[list[Job], list[Problem], list[Problem]]:
    """Jobs, problems, and the texts without a recording, which may be no transcripts: corpora have their README.txt."""
    jobs: list[Job] = []
    problems: list[Problem] = []
    strays: list[Problem] = []
    for transcript in found.transcripts:
        try:
            media = _find_media(transcript, found, elsewhere)
        except InputError as error:
            stray = isinstance(error, _NoRecording) and transcript.suffix.lower() != ".cha"
            (strays if stray else problems).append(Problem(transcript.as_posix(), str(error)))
            continue
        wanted = tuple(Output(name, transcript.with_suffix(suffix)) for name, suffix in outputs)
        jobs.append(Job(transcript.as_posix(), found.root / transcript, media, wanted))
    return jobs, problems, strays


def _find_media(transcript: Path, found: _Found, elsewhere: _Found | None) -> Path:
    """By @Media, else by the transcript's name; beside it, else in --media: the same folder, its root, anywhere."""
    header = read_media_header(found.root / transcript)
    name = header.name
    wanted = name or transcript.stem
    stems = [PurePath(wanted)]
    if name and stems[0].suffix.lower() in MEDIA_SUFFIXES:
        stems.append(stems[0].with_suffix(""))
    for candidates in _list_candidates(stems, transcript.parent, found, elsewhere):
        if candidates:
            return _choose(candidates, header)
    for place in [found, elsewhere] if elsewhere else [found]:
        for path, why in place.refused.items():
            known = _fold(path)
            if path.suffix.lower() in MEDIA_SUFFIXES and _fold(PurePath(wanted)).name in (known.stem, known.name):
                raise InputError(_explain(path, why).reason)
    where = f" or below {elsewhere.root}" if elsewhere else ""
    said = "; @Media says that it is missing" if header.status == "missing" else ""
    remedy = "" if elsewhere else ", or give --media DIR"
    raise _NoRecording(f"no recording named {wanted!r} beside it{where}{said}; put it there{remedy}")


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


def read_media_header(transcript: Path) -> MediaHeader:
    """Raises InputError if the name is more than a name, or the header cannot be read."""
    if transcript.suffix.lower() != ".cha":
        return MediaHeader()
    try:
        with transcript.open("rb") as file:
            match = _MEDIA_HEADER.search(file.read(_HEADER_BYTES))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}; check the file") from error
    if match is None:
        return MediaHeader()
    try:
        content = match.group(1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("its @Media is not UTF-8; save it as UTF-8") from error
    fields = [part.strip().strip('"') or None for part in content.split(",")]
    header = MediaHeader(*fields[:3])
    name = header.name or ""
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(f"@Media names a path ({name}); it must be the recording's name alone: use --media DIR")
    return header


def _choose(candidates: Sequence[Path], header: MediaHeader) -> Path:
    """The one recording of that name; of several, the one with the suffix or of the kind that @Media states."""
    if len(candidates) > 1 and header.name:
        name = _fold(PurePath(header.name)).name
        candidates = [path for path in candidates if _fold(path).name == name] or candidates
    if len(candidates) > 1 and header.kind in ("audio", "video"):
        wanted = AUDIO_SUFFIXES if header.kind == "audio" else VIDEO_SUFFIXES
        candidates = [path for path in candidates if path.suffix.lower() in wanted] or candidates
    if len(candidates) > 1:
        paths = ", ".join(sorted(str(path) for path in candidates))
        remedy = ", or name it with its suffix in @Media" if header.name else ""
        raise InputError(f"{len(candidates)} recordings go with it: {paths}; leave one there{remedy}")
    return candidates[0]


def _refuse_collisions(jobs: Sequence[Job]) -> tuple[list[Job], list[Problem]]:
    """Of several jobs that would write the same file, only the first stays."""
    owners: dict[Path, str] = {}
    kept, problems = [], []
    for job in jobs:
        taken = [(output.path, owners[output.path]) for output in job.outputs if output.path in owners]
        if taken:
            path, owner = taken[0]
            problems.append(Problem(job.id, f"its output {path} is already that of {owner}; rename one of them"))
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
        if used.isdisjoint(paths) and stem not in explained
    ]
    notices += [_explain(path, why) for path, why in found.refused.items() if not _may_hide_transcripts(path, why)]
    return notices


def _get_id(problem: Problem) -> str:
    return problem.id


def _may_hide_transcripts(path: Path, why: str) -> bool:
    return path.suffix.lower() in formats.READABLE or why == _LOCKED


def _explain(path: Path, why: str) -> Problem:
    return Problem(path.as_posix(), f"{path.name} {why}")
