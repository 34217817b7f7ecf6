"""Output files: written beside, synced, renamed; never outside the output folder, never half there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from prefork.engines.base import InputError, Job
from prefork.engines.text.document import Document
from prefork.platform_matrix.systems import SYSTEM


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A whole output: its path below the output folder, its size in bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class JobOutput:
    """What the last step of a job leaves: its document, and the files made from it."""

    document: Document
    files: tuple[WrittenFile, ...]


class OutputFolder:
    """The folder that everything a run writes stays below."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def locate(self, path: PurePath) -> Path:
        """Where a relative path lies in the folder. Raises InputError if that is outside of it."""
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{path}: an output must be below {self.root}; give a relative path without '..'")
        parent = (self.root / path).parent
        if not parent.resolve().is_relative_to(self.root):
            raise InputError(
                f"{path}: {parent} leads out of the output folder {self.root} through a symbolic link; remove the link"
            )
        return self.root / path

    def write(self, path: PurePath, text: str) -> WrittenFile:
        """Writes a file whole or not at all. Raises InputError if the folder does not take it."""
        data = text.encode("utf-8", "surrogateescape")
        return self.write_by(path, lambda file: file.write(data))

    def write_by(self, path: PurePath, make: Callable[[BinaryIO], object]) -> WrittenFile:
        """The same, of what `make` writes into a file that is open. Raises what `make` does, OSError as InputError."""
        final = self.locate(path)
        partial = name_partial(final)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self.locate(path)  # again, now that the folders are there
            _write_synced(partial, make)
            written = WrittenFile(str(path), partial.stat().st_size, _digest(partial))
            SYSTEM.replace(partial, final)
            sync_folder(final.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):  # it may not even be there
                partial.unlink()
            if not isinstance(error, OSError):
                raise
            if isinstance(error, IsADirectoryError):
                raise InputError(f"{path}: is a folder in {self.root}; remove it, or give another OUT") from error
            raise InputError(
                f"{path}: cannot be written below {self.root}: {error.strerror or error}; "
                "make room or make it writable, then give the same command again"
            ) from error
        return written

    def read(self, file: WrittenFile) -> str:
        """What was written. Raises InputError if that is not there any more."""
        if not self.is_whole(file):
            raise InputError(f"{file.path}: is not what was written; leave what is in {self.root} as it is")
        return self.locate(PurePath(file.path)).read_bytes().decode("utf-8", "surrogateescape")

    def has(self, file: WrittenFile) -> bool:
        """Whether a file of that name and size is there. Reads nothing of it."""
        try:
            return (self.root / file.path).stat().st_size == file.size
        except OSError:
            return False

    def is_whole(self, file: WrittenFile) -> bool:
        """Whether the file is there, in the folder, and still what was written."""
        try:
            path = self.locate(PurePath(file.path))
            if not path.is_file() or path.stat().st_size != file.size:
                return False
            return _digest(path) == file.sha256
        except (InputError, OSError, ValueError):  # it leads out of the folder, or cannot be looked at
            return False


def write_document(folder: OutputFolder, job: Job, document: Document) -> JobOutput:
    """A job's document in every format that the job asks for. Nothing is read of the job after it was looked at, so
    that what is written is of its files as they were noted. Raises InputError."""
    from prefork.engines.text import formats  # who writes nothing does without them

    job.check_files()
    made = formats.warn_of_losses(document, [output.format for output in job.outputs])
    rendered = [(output.path, formats.render(made, output.format, output.layout)) for output in job.outputs]
    return JobOutput(made, tuple(folder.write(path, text) for path, text in rendered))


def name_partial(path: Path) -> Path:
    """What an output is called until it is whole: always the same, so that a killed worker leaves no litter, and
    short, however long the name."""
    return path.with_name(f".prefork-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.part")


def write_synced(path: Path, data: bytes) -> None:
    _write_synced(path, lambda file: file.write(data))


def _write_synced(path: Path, make: Callable[[BinaryIO], object]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | SYSTEM.no_link, 0o666)
    with open(fd, "wb") as file:
        make(file)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    SYSTEM.sync_folder(path)
