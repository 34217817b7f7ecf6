"""What a task may end with, besides what it raises itself."""

from __future__ import annotations


class WorkerDied(Exception):
    """A task's worker died, twice: by a signal, an exit, or because it made no progress and was killed."""


class OutOfMemory(Exception):
    """A task that does not fit into memory, with what was predicted, measured and there. It costs only itself."""


class Stopped(Exception):
    """The run was stopped before the task was done."""
