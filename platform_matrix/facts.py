"""What is true of this machine, or, from a file, of another."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from prefork.platform_matrix.devices import (
    KINDS,
    MOST_BYTES,
    Devices,
    ask_devices,
    build,
    find_excess,
    initialised_drivers,
    read_text,
)
from prefork.platform_matrix.errors import FactsError
from prefork.platform_matrix.memory import find_groups, read_memory, read_numbers
from prefork.platform_matrix.systems import SYSTEM

SYSTEMS = ("linux", "darwin", "windows")
INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")  # instructions that multiply int8 and add in int32, as Linux names them
_START_METHODS = ("fork", "spawn", "forkserver")
_MOST_CORES = 1 << 20  # more than any machine has


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine, and this process on it. Memory in bytes.

    cores, memory: those that may be used, of the installed ones. available: what of that memory is still free.
    start_methods: of Python's multiprocessing. initialised: drivers that this process has already initialised.
    instructions: of the processor, those of INT8; none where they cannot be read (macOS, Windows).
    """

    system: str
    release: str
    machine: str
    python: str
    start_methods: tuple[str, ...]
    cores: int
    installed_cores: int
    memory: int
    installed_memory: int
    available: int
    container: str = ""
    wsl: bool = False
    initialised: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    devices: Devices = Devices()  # noqa: RUF009  frozen, so one may serve all

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, name: str = "facts") -> Facts:
        """What to_json gave. Fields with a default may be missing. name: of the file. Raises FactsError."""
        try:
            return build(cls, json.loads(text.removeprefix("\ufeff")))
        except json.JSONDecodeError as error:
            reason = f"is not JSON: {error}"
        except RecursionError:
            reason = "is nested too deeply"
        except ValueError as error:
            reason = str(error)
        raise FactsError(f"{name}: {reason}; correct it, or take a file that `prefork matrix --json` wrote")

    def find_fault(self) -> str:
        """What cannot be true of any machine; empty if nothing."""
        lists = (
            ("system", (self.system,), SYSTEMS),
            ("start_methods", self.start_methods, _START_METHODS),
            ("initialised", self.initialised, KINDS),
            ("instructions", self.instructions, INT8),
        )
        for name, values, allowed in lists:
            if unknown := [value for value in values if value not in allowed]:
                return f"{name} has {reprlib.repr(unknown[0])}, none of {', '.join(allowed)}"
        if not self.start_methods:
            return "start_methods is empty; Python can spawn everywhere"
        if self.wsl and self.system != "linux":
            return f"wsl is true, but system is {self.system!r}; WSL is a linux"
        return (
            find_excess("installed_cores", self.installed_cores, 1, _MOST_CORES)
            or find_excess("cores", self.cores, 1, self.installed_cores)
            or find_excess("installed_memory", self.installed_memory, 1, MOST_BYTES)
            or find_excess("memory", self.memory, 1, self.installed_memory)
            or find_excess("available", self.available, 0, self.memory)
        )


def read_facts(devices: Devices | None = None, root: Path = Path("/")) -> Facts:
    """Of this machine. devices: None to ask for them. root: where /proc and /sys are. Raises FactsError."""
    if root == Path("/"):
        SYSTEM.check()
    memory = read_memory(root)
    cores = count_usable_cores(root)
    return Facts(
        system=platform.system().lower(),
        release=platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        start_methods=tuple(multiprocessing.get_all_start_methods()),
        cores=cores,
        installed_cores=max(cores, os.cpu_count() or 1),
        memory=memory.limit,
        installed_memory=memory.installed,
        available=memory.available,
        container=_find_container(root),
        wsl="microsoft" in read_text(root / "proc/sys/kernel/osrelease").lower(),
        initialised=initialised_drivers(),
        instructions=_read_instructions(root),
        devices=ask_devices() if devices is None else devices,
    )


def _read_instructions(root: Path) -> tuple[str, ...]:
    flags = next((line for line in read_text(root / "proc/cpuinfo").splitlines() if line.startswith("flags")), "")
    return tuple(name for name in INT8 if name in flags.split())


def count_usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may really use: its affinity, and the CPU quota of its control group."""
    process = psutil.Process()
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1  # not on macOS
    quota = read_cpu_quota(root)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def read_cpu_quota(root: Path) -> float | None:
    """Cores granted by the tightest of this process's control groups, v2 or v1; None if there is no limit.

    root: where /proc and /sys are.
    """
    files = [
        *([group / "cpu.max"] for group in find_groups(root, "")),
        *([group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"] for group in find_groups(root, "cpu")),
    ]
    quotas = [quota for quota in map(_read_quota, files) if quota is not None]
    return min(quotas) if quotas else None


def _read_quota(files: Sequence[Path]) -> float | None:
    """files: with limit and period, together or one each."""
    match [number for file in files for number in read_numbers(file)]:
        case [limit, period] if 0 < limit < math.inf and 0 < period < math.inf:
            return limit / period
    return None


def _find_container(root: Path) -> str:
    """What this process is contained by, from the traces that each kind leaves; empty if there are none."""
    if "KUBERNETES_SERVICE_HOST" in os.environ or (root / "run/secrets/kubernetes.io").exists():
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".singularity.d").exists():
        return "apptainer"
    name = read_text(root / "run/systemd/container").strip() or os.environ.get("container", "")  # noqa: SIM112
    if name and name != "wsl":
        return name
    groups = read_text(root / "proc/self/cgroup")
    marks = (("kubepods", "kubernetes"), ("docker", "docker"), ("libpod", "podman"), ("lxc", "lxc"))
    return next((kind for mark, kind in marks if mark in groups), "")
