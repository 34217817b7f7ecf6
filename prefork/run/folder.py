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

_LINK = "is a symbolic link out of the folder and is not followed; copy its target here"
LOCKED = "cannot be read; change its permissions"


@dataclass(slots=True)
class FoundFiles:
    """The files below a folder, by their path in it."""

    root: Path
    transcripts: list[Path] = field(default_factory=list)
    media: dict[Path, list[Path]] = field(default_factory=dict)  # by path without suffix, as `fold` has it
    media_names: dict[str, list[Path]] = field(default_factory=dict)  # the same, by name without suffix
    refused: dict[Path, str] = field(default_factory=dict)  # what is not looked into, and why


def walk(root: Path, skip: str, known: Iterable[str], deep: bool = True) -> FoundFiles:
    """What lies in a folder, and below it if deep; but for hidden files, links out, and what lies below `skip`. known:
    the suffixes of transcripts."""
    wanted = MEDIA_SUFFIXES | set(known)
    found = FoundFiles(root)
    inside = Path(os.path.realpath(root))
    folders = [root]
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
        links = [folder for folder in below if folder.is_symlink()]  # they are not followed
        found.refused |= {link.relative_to(root): _LINK for link in links}
        folders += [folder for folder in reversed(below) if folder not in links]
        place = here.relative_to(root)
        for entry in entries:
            if not _is_folder(entry) and os.path.splitext(entry.name)[1].lower() in wanted:  # noqa: PTH122  three times as fast
                relative = place / entry.name
                sorted_in = attempt(relative.as_posix(), partial(_sort_in, found, entry, relative, inside))
                if isinstance(sorted_in, Problem):
                    found.refused[relative] = f"cannot be looked at: {sorted_in.reason}; check the file"
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _sort_in(found: FoundFiles, entry: os.DirEntry[str], relative: Path, inside: Path) -> None:
    if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
        found.refused[relative] = _LINK
    elif not _is_file(entry):
        found.refused[relative] = "is not a regular file; put a regular file there"
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
