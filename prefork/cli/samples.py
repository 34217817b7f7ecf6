"""The sample recordings, copied out of the package for whoever has no checkout."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prefork.engines.base import InputError
from prefork.outputs import name_partial, sync_folder, write_synced
from prefork.platform_matrix.systems import SYSTEM

_PACKAGE = Path(__file__).parents[1]
SAMPLES = _PACKAGE / "samples"
_PLACES = (_PACKAGE, _PACKAGE / "engines", _PACKAGE / "platform_matrix")  # the latter two are links in a checkout


def copy_samples(target: Path) -> list[Path]:
    """Copies recordings, transcripts and the note on their licence; returns what was not there yet.

    Either all of them or none: nothing that is there is changed, and a file that is there already is fine if it is the
    same. Raises InputError.
    """
    try:
        _check_place(target)
        files = {target / path.name: path.read_bytes() for path in sorted(SAMPLES.iterdir())}
        missing = {path: data for path, data in files.items() if not _is_there(path, data)}
        _write(target, missing)
    except OSError as error:
        reason = f"{target}: the samples cannot be copied there: {error.strerror}"
        raise InputError(f"{reason}; make room or make it writable, or give another folder") from error
    return list(missing)


def _check_place(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; give the name of a folder")
    place = Path(os.path.realpath(target))  # Path.resolve raises of a loop of links, and not always the same
    if any(place.is_relative_to(folder.resolve()) for folder in _PLACES):
        raise InputError(f"{target}: is inside prefork itself; give another folder")


def _is_there(path: Path, data: bytes) -> bool:
    if not os.path.lexists(path):
        return False
    if not path.is_file() or path.read_bytes() != data:
        raise InputError(f"{path}: already exists and differs from the sample; move it away or give another folder")
    return True


def _write(target: Path, files: dict[Path, bytes]) -> None:
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            write_synced(name_partial(path), data)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            for path in files:
                name_partial(path).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
        raise
    for path in files:
        SYSTEM.replace(name_partial(path), path)
    sync_folder(target)
