"""The threads of this process, as Linux tells of them in /proc/self/task: proc_pid_task(5)."""

from __future__ import annotations

import ctypes
import sys
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


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    asleep: bool
    cpu: int  # nanoseconds


def sample_threads(own: int) -> dict[int, tuple[str, bool]]:
    """Of those of this process but `own`, tid -> name, whether it waits; once those that are about to come to rest have
    done so, up to a second if some never do."""
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


def trace_threads(tids: list[int]) -> dict[int, str]:
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
