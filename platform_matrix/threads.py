"""The other threads of this process: whether each of them rests, and who started it. Reads, never changes."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

_SETTLE_SECONDS = 1.0  # how long a thread may take to come to rest; OpenBLAS's spin for 0.1 s after they have computed
_SAMPLE_SECONDS = 0.02  # between two looks at a thread
_BUSY = 0.05  # of a sample: more time on a CPU than this is work, even if the thread was waiting whenever looked at
_STACK_BYTES = 64 * 1024  # of the outer end of a stack, where a thread's first frames are
_TASKS = Path("/proc/self/task")
_PLUMBING = ("libc.", "libc-", "ld-", "libpthread", "libstdc++", "libgcc_s", "libpython")  # in every thread's stack
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


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    asleep: bool
    cpu: int  # nanoseconds


def list_threads() -> list[Thread]:
    """The other threads, once those that are about to come to rest have done so; up to a second if some never do."""
    if sys.platform != "linux":
        others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
        return [
            Thread(thread.native_id or 0, thread.name, True, None, trace_python(thread), is_ending(thread))
            for thread in others
        ]
    own = threading.get_native_id()
    samples = _settle(own)
    python = {thread.native_id: thread for thread in threading.enumerate()}
    origins = _trace_native([tid for tid in samples if tid not in python])
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


def _settle(own: int) -> dict[int, tuple[str, bool]]:
    """tid -> name, whether it waits."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    before, looked = _take_samples(own), time.monotonic()
    if not before:
        return {}
    while True:
        time.sleep(_SAMPLE_SECONDS)
        after, now = _take_samples(own), time.monotonic()
        most = _BUSY * (now - looked) * 1e9
        threads = {
            tid: (sample.name, sample.asleep and tid in before and sample.cpu - before[tid].cpu <= most)
            for tid, sample in after.items()
        }
        if now > deadline or all(waiting for _, waiting in threads.values()):
            return threads
        before, looked = after, now


def _take_samples(own: int) -> dict[int, _Sample]:
    samples = {}
    for entry in _TASKS.iterdir():
        if (tid := int(entry.name)) == own:
            continue
        try:
            name = (entry / "comm").read_text().strip()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            samples[tid] = _Sample(name, state == "S", _read_cpu(entry))
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
    return samples


def _read_cpu(entry: Path) -> int:
    try:
        return int((entry / "schedstat").read_text().split()[0])
    except FileNotFoundError:  # a kernel without scheduler statistics: its state must do
        return 0


class _Mappings:
    """Which file, or which end, belongs to an address of this process."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._rows: list[tuple[int, str]] = []  # end, path of executable code or ""
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, permissions, *rest = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in span.split("-"))
            path = rest[3] if len(rest) == 4 and "x" in permissions else ""
            self._starts.append(start)
            self._rows.append((end, path if path.startswith("/") else ""))

    def find(self, address: int) -> tuple[int, str]:
        """The end of the mapping that holds this address and the code it comes from; (0, "") if none does."""
        index = bisect_right(self._starts, address) - 1
        return self._rows[index] if index >= 0 and address < self._rows[index][0] else (0, "")


def _trace_native(tids: list[int]) -> dict[int, str]:
    """The file name of the library that started each thread: the outermost that its stack points into."""
    if not tids:
        return {}
    mappings = _Mappings()
    interpreter = Path(sys.executable).resolve().name
    found = {}
    for tid in tids:
        found[tid] = ""
        try:
            words = _read_stack(tid, mappings)
        except (OSError, OverflowError):  # it has ended, or a sandbox forbids to look: unknown
            continue
        for word in words:
            name = Path(mappings.find(word)[1]).name
            if name and name != interpreter and not name.startswith(_PLUMBING):
                found[tid] = name
                break
    return found


def _read_stack(tid: int, mappings: _Mappings) -> list[int]:
    """The words of a thread's stack, outermost first, then where it is; [] if it runs."""
    *_, pointer, counter = ["", "", *(_TASKS / str(tid) / "syscall").read_text().split()]
    if not pointer:
        return []
    lowest = int(pointer, 16) & -8
    end, _ = mappings.find(lowest)
    lowest = max(lowest, end - _STACK_BYTES)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(lowest)
        data = memory.read(max(0, end - lowest))
    size = ctypes.sizeof(ctypes.c_void_p)
    words = memoryview(data[: len(data) // size * size]).cast("P")
    return [*reversed(words), int(counter, 16)]
