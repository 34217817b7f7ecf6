"""Where results are kept: a folder of the user's that nobody else can look into."""

from __future__ import annotations

import stat
from pathlib import Path

import platformdirs

from prefork.engines.errors import LoadError
from prefork.platform_matrix.systems import SYSTEM

NAME = "results.sqlite"


class Unusable(LoadError):
    """Nothing can be kept here. Says why, and what to do."""


def find_file() -> Path:
    """Where results are kept, whether there are any or not. Raises Unusable without a home folder."""
    try:
        folder = platformdirs.user_cache_path("prefork")
    except RuntimeError as error:  # there is no home folder
        raise Unusable(f"there is no folder to keep results in ({error}); set XDG_CACHE_HOME") from error
    if not folder.is_absolute():
        raise Unusable("there is no folder to keep results in; set XDG_CACHE_HOME")
    return folder / "results" / NAME


def make_folder(folder: Path) -> None:
    """For this user alone. Raises Unusable if it is somebody else's, or cannot be made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        there = folder.lstat()
        if not stat.S_ISDIR(there.st_mode) or SYSTEM.is_other_user(there):
            raise Unusable(f"{folder} is not a folder of this user's; remove it, or set XDG_CACHE_HOME")
        if there.st_mode & 0o077:  # but for who may write, Windows says nothing by it
            folder.chmod(0o700)
    except OSError as error:
        raise Unusable(
            f"{folder} cannot be used ({error.strerror}); make it writable, or set XDG_CACHE_HOME"
        ) from error
