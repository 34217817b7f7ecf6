"""Every error of prefork that a program may want to catch.

PreforkError
├─ InputError       an input that cannot be processed; it costs its own job alone
├─ LoadError        a model that cannot be loaded, or cannot be shared here; it ends the run
│  └─ InitializerError    `initializer` has failed, or has not returned
├─ WorkerDied       a task's worker died, again and again
├─ CallTimedOut     a call that had not ended after its timeout; it costs only itself
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

__all__ = [
    "CallTimedOut",
    "InitializerError",
    "InputError",
    "LoadError",
    "OutOfMemory",
    "PreforkError",
    "Stopped",
    "WorkerDied",
]


class InitializerError(LoadError, BrokenProcessPool):
    """The initializer of the workers raised, and that is its cause; or it did not return in time."""


class WorkerDied(PreforkError, BrokenProcessPool):
    """A task's worker died, twice: by a signal, an exit, or because it made no progress and was killed."""


class CallTimedOut(PreforkError, TimeoutError):
    """A call that was ended, because it had reached its timeout. Its cause says where it was, if that was in Python."""


class OutOfMemory(PreforkError):
    """A task that does not fit into memory, with what was predicted, measured and there. It costs only itself."""


class Stopped(PreforkError):
    """The run was stopped before the task was done."""
