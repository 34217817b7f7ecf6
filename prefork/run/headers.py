"""What the first lines of a CHAT transcript say of its recording and its languages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefork.engines.base import InputError, Job
from prefork.engines.text.formats.chat_lines import split_media
from prefork.pool.pipeline import Pipeline

_MEDIA_HEADER = re.compile(rb"^@Media:[ \t]*([^\r\n]*)", re.MULTILINE)
_LANGUAGES_HEADER = re.compile(rb"^@Languages:[ \t]*([^\r\n]*)", re.MULTILINE)
_HEADER_BYTES = 16_384  # @Media stands among the first lines


@dataclass(frozen=True, slots=True)
class MediaHeader:
    """What @Media says. kind: `audio` or `video`. status: `missing`, `unlinked` or `notrans`."""

    name: str | None = None
    kind: str | None = None
    status: str | None = None


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
        raise InputError("its @Media is not UTF-8; save the file as UTF-8") from error
    header = MediaHeader(*split_media(content))
    name = header.name or ""
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(f"@Media names a path ({name}); it must be the recording's name alone: use --media DIR")
    return header


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


def narrow(fingerprint: Mapping[str, Any], pipeline: Pipeline, job: Job) -> Mapping[str, Any]:
    """Without the models of languages that the job is not in: a corpus may come to have more of them. Raises LoadError
    if the fingerprint of an engine does not have what that engine declares."""
    stages = list(fingerprint["stages"])
    for place, stage in enumerate(pipeline):
        if (table := stage.declaration.languages) is not None:
            stages[place] = table.narrow(stage.engine, stages[place], read_languages(job.source))
    return {**fingerprint, "stages": stages}
