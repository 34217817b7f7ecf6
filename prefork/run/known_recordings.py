"""Recordings that were looked at before, and have not changed since: they need not be opened again."""

from __future__ import annotations

import math
from pathlib import Path

from prefork.engines.audio.reader import Recording
from prefork.engines.files import FileState
from prefork.platform_matrix.cache import Cache
from prefork.platform_matrix.versions import find_version

_MOST = 100_000
_LOOK = 1  # raised when another look would find something else


class KnownRecordings:
    """Kept in the user's cache folder, by path, size, times and inode. A recording that is refused is not kept."""

    def __init__(self) -> None:
        self._cache = Cache("recordings.json", _MOST)
        self._known = self._cache.load_all()
        self._new: dict[str, object] = {}
        self._version = f"{_LOOK} {find_version('av')}"

    def find(self, path: Path, state: FileState) -> Recording | None:
        match self._known.get(self._name(path, state)):
            case [float(seconds), int(rate), int(channels), str(codec), float(claimed)]:
                if 0 < seconds < math.inf and 0 <= claimed < math.inf:
                    return Recording(path, seconds, rate, channels, codec, claimed)
        return None

    def add(self, state: FileState, recording: Recording) -> None:
        r = recording
        self._new[self._name(r.path, state)] = [r.seconds, r.sample_rate, r.channels, r.codec, r.claimed]

    def store(self) -> None:
        """Those that were added."""
        if self._new:
            self._cache.store_all(self._new)

    def _name(self, path: Path, state: FileState) -> str:
        """The path is the recording's own, whole: another folder's is another recording."""
        return f"{path.absolute()}|{state.size}|{state.changed}|{state.inode}|{self._version}"
