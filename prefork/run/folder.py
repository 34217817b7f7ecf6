"""The files below a folder: transcripts, recordings, and what is not looked into."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from prefork.engines.audio.media import MEDIA_SUFFIXES
from prefork.engines.base import InputError
from prefork.engines.text import formats
from prefork.run.problems import Problem, attempt

_LINK = "is a symbolic link out of the folder; to follow such links, give --follow-links"
_NO_FILE = "is not a regular file; put a regular file there"
LOCKED = "cannot be read; change its permissions"
# Transcripts and what is made of them: no recordings, whoever asks.
_TEXTS = frozenset(suffix.lower() for format in formats.FORMATS.values() for suffix in format.suffixes)


@dataclass(slots=True)
class FoundFiles:
    """The files below a folder, by their path in it."""

    root: Path
    transcripts: list[Path] = field(default_factory=list)
    media: dict[Path, list[Path]] = field(default_factory=dict)  # by path without suffix, as `fold` has it
    media_names: dict[str, list[Path]] = field(default_factory=dict)  # the same, by name without suffix
    others: dict[Path, list[Path]] = field(default_factory=dict)  # by path without suffix: what FFmpeg may know
    refused: dict[Path, str] = field(default_factory=dict)  # what is not looked into, and why


@dataclass(frozen=True, slots=True)
class Links:
    """Which symbolic links out of a folder are followed: all, or those of one name in the folder itself."""

    all: bool = False
    named: str = ""


def walk(root: Path, skip: str, known: Iterable[str], deep: bool = True, links: Links | None = None) -> FoundFiles:
    """What lies in a folder, and below it if deep; but for hidden files, links out that are not followed, and what lies
    below `skip`. known: the suffixes of transcripts."""
    links = links or Links()
    wanted = MEDIA_SUFFIXES | set(known)
    found = FoundFiles(root)
    inside = Path(os.path.realpath(root))
    folders, seen = [root], {str(inside)}
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as listed:
                entries = sorted((entry for entry in listed if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if here == root:
                raise InputError(f"{root}: {LOCKED}") from error
            found.refused[here.relative_to(root)] = LOCKED
            continue
        below = [here / entry.name for entry in entries if deep and _is_folder(entry)]
        below = [folder for folder in below if os.path.realpath(folder) != skip]
        refused = [folder for folder in below if folder.is_symlink() and not _may_enter(folder, links, seen)]
        found.refused |= {link.relative_to(root): _LINK for link in refused if not links.all}
        folders += [folder for folder in reversed(below) if folder not in refused]
        place = here.relative_to(root)
        for entry in entries:
            if _is_folder(entry):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  three times as fast
            if suffix in wanted or suffix not in _TEXTS:
                relative = place / entry.name
                follow = links.all or (here == root and entry.name == links.named)
                sort = partial(_sort_in, found, entry, relative, None if follow else inside, suffix not in wanted)
                sorted_in = attempt(relative.as_posix(), sort)
                if isinstance(sorted_in, Problem):
                    found.refused[relative] = f"cannot be looked at: {sorted_in.reason}; check the file"
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _may_enter(folder: Path, links: Links, seen: set[str]) -> bool:
    """Whether a link to a folder is followed: once, or links that lead up would be followed for ever."""
    real = os.path.realpath(folder)
    if not links.all or any(Path(known).is_relative_to(real) or Path(real).is_relative_to(known) for known in seen):
        return False
    seen.add(real)
    return True


def _sort_in(found: FoundFiles, entry: os.DirEntry[str], relative: Path, inside: Path | None, other: bool) -> None:
    """inside: the folder that a link must not lead out of, if there is one."""
    if entry.is_symlink() and inside is not None and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
        found.refused[relative] = _LINK
    elif not _is_file(entry):
        found.refused[relative] = _explain_no_file(entry)
    elif other:
        found.others.setdefault(fold(relative.with_suffix("")), []).append(relative)
    elif relative.suffix.lower() in MEDIA_SUFFIXES:
        key = fold(relative.with_suffix(""))
        found.media.setdefault(key, []).append(found.root / relative)
        found.media_names.setdefault(key.name, []).append(found.root / relative)
    else:
        found.transcripts.append(relative)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _explain_no_file(entry: os.DirEntry[str]) -> str:
    """A corpus of git-annex, DataLad or DVC is full of links whose content is somewhere else."""
    if not entry.is_symlink() or Path(entry.path).exists():
        return _NO_FILE
    return (
        f"is not a regular file: it is a symbolic link to {Path(entry.path).readlink()}, which is not there; get its "
        "content (git annex get, datalad get, dvc pull), or put a regular file there"
    )


def fold(path: PurePath) -> Path:
    """Some systems write é as one character, some as two; the same name is meant."""
    text = str(path)
    if text.isascii() and isinstance(path, Path):
        return path
    return Path(unicodedata.normalize("NFC", text))


def may_hide_transcripts(path: Path, why: str) -> bool:
    return path.suffix.lower() in formats.READABLE or why == LOCKED


def explain(path: Path, why: str) -> Problem:
    return Problem(path.as_posix(), f"{path.name} {why}")
