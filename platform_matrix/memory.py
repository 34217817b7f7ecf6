"""Memory that may be used, what of it is free, and how short it is: of the machine and of every limit set on us."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from prefork.platform_matrix.devices import read_text
from prefork.platform_matrix.systems import SYSTEM

_MOST_RESERVE = 2 << 30  # bytes; a tenth of smaller machines
_MOST_DIGITS = 20  # of what the kernel counts in 64 bits
_AVERAGE = re.compile(r"^(some|full) avg10=([0-9.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes, as the tightest of the machine, the control groups (nested, v1 or v2) and RLIMIT_AS has them.

    limit: what may be used by all processes together. available: what of it is still free, or would be given back at
    once. some, full: percent of the last ten seconds in which some, or all, processes waited for memory (PSI), None
    where the kernel does not say. kills: processes that the kernel has ended for want of memory, since some time or
    other; only that it grows means something. pressure: how short memory is by the system's own account, see
    `System.read_pressure`; None where it gives none. Where it does, little may be available all the time without any
    harm, and `unused` is what is left of the limits set on us.
    """

    limit: int
    available: int
    installed: int
    some: float | None = None
    full: float | None = None
    kills: int = 0
    pressure: int | None = None
    unused: float = math.inf

    @property
    def left(self) -> float:
        """Bytes of what must not run out."""
        return self.available if self.pressure is None else self.unused


def read_memory(root: Path = Path("/"), address_space: int = 0) -> MachineMemory:
    """As it is now, in about 0.3 ms. root: where /proc and /sys are. address_space: bytes, of the largest process that
    RLIMIT_AS holds for beside this one."""
    ram = psutil.virtual_memory()
    there, pressure = max(ram.available, SYSTEM.measure_available()), SYSTEM.read_pressure()
    groups = _read_limits(root)
    space = SYSTEM.limit_address_space()
    limit = min(ram.total, space, *(allowed for allowed, _ in groups), math.inf)
    free = [max(0, allowed - used) for allowed, used in groups]
    unused = min(max(0, space - address_space), *free, math.inf)
    available = min(there, limit, unused)
    some, full = _read_pressure(root)
    return MachineMemory(int(limit), int(available), ram.total, some, full, _count_kills(root), pressure, unused)


def keep_back(limit: int) -> int:
    """The reserve: bytes of a limit that are never given to anybody."""
    return min(_MOST_RESERVE, limit // 10)


def find_groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of all that contain it. controller: empty for v2.

    In a container the path may be one that only exists outside; then the mount's own folder is what is left.
    """
    mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, entry = line.partition(":")
        controllers, _, path = entry.partition(":")
        if controller not in controllers.split(",") or "\0" in path:
            continue
        if controller:
            mounts = [root / "sys/fs/cgroup" / name for name in dict.fromkeys((controller, controllers))]
        group = PurePosixPath(path.lstrip("/"))
        groups = [PurePosixPath()] if ".." in group.parts else [group, *group.parents]
        return [mount / group for mount in mounts for group in groups]
    return []


def read_numbers(file: Path) -> list[float]:
    """The numbers of a control group's file, "max" being infinite; none if it holds anything else."""
    try:
        return [math.inf if word == "max" else float(int(word)) for word in read_text(file).split()]
    except (ValueError, OverflowError):
        return []


def _read_limits(root: Path) -> list[tuple[float, float]]:
    """Bytes allowed and used, of every control group that this process is in. What a group would have to give back
    before it ran short, the files that nobody has read for long, does not count as used."""
    names = [
        *((group, "memory.max", "memory.current", "inactive_file") for group in find_groups(root, "")),
        *((group, "memory.high", "memory.current", "inactive_file") for group in find_groups(root, "")),
        *(
            (group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            for group in find_groups(root, "memory")
        ),
    ]
    limits = []
    for group, limit, usage, inactive in names:
        match read_numbers(group / limit), read_numbers(group / usage):
            case [allowed], used if allowed > 0:
                known = sum(number for number in used if number < math.inf)
                kept = known - (_read_statistic(group / "memory.stat", inactive) or 0)
                limits.append((allowed, max(0, kept)))
    return limits


def _read_pressure(root: Path) -> tuple[float | None, float | None]:
    """Of the innermost control group (v2) that says it, else of the machine."""
    files = [*(group / "memory.pressure" for group in find_groups(root, "")), root / "proc/pressure/memory"]
    for file in files:
        averages = dict(_AVERAGE.findall(read_text(file)))
        try:
            return float(averages["some"]), float(averages["full"])
        except (KeyError, ValueError):
            continue
    return None, None


def _count_kills(root: Path) -> int:
    """By the innermost control group that counts them, else by the machine."""
    files = [
        *(group / "memory.events" for group in find_groups(root, "")),
        *(group / "memory.oom_control" for group in find_groups(root, "memory")),
        root / "proc/vmstat",
    ]
    counts = (_read_statistic(file, "oom_kill") for file in files)
    return next((count for count in counts if count is not None), 0)


def _read_statistic(file: Path, name: str) -> int | None:
    for line in read_text(file).splitlines():
        match line.split():
            case [key, value] if key == name and value.isdecimal() and len(value) <= _MOST_DIGITS:
                return int(value)
    return None


def format_gigabytes(size: float, digits: int = 2) -> str:
    """
    >>> format_gigabytes(1_500_000_000)
    '1.50 GB'
    """
    return f"{size / 1e9:.{digits}f} GB"
