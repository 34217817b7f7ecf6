"""Several hosts on this machine: network namespaces on one bridge, each with its share of cores and of memory.

Needs root, iproute2 and, for the shares, control groups of version 1. A host's processes are those of its namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_PREFIX = f"pf{os.getpid()}"  # of all names: several programs may make hosts
_NET = f"10.77.{os.getpid() % 250}"
_BRIDGE = f"{_PREFIX}-br"


def find_lack() -> str:
    """Why there can be no hosts here; empty if there can."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2: makes hosts of network namespaces"
    made = subprocess.run(["ip", "netns", "add", _PREFIX], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", _PREFIX], capture_output=True, check=False)
    return f"makes hosts of network namespaces: {made.stderr.strip()}" if made.returncode else ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. cores, memory: its share, None for no limit."""

    name: str
    address: str
    cores: float | None = None
    memory: int | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
        """output: the file that what it prints is added to. (ip netns exec would hide the control groups.)"""
        joined = " && ".join([*(f"echo $$ > {group}/cgroup.procs" for group in self._groups), 'exec "$@"'])
        with output.open("ab") as file:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", "sh", "-c", joined, "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **environment},
            )

    @property
    def _groups(self) -> list[Path]:
        wanted = [("cpu", self.cores), ("memory", self.memory)]
        return [_GROUPS / kind / self.name for kind, share in wanted if share is not None]

    def limit(self) -> None:
        for group in self._groups:
            group.mkdir(exist_ok=True)
        if self.cores is not None:
            (_GROUPS / "cpu" / self.name / "cpu.cfs_period_us").write_text("100000")
            (_GROUPS / "cpu" / self.name / "cpu.cfs_quota_us").write_text(str(round(100_000 * self.cores)))
        if self.memory is not None:
            (_GROUPS / "memory" / self.name / "memory.limit_in_bytes").write_text(str(self.memory))

    def list_pids(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]

    def cut(self, cut: bool) -> None:
        """Nothing goes in or out any more, or again."""
        _ip("link", "set", f"{self.name}-b", "down" if cut else "up")

    def kill(self) -> None:
        """As when its power fails."""
        while pids := self.list_pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)

    def remove(self) -> None:
        self.kill()
        _ip("netns", "del", self.name)
        for group in self._groups:
            with suppress(OSError):
                group.rmdir()


@contextmanager
def make_hosts(count: int, cores: float | None = None, memory: int | None = None) -> Iterator[list[Host]]:
    """The first has no limits: it is for the driver and the scheduler."""
    hosts: list[Host] = []
    _ip("link", "add", _BRIDGE, "type", "bridge")
    try:
        _ip("link", "set", _BRIDGE, "up")
        for number in range(count + 1):
            shares = (cores, memory) if number else (None, None)
            host = Host(f"{_PREFIX}-h{number}", f"{_NET}.{10 + number}", *shares)
            _ip("netns", "add", host.name)
            hosts.append(host)
            _ip("link", "add", f"{host.name}-b", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", f"{host.name}-b", "master", _BRIDGE, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
            host.limit()
        yield hosts
    finally:
        for host in hosts:
            host.remove()
        _ip("link", "del", _BRIDGE)
