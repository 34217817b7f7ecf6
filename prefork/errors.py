"""Every error of prefork that a program may want to catch.

PreforkError
├─ InputError       an input that cannot be processed; it costs its own job alone
├─ LoadError        a model that cannot be loaded, or cannot be shared here; it ends the run
├─ WorkerDied       a task's worker died, again and again
├─ OutOfMemory      a task that does not fit into memory; it costs only itself
├─ Stopped          the run was stopped before the task was done
├─ FactsError       a machine, or a description of one, that cannot be used
├─ CUDAError, DeviceError       CUDA's driver, or a device's memory, refuses something
└─ WeightsChanged   shared weights are no longer what they were
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from prefork.engines.errors import InputError, LoadError
from prefork.platform_matrix.errors import PreforkError

__all__ = ["InputError", "LoadError", "OutOfMemory", "PreforkError", "Stopped", "WorkerDied"]


class WorkerDied(PreforkError, BrokenProcessPool):
    """A task's worker died, twice: by a signal, an exit, or because it made no progress and was killed."""


class OutOfMemory(PreforkError):
    """A task that does not fit into memory, with what was predicted, measured and there. It costs only itself."""


class Stopped(PreforkError):
    """The run was stopped before the task was done."""
