"""Recordings that were looked at before, and have not changed since: they need not be opened again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from prefork.engines.audio.reader import Recording, Selection
from prefork.engines.files import FileState
from prefork.platform_matrix.cache import Cache
from prefork.platform_matrix.versions import find_version

_MOST = 100_000
_LOOK = 3  # raised when another look would find something else


class KnownRecordings:
    """Kept in the user's cache folder, by path, size, times and inode. A recording that is refused is not kept."""

    def __init__(self) -> None:
        self._cache = Cache("recordings.json", _MOST)
        self._known = self._cache.load_all()
        self._new: dict[str, object] = {}
        self._version = f"{_LOOK} {find_version('av')}"

    def find(self, path: Path, state: FileState, selection: Selection) -> Recording | None:
        match self._known.get(self._name(path, state, selection)):
            case [
                float(seconds),
                int(rate),
                int(channels),
                str(codec),
                float(claimed),
                list(mixed),
                bool(cancels),
                int(tracks),
                bool(silent),
            ]:
                if 0 < seconds < math.inf and 0 <= claimed < math.inf and all(isinstance(n, int) for n in mixed):
                    chosen = replace(selection, channels=tuple(mixed))
                    return Recording(path, seconds, rate, channels, codec, claimed, chosen, cancels, tracks, silent)
        return None

    def add(self, state: FileState, selection: Selection, recording: Recording) -> None:
        """selection: what was asked for; the recording's own is what came of it."""
        r = recording
        length = [r.seconds, r.sample_rate, r.channels, r.codec, r.claimed]
        chosen = [r.selection.channels or (), r.cancels, r.tracks, r.silent]
        self._new[self._name(r.path, state, selection)] = [*length, *chosen]

    def store(self) -> None:
        """Those that were added."""
        if self._new:
            self._cache.store_all(self._new)

    def _name(self, path: Path, state: FileState, selection: Selection) -> str:
        """The path is the recording's own, whole: another folder's is another recording."""
        asked = f"{selection.track} {selection.channels}"
        return f"{path.absolute()}|{state.size}|{state.changed}|{state.inode}|{asked}|{self._version}"
