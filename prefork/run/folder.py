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

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise InputError(f"{root}: {LOCKED}") from error
        found.refused[Path(error.filename).relative_to(root)] = LOCKED

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
                sorted_in = attempt(path.as_posix(), partial(_sort_in, found, path, inside))
                if isinstance(sorted_in, Problem):
                    found.refused[path.relative_to(root)] = f"cannot be looked at: {sorted_in.reason}; check the file"
    return found


def _sort_in(found: FoundFiles, path: Path, inside: Path) -> None:
    relative = path.relative_to(found.root)
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
        found.refused[relative] = _LINK
    elif not os.path.isfile(path):  # noqa: PTH113  unlike Path.is_file it never raises
        found.refused[relative] = "is not a regular file; put a regular file there"
    elif path.suffix.lower() in MEDIA_SUFFIXES:
        key = fold(relative.with_suffix(""))
        found.media.setdefault(key, []).append(path)
        found.media_names.setdefault(key.name, []).append(path)
    else:
        found.transcripts.append(relative)


def fold(path: PurePath) -> Path:
    """Some systems write é as one character, some as two; the same name is meant."""
    return Path(unicodedata.normalize("NFC", str(path)))


def may_hide_transcripts(path: Path, why: str) -> bool:
    return path.suffix.lower() in formats.READABLE or why == LOCKED


def explain(path: Path, why: str) -> Problem:
    return Problem(path.as_posix(), f"{path.name} {why}")
