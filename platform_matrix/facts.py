"""What is true of this machine."""

from __future__ import annotations

import math
import os
from pathlib import Path


def count_usable_cores() -> int:
    """Cores that this process may really use: its affinity, and the CPU quota of its control group."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        allowed = os.cpu_count() or 1
    quota = read_cpu_quota(Path("/"))
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def read_cpu_quota(root: Path) -> float | None:
    """Cores granted by the tightest of this process's control groups, v2 or v1; None if there is no limit.

    root: where /proc and /sys are.
    """
    quotas = [*_read_v2(root), *_read_v1(root)]
    return min(quotas) if quotas else None


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's group and of all that contain it, below the controller's mount."""
    membership = root / "proc/self/cgroup"
    if not membership.is_file():
        return []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = Path(path.lstrip("/"))
            return [group, *group.parents]
    return []


def _read_v2(root: Path) -> list[float]:
    quotas = []
    for group in _groups(root, ""):
        file = root / "sys/fs/cgroup" / group / "cpu.max"
        if file.is_file():
            limit, period = file.read_text().split()
            if limit != "max":
                quotas.append(int(limit) / int(period))
    return quotas


def _read_v1(root: Path) -> list[float]:
    quotas = []
    for group in _groups(root, "cpu"):
        folder = root / "sys/fs/cgroup/cpu" / group
        if (folder / "cpu.cfs_quota_us").is_file():
            limit = int((folder / "cpu.cfs_quota_us").read_text())
            if limit > 0:
                quotas.append(limit / int((folder / "cpu.cfs_period_us").read_text()))
    return quotas
