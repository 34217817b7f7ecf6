"""Facts of this machine, or of one that a file describes."""

from __future__ import annotations

from pathlib import Path

from prefork.engines.base import InputError
from prefork.platform_matrix.facts import Facts, FactsError, read_facts


def find_facts(file: Path | None, refresh: bool = False) -> Facts:
    """Of this machine, or as a file describes another. Raises InputError if there is no such file, or it is none."""
    if file is None:
        from prefork.platform_matrix.devices import ask_devices

        return read_facts(ask_devices(refresh))
    try:
        return Facts.from_json(file.read_text(encoding="utf-8"), str(file))
    except FactsError as error:
        raise InputError(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise InputError(f"{file}: {reason}; give a file written by `prefork matrix --json`") from error
