"""Which recording goes with which transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from prefork.engines.audio.container import is_lossless, is_recording
from prefork.engines.audio.media import AUDIO_SUFFIXES, MEDIA_SUFFIXES, VIDEO_SUFFIXES
from prefork.engines.base import InputError, Job, Output
from prefork.engines.files import FileState
from prefork.run.folder import FoundFiles, explain, fold
from prefork.run.headers import MediaHeader, read_media_header
from prefork.run.problems import Problem, attempt


@dataclass(frozen=True, slots=True)
class Pairs:
    """jobs: transcripts with their recordings. problems: transcripts without. strays: texts without, which may be no
    transcripts: corpora have their README.txt. notices: recordings that another one of their name was preferred to."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    strays: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _NoRecording:
    """There is none of the transcript's name."""

    reason: str


def pair(found: FoundFiles, elsewhere: FoundFiles | None, outputs: Sequence[tuple[str, str]]) -> Pairs:
    """Which recording each transcript goes with."""
    pairs = Pairs()
    for transcript in found.transcripts:
        paired = attempt(
            transcript.as_posix(), partial(_pair_one, transcript, found, elsewhere, outputs, pairs.notices)
        )
        if isinstance(paired, Job):
            pairs.jobs.append(paired)
        else:
            stray = isinstance(paired, _NoRecording) and transcript.suffix.lower() != ".cha"
            (pairs.strays if stray else pairs.problems).append(Problem(transcript.as_posix(), paired.reason))
    return pairs


def _pair_one(
    transcript: Path,
    found: FoundFiles,
    elsewhere: FoundFiles | None,
    outputs: Sequence[tuple[str, str]],
    notices: list[Problem],
) -> Job | _NoRecording:
    """The state of each file is noted before the first thing is read of it."""
    source = found.root / transcript
    state = FileState.note(source)
    media = _find_media(transcript, found, elsewhere, notices)
    if isinstance(media, _NoRecording):
        return media
    wanted = tuple(Output(name, transcript.with_suffix(suffix)) for name, suffix in outputs)
    return Job(transcript.as_posix(), source, media, wanted, states=(state, FileState.note(media)))


def _find_media(
    transcript: Path, found: FoundFiles, elsewhere: FoundFiles | None, notices: list[Problem]
) -> Path | _NoRecording:
    """By @Media, else by the transcript's name; beside it, else in --media: the same folder, its root, anywhere. Where
    none of a recording's suffix is there, FFmpeg says of the others of that name whether they are recordings."""
    header = read_media_header(found.root / transcript)
    name = header.name
    wanted = name or transcript.stem
    stems = [PurePath(wanted)]
    if name and stems[0].suffix.lower() in MEDIA_SUFFIXES:
        stems.append(stems[0].with_suffix(""))
    for candidates in _list_candidates(stems, transcript.parent, found, elsewhere):
        if candidates:
            return _choose(candidates, header, found.root, notices)
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
    places: list[tuple[FoundFiles, Path]] = [(found, folder)]
    if elsewhere is not None:
        places += [(elsewhere, folder), (elsewhere, Path())]
    for place, parent in places:
        for stem in stems:
            yield place.media.get(fold(parent / stem), [])
    if elsewhere is not None:
        for stem in stems:
            yield elsewhere.media_names.get(fold(stem).name, [])
    for place, parent in places:
        for stem in stems:
            named = fold(parent / stem)
            bare = [path for path in place.others.get(named.with_suffix(""), []) if fold(path) == named]
            others = [place.root / path for path in place.others.get(named, []) or bare]
            yield list(filter(is_recording, others))


def _choose(candidates: Sequence[Path], header: MediaHeader, root: Path, notices: list[Problem]) -> Path:
    """The one recording of that name; of several, the one with the suffix or of the kind that @Media states, or else
    the one that has lost nothing."""
    if len(candidates) > 1 and header.name:
        name = fold(PurePath(header.name)).name
        candidates = [path for path in candidates if fold(path).name == name] or candidates
    if len(candidates) > 1 and header.kind in ("audio", "video"):
        wanted = AUDIO_SUFFIXES if header.kind == "audio" else VIDEO_SUFFIXES
        candidates = [path for path in candidates if path.suffix.lower() in wanted] or candidates
    lossless = [path for path in candidates if is_lossless(path)] if len(candidates) > 1 else []
    if len(lossless) == 1:
        others = [path for path in candidates if path not in lossless]
        reason = f"{lossless[0].name}, which has its name and has lost nothing, was used in its place"
        notices += [Problem(_name(path, root), reason) for path in others]
        return lossless[0]
    if len(candidates) > 1:
        paths = ", ".join(sorted(str(path) for path in candidates))
        remedy = ", or name it with its suffix in @Media" if header.name else ""
        raise InputError(f"{len(candidates)} recordings match it: {paths}; keep one of them{remedy}")
    return candidates[0]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
