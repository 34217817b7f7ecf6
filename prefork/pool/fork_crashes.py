"""Crashes of forked workers. Pure: see `prefork.pool.state`."""

from __future__ import annotations

from collections.abc import Hashable

from prefork.pool.tasks import Task

_MOST = 2  # at different inputs


class ForkCrashes:
    """One input may crash any worker; of two, it is likelier that forked workers cannot live here, whatever a canary
    did. unsafe: why workers are not to be forked any more; empty as long as they are."""

    def __init__(self) -> None:
        self.unsafe = ""
        self._reasons: dict[Hashable, str] = {}  # by what the workers were at

    def note(self, task: Task, reason: str) -> None:
        """A worker has crashed at a task."""
        self._reasons[id(task) if task.name == "call" else task.label] = reason
        if len(self._reasons) >= _MOST:
            self.unsafe = f"forked workers crash at different inputs: {'; '.join(self._reasons.values())}"
