"""Processes that somebody has stopped (SIGSTOP): nothing comes of them, and nobody is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prefork.platform_matrix.systems import SYSTEM

_LOOK_SECONDS = 1.0
_LIMIT_SECONDS = 10.0  # somebody may have wanted to look at it


class StoppedProcesses:
    """Ends them, so that others take their place. notify: gets what the user should know."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._since: dict[int, float] = {}  # by pid
        self._looked = 0.0

    def end(self, list_pids: Callable[[], Mapping[str, int]], now: float) -> None:
        """Looks, if it is time to, and ends those that have been stopped for too long. list_pids: all, by name."""
        if now - self._looked < _LOOK_SECONDS:
            return
        slept = now - self._looked > _LIMIT_SECONDS  # we may have been stopped with them
        self._looked = now
        stopped = {pid: name for name, pid in list_pids().items() if SYSTEM.is_stopped(pid)}
        self._since = {pid: now if slept else self._since.get(pid, now) for pid in stopped}
        for pid, name in stopped.items():
            if now - self._since[pid] > _LIMIT_SECONDS:
                self._notify(f"{name} (pid {pid}) was stopped from outside for {_LIMIT_SECONDS:.0f} s, and is killed")
                SYSTEM.kill(pid)
