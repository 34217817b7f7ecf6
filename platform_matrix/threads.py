"""The other threads of this process: whether each of them rests, and who started it. Reads, never changes."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from prefork.platform_matrix.systems import SYSTEM

_PYTHON_PLUMBING = (
    "threading",
    "queue",
    "concurrent.futures.thread",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
)


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of this process other than the one that asks.

    waiting: blocked in the kernel and using no CPU; None where this system does not tell.
    origin: the library that started a native thread, the outermost function of a Python one; "" if unknown.
    ending: it belongs to an executor that was shut down or is gone, and ends by itself.
    """

    tid: int
    name: str
    python: bool  # known to Python's threading module
    waiting: bool | None
    origin: str = ""
    ending: bool = False


def list_threads() -> list[Thread]:
    """The other threads, once those that are about to come to rest have done so; up to a second if some never do."""
    if (samples := SYSTEM.sample_threads()) is None:
        others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
        return [
            Thread(thread.native_id or 0, thread.name, True, None, trace_python(thread), is_ending(thread))
            for thread in others
        ]
    python = {thread.native_id: thread for thread in threading.enumerate()}
    origins = SYSTEM.trace_threads([tid for tid in samples if tid not in python])
    threads = []
    for tid, (name, waiting) in samples.items():
        thread = python.get(tid)
        if thread is None:
            threads.append(Thread(tid, name, False, waiting, origins[tid]))
        else:
            threads.append(Thread(tid, thread.name, True, waiting, trace_python(thread), is_ending(thread)))
    return threads


def count_native() -> int:
    """How many threads this process has, whoever started them, this one included."""
    import psutil

    return int(psutil.Process().num_threads())


def trace_python(thread: threading.Thread) -> str:
    """The outermost function that is not Python's own plumbing, with file and line: 'poll (service/client.py:12)'."""
    frame = sys._current_frames().get(thread.ident or 0)
    found = ""
    while frame is not None:
        if frame.f_globals.get("__name__") not in _PYTHON_PLUMBING:
            path = Path(*Path(frame.f_code.co_filename).parts[-2:])
            found = f"{frame.f_code.co_qualname} ({path}:{frame.f_lineno})"
        frame = frame.f_back
    if found:
        return found
    target = vars(thread).get("_target") or type(thread)
    return f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else repr(target)


def is_ending(thread: threading.Thread) -> bool:
    """Whether it is an executor's thread that nothing can be submitted to any more, as transformers' loader leaves."""
    target, arguments = vars(thread).get("_target"), vars(thread).get("_args")
    if not arguments or getattr(target, "__module__", "") != "concurrent.futures.thread":
        return False
    executor = arguments[0]()  # a weak reference, in every Python so far
    return executor is None or bool(vars(executor).get("_shutdown"))
