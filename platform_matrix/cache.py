"""What one run has found out and a later one need not find out again, in the user's cache folder.

It is a help and never in the way: what cannot be read is not there, and if nothing can be written, the next run finds
it out once more.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from prefork.platform_matrix.systems import SYSTEM


class Cache:
    """A JSON file with an entry for each key. What an entry holds is for its reader to check."""

    def __init__(self, name: str, most: int) -> None:
        """name: of the file, below the user's cache folder for prefork. most: entries kept, the newest ones."""
        self._file: Path | None = None  # not without a home folder, which platformdirs says in one way or the other
        with contextlib.suppress(RuntimeError):
            file = platformdirs.user_cache_path("prefork") / name
            self._file = file if file.is_absolute() else None
        self._most = most

    def load(self, key: str) -> Any:
        """None if there is no such entry."""
        return self.load_all().get(key)

    def store(self, key: str, entry: Any) -> None:
        """As store_all does it."""
        self.store_all({key: entry})

    def store_all(self, entries: Mapping[str, Any]) -> None:
        """Whole or not at all, whoever else writes there at the same time."""
        if self._file is None:
            return
        others = {other: kept for other, kept in self.load_all().items() if other not in entries}
        newest = dict([*others.items(), *entries.items()][-self._most :])
        with contextlib.suppress(OSError, RecursionError):  # a full or read-only disk; nonsense, nested too deeply
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._file.parent)
            try:
                with open(handle, "w", encoding="utf-8") as new:
                    json.dump(newest, new)
                SYSTEM.replace(Path(name), self._file)
            finally:
                Path(name).unlink(missing_ok=True)

    def load_all(self) -> dict[str, Any]:
        """Every entry, by its key."""
        try:
            plain = self._file is not None and self._file.is_file()  # a pipe would be waited for
            content = json.loads(self._file.read_text(encoding="utf-8")) if self._file and plain else {}
        except (OSError, ValueError, RecursionError):  # torn, or nothing yet
            return {}
        return content if isinstance(content, dict) else {}
