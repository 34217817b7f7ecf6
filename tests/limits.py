"""A memory limit that the kernel enforces: a control group of our own, v1 or v2, where the machine lets us make one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from prefork.platform_matrix.memory import find_groups

_STEP = 256 << 20  # bytes that squeeze leaves above what is in use


class NotAllowed(Exception):
    """No control group can be made here; says why."""


class MemoryGroup:
    """A control group with a limit in bytes, for commands that are started with `wrap`."""

    def __init__(self, limit: int) -> None:
        v1 = [group for group in find_groups(Path("/"), "memory") if (group / "memory.limit_in_bytes").exists()]
        v2 = [group for group in find_groups(Path("/"), "") if (group / "memory.max").exists()]
        self._limit_file = "memory.limit_in_bytes" if v1 else "memory.max"
        if not (v1 or v2):
            raise NotAllowed("the machine has no control group for memory that this process is in")
        self.path = (v1 or v2)[0] / f"prefork-test-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self.path.mkdir()
            self.set_limit(limit)
        except OSError as error:
            raise NotAllowed(f"a control group cannot be made: {error}") from error

    def set_limit(self, limit: int) -> None:
        (self.path / self._limit_file).write_text(str(limit))

    def squeeze(self, limit: int, seconds: float) -> None:
        """Lowers the limit, a step at a time: v1 takes none that is below what is in use."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for wanted in (limit, self._read("memory.usage_in_bytes", "memory.current") + _STEP):
                try:
                    self.set_limit(max(limit, wanted))
                except OSError:
                    continue
                if wanted == limit:
                    return
                break
            time.sleep(0.5)
        raise TimeoutError(f"{self.path}: more than {limit} bytes are in use, after {seconds:g} s")

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, in this group from its first instruction."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.path), *command]

    def count_kills(self) -> int:
        """Processes in it that the kernel has ended for want of memory."""
        files = [self.path / name for name in ("memory.events", "memory.oom_control")]
        lines = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()]
        return sum(int(value) for name, value in lines if name == "oom_kill")

    def read_peak(self) -> int:
        """Bytes, page cache included."""
        return self._read("memory.max_usage_in_bytes", "memory.peak")

    def _read(self, *names: str) -> int:
        files = [self.path / name for name in names]
        return next((int(file.read_text()) for file in files if file.exists()), 0)

    def __enter__(self) -> MemoryGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        until = time.monotonic() + 5.0
        while True:
            try:
                self.path.rmdir()
                return
            except OSError:  # a process in it is still ending
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
