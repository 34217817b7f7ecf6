"""prefork: load models once, fork workers that share them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefork.engines.base import Engine, HostEngine, InputError, Job, LoadError, Output, Segment
    from prefork.engines.document import Document
    from prefork.jobs import JobResult
    from prefork.pipeline import Stage
    from prefork.runtime import Runtime
    from prefork.tasks import HangLimit, Stopped, WorkerDied

_HOMES = {
    "Document": "prefork.engines.document",
    "Engine": "prefork.engines.base",
    "HostEngine": "prefork.engines.base",
    "InputError": "prefork.engines.base",
    "Job": "prefork.engines.base",
    "LoadError": "prefork.engines.base",
    "Output": "prefork.engines.base",
    "Segment": "prefork.engines.base",
    "JobResult": "prefork.jobs",
    "Runtime": "prefork.runtime",
    "Stage": "prefork.pipeline",
    "HangLimit": "prefork.tasks",
    "Stopped": "prefork.tasks",
    "WorkerDied": "prefork.tasks",
}
__all__ = [
    "Document",
    "Engine",
    "HangLimit",
    "HostEngine",
    "InputError",
    "Job",
    "JobResult",
    "LoadError",
    "Output",
    "Runtime",
    "Segment",
    "Stage",
    "Stopped",
    "WorkerDied",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: `prefork --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefork' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
