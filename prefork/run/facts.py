"""Facts of this machine, or of one that a file describes."""

from __future__ import annotations

from pathlib import Path

from prefork.engines.base import InputError
from prefork.platform_matrix.errors import FactsError
from prefork.platform_matrix.facts import Facts, read_facts


def find_facts(file: Path | None, refresh: bool = False) -> Facts:
    """Of this machine, or as a file describes another. Raises InputError if nothing can be decided for it, or if there
    is no such file."""
    try:
        if file is not None:
            return Facts.from_json(_read(file), str(file))
        from prefork.platform_matrix.devices import ask_devices

        return read_facts(ask_devices(refresh))
    except FactsError as error:
        raise InputError(str(error)) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise InputError(f"{file}: {reason}; give a file written by `prefork matrix --json`") from error
