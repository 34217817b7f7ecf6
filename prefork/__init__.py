"""prefork: load models once, fork workers that share them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefork.engines.base import Engine, HostEngine, InputError, Job, LoadError, Output, Segment
    from prefork.engines.text.document import Document
    from prefork.errors import Stopped, WorkerDied
    from prefork.pool.jobs import JobResult
    from prefork.pool.pipeline import Stage
    from prefork.pool.runtime import Runtime
    from prefork.pool.tasks import HangLimit

_FOLDER = Path(__file__).parent
if not (_FOLDER / "engines").is_dir():
    raise ImportError(
        f"{_FOLDER} is not the whole of prefork: it is an unpacked source distribution, or a checkout without symbolic "
        "links; install it by `pip install .` and use it from another folder, or make the checkout anew by "
        "`git clone -c core.symlinks=true`"
    )

_HOMES = {
    "Document": "prefork.engines.text.document",
    "Engine": "prefork.engines.base",
    "HostEngine": "prefork.engines.base",
    "InputError": "prefork.engines.base",
    "Job": "prefork.engines.base",
    "LoadError": "prefork.engines.base",
    "Output": "prefork.engines.base",
    "Segment": "prefork.engines.base",
    "JobResult": "prefork.pool.jobs",
    "Runtime": "prefork.pool.runtime",
    "Stage": "prefork.pool.pipeline",
    "HangLimit": "prefork.pool.tasks",
    "Stopped": "prefork.errors",
    "WorkerDied": "prefork.errors",
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
