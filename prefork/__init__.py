"""prefork: load models once, fork workers that share them.

What is listed here is public: what is to go is deprecated for one minor version before, and every change stands in the
changelog (docs/changelog.md). Everything else, in whatever module, may change with any version.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefork.engines.audio.selection import Selection
    from prefork.engines.base import (
        Declaration,
        Engine,
        HostEngine,
        Job,
        LanguageTable,
        Obstacle,
        Output,
        Role,
        Segment,
        Tensors,
    )
    from prefork.engines.batching import Batching, BatchingStrategy
    from prefork.engines.files import FileState
    from prefork.engines.text.cues import CueLayout
    from prefork.engines.text.document import (
        Character,
        Document,
        RecoveryCounts,
        SyntacticWord,
        Timing,
        Token,
        TokenKind,
        Turn,
        Utterance,
        Word,
    )
    from prefork.errors import (
        CallTimedOut,
        InitializerError,
        InputError,
        LoadError,
        OutOfMemory,
        PreforkError,
        Stopped,
        WorkerDied,
    )
    from prefork.outputs import WrittenFile
    from prefork.platform_matrix.matrix import Plan, Strategy
    from prefork.pool.jobs import JobResult
    from prefork.pool.pipeline import Pipeline, Stage
    from prefork.pool.runtime import Runtime
    from prefork.pool.status import RuntimeState, RuntimeStatus, WorkerStatus
    from prefork.pool.submitting import Submitter
    from prefork.pool.tasks import HangLimit
    from prefork.wire.messages import Memory
    from prefork.wire.progress import report_progress

_FOLDER = Path(__file__).parent
if not (_FOLDER / "engines").is_dir():
    raise ImportError(
        f"{_FOLDER} is not the whole of prefork: it is an unpacked source distribution, or a checkout without symbolic "
        "links; install it by `pip install .` and use it from another folder, or make the checkout anew by "
        "`git clone -c core.symlinks=true`"
    )

_HOMES = {
    "Batching": "prefork.engines.batching",
    "BatchingStrategy": "prefork.engines.batching",
    "CallTimedOut": "prefork.errors",
    "Character": "prefork.engines.text.document",
    "CueLayout": "prefork.engines.text.cues",
    "Declaration": "prefork.engines.base",
    "Document": "prefork.engines.text.document",
    "Engine": "prefork.engines.base",
    "FileState": "prefork.engines.files",
    "HangLimit": "prefork.pool.tasks",
    "HostEngine": "prefork.engines.base",
    "InitializerError": "prefork.errors",
    "InputError": "prefork.errors",
    "Job": "prefork.engines.base",
    "JobResult": "prefork.pool.jobs",
    "LanguageTable": "prefork.engines.base",
    "LoadError": "prefork.errors",
    "Memory": "prefork.wire.messages",
    "Obstacle": "prefork.engines.base",
    "OutOfMemory": "prefork.errors",
    "Output": "prefork.engines.base",
    "Pipeline": "prefork.pool.pipeline",
    "Plan": "prefork.platform_matrix.matrix",
    "PreforkError": "prefork.errors",
    "RecoveryCounts": "prefork.engines.text.document",
    "Role": "prefork.engines.base",
    "Runtime": "prefork.pool.runtime",
    "RuntimeState": "prefork.pool.status",
    "RuntimeStatus": "prefork.pool.status",
    "Segment": "prefork.engines.base",
    "Selection": "prefork.engines.audio.selection",
    "Stage": "prefork.pool.pipeline",
    "Stopped": "prefork.errors",
    "Strategy": "prefork.platform_matrix.matrix",
    "Submitter": "prefork.pool.submitting",
    "SyntacticWord": "prefork.engines.text.document",
    "Tensors": "prefork.engines.base",
    "Timing": "prefork.engines.text.document",
    "Token": "prefork.engines.text.document",
    "TokenKind": "prefork.engines.text.document",
    "Turn": "prefork.engines.text.document",
    "Utterance": "prefork.engines.text.document",
    "Word": "prefork.engines.text.document",
    "WorkerDied": "prefork.errors",
    "WorkerStatus": "prefork.pool.status",
    "WrittenFile": "prefork.outputs",
    "report_progress": "prefork.wire.progress",
}
__all__ = [
    "Batching",
    "BatchingStrategy",
    "CallTimedOut",
    "Character",
    "CueLayout",
    "Declaration",
    "Document",
    "Engine",
    "FileState",
    "HangLimit",
    "HostEngine",
    "InitializerError",
    "InputError",
    "Job",
    "JobResult",
    "LanguageTable",
    "LoadError",
    "Memory",
    "Obstacle",
    "OutOfMemory",
    "Output",
    "Pipeline",
    "Plan",
    "PreforkError",
    "RecoveryCounts",
    "Role",
    "Runtime",
    "RuntimeState",
    "RuntimeStatus",
    "Segment",
    "Selection",
    "Stage",
    "Stopped",
    "Strategy",
    "Submitter",
    "SyntacticWord",
    "Tensors",
    "Timing",
    "Token",
    "TokenKind",
    "Turn",
    "Utterance",
    "Word",
    "WorkerDied",
    "WorkerStatus",
    "WrittenFile",
    "report_progress",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: `prefork --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefork' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
