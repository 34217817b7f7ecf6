"""Which recording goes with which transcript."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from prefork.engines.audio.media import AUDIO_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from prefork.engines.base import InputError, Job, Output
from prefork.engines.files import FileState
from prefork.run.folder import FoundFiles, explain, fold
from prefork.run.headers import MediaHeader, read_media_header
from prefork.run.problems import Problem, attempt


@dataclass(frozen=True, slots=True)
class _NoRecording:
    """There is none of the transcript's name."""

    reason: str


def pair(
    found: FoundFiles, elsewhere: FoundFiles | None, outputs: Sequence[tuple[str, str]]
) -> tuple[list[Job], list[Problem], list[Problem]]:
    """Jobs, problems, and the texts without a recording, which may be no transcripts: corpora have their README.txt."""
    jobs: list[Job] = []
    problems: list[Problem] = []
    strays: list[Problem] = []
    for transcript in found.transcripts:
        paired = attempt(transcript.as_posix(), partial(_pair_one, transcript, found, elsewhere, outputs))
        if isinstance(paired, Job):
            jobs.append(paired)
        else:
            stray = isinstance(paired, _NoRecording) and transcript.suffix.lower() != ".cha"
            (strays if stray else problems).append(Problem(transcript.as_posix(), paired.reason))
    return jobs, problems, strays


def _pair_one(
    transcript: Path, found: FoundFiles, elsewhere: FoundFiles | None, outputs: Sequence[tuple[str, str]]
) -> Job | _NoRecording:
    """The state of each file is noted before the first thing is read of it."""
    source = found.root / transcript
    state = FileState.note(source)
    media = _find_media(transcript, found, elsewhere)
    if isinstance(media, _NoRecording):
        return media
    wanted = tuple(Output(name, transcript.with_suffix(suffix)) for name, suffix in outputs)
    return Job(transcript.as_posix(), source, media, wanted, states=(state, FileState.note(media)))


def _find_media(transcript: Path, found: FoundFiles, elsewhere: FoundFiles | None) -> Path | _NoRecording:
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
            known = fold(path)
            if path.suffix.lower() in MEDIA_SUFFIXES and fold(PurePath(wanted)).name in (known.stem, known.name):
                raise InputError(explain(path, why).reason)
    where = f" or below {elsewhere.root}" if elsewhere else ""
    said = "; @Media says that it is missing" if header.status == "missing" else ""
    remedy = "" if elsewhere else ", or give --media DIR"
    return _NoRecording(f"no recording named {wanted!r} beside it{where}{said}; put it there{remedy}")


def _list_candidates(
    stems: Sequence[PurePath], folder: Path, found: FoundFiles, elsewhere: FoundFiles | None
) -> Iterator[list[Path]]:
    """The recordings of a name, place by place: the best place first."""
    places: list[tuple[Mapping[Path, list[Path]], Path]] = [(found.media, folder)]
    if elsewhere is not None:
        places += [(elsewhere.media, folder), (elsewhere.media, Path())]
    for media, parent in places:
        for stem in stems:
            yield media.get(fold(parent / stem), [])
    if elsewhere is not None:
        for stem in stems:
            yield elsewhere.media_names.get(fold(stem).name, [])


def _choose(candidates: Sequence[Path], header: MediaHeader) -> Path:
    """The one recording of that name; of several, the one with the suffix or of the kind that @Media states."""
    if len(candidates) > 1 and header.name:
        name = fold(PurePath(header.name)).name
        candidates = [path for path in candidates if fold(path).name == name] or candidates
    if len(candidates) > 1 and header.kind in ("audio", "video"):
        wanted = AUDIO_SUFFIXES if header.kind == "audio" else VIDEO_SUFFIXES
        candidates = [path for path in candidates if path.suffix.lower() in wanted] or candidates
    if len(candidates) > 1:
        paths = ", ".join(sorted(str(path) for path in candidates))
        remedy = ", or name it with its suffix in @Media" if header.name else ""
        raise InputError(f"{len(candidates)} recordings match it: {paths}; keep one of them{remedy}")
    return candidates[0]
