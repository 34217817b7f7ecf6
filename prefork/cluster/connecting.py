"""From what the user says of a cluster to a connection: a scheduler's file, its address, or so many machines here."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import dask
import psutil
from distributed import Client, Scheduler, Security, SpecCluster

from prefork.cluster.handshake import Place, UnreachableError, check_scheduler
from prefork.cluster.security import check_address, check_trust, make_certificates, read_certificates
from prefork.engines.base import LoadError
from prefork.platform_matrix.memory import read_memory
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.temporary import TemporaryFolder, remove_abandoned

CONNECT_SECONDS = 10.0
_MOST_LOCAL = 64
_FILE_SECONDS = 5.0  # for a scheduler that was started just now to write its file
_END_SECONDS = 10.0
_TLS = "prefork_tls"  # the folder of certificates, in a scheduler's file

# Nothing but what is needed listens or is measured, and no lost connection is waited for longer than that.
dask.config.set(
    {
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.worker.profile.enabled": False,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.work-stealing": False,
        "distributed.scheduler.active-memory-manager.start": False,
        "distributed.scheduler.worker-ttl": "60s",
        "distributed.comm.timeouts.connect": "20s",
        "distributed.comm.timeouts.tcp": "20s",
        "distributed.diagnostics.nvml": False,
        "distributed.admin.low-level-log-length": 1,  # messages are kept, and recordings are in them
        "distributed.admin.tick.interval": "1s",  # of 20 ms it would take a hundredth of a core on every machine
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.client.scheduler-info-interval": "60s",
    }
)


for _logger in ("distributed", "distributed.client"):  # Dask gives the second a level of its own
    logging.getLogger(_logger).setLevel(logging.CRITICAL)  # lost connections are told of here, in one line


class WithoutWebServer:
    """Of Dask's servers: they have no option to leave it out."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        pass


class QuietScheduler(WithoutWebServer, Scheduler):
    pass


def find_place(text: str, tls: Path | None, patience: float = 0.0) -> Place:
    """text: a scheduler's file or its address. patience: seconds to wait for the file. Raises LoadError, and of its
    kinds UnreachableError if there is no such file."""
    if "://" in text:
        place = Place(text, read_certificates(tls) if tls is not None else _find_security())
    else:
        address, folder = _read_file(Path(text), patience)
        tls = tls or folder
        place = Place(address, read_certificates(tls) if tls is not None else _find_security())
    check_address(place.address, place.security)
    return place


def _find_security() -> Security | None:
    """What Dask's own configuration says, if it says anything."""
    found: Any = Security()
    return found if found.tls_ca_file and found.tls_client_cert else None


def _read_file(path: Path, patience: float) -> tuple[str, Path | None]:
    """The scheduler's address, and the folder of its certificates if the file names it."""
    deadline = time.monotonic() + patience
    while True:
        try:
            check_trust(path)
            found = json.loads(path.read_text(encoding="utf-8"))
            address, folder = found["address"], found.get(_TLS)
            if isinstance(address, str) and (folder is None or isinstance(folder, str)):
                return address, Path(folder) if folder else None
            raise ValueError("its address is no text")
        except FileNotFoundError as error:
            problem, cause = f"{path}: no such file; start a scheduler: prefork cluster start {path}", error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{path}: is no scheduler's file ({error}); give the one that it has written") from error
        if time.monotonic() >= deadline:
            raise UnreachableError(problem) from cause
        time.sleep(0.2)


def write_file(path: Path, address: str, tls: Path | None) -> None:
    """What `find_place` reads; whole or not at all. Raises LoadError."""
    content = {"type": "Scheduler", "address": address, **({_TLS: str(tls.resolve())} if tls is not None else {})}
    beside = path.with_name(f".{path.name}.part")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | SYSTEM.no_link, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
        SYSTEM.replace(beside, path)
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror or error}; give another FILE") from error


def count_local(text: str) -> int:
    """N of local:N; 0 for anything else. Raises LoadError."""
    found = re.fullmatch(r"local(?::(.*))?", text)
    if found is None:
        return 0
    count = "2" if found[1] is None else found[1]
    if not count.isdecimal() or not count.isascii() or not 1 <= int(count) <= _MOST_LOCAL:
        raise LoadError(f"--cluster local:N takes a number of machines from 1 to {_MOST_LOCAL}, not {count!r}")
    return int(count)


@contextmanager
def connect(text: str, tls: Path | None) -> Iterator[tuple[Client, bool]]:
    """A client of the cluster, and whether machines may join that are not there yet. Raises LoadError."""
    with ExitStack() as stack:
        count = count_local(text)
        place = stack.enter_context(_start_local(count)) if count else find_place(text, tls, _FILE_SECONDS)
        client = make_client(place)
        stack.callback(client.close, timeout=_END_SECONDS)
        yield client, not count


def make_client(place: Place) -> Client:
    """Raises LoadError."""
    check_scheduler(place)
    try:
        return Client(place.address, security=place.security, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise LoadError(describe_refusal(place, error)) from error


def describe_refusal(place: Place, error: Exception) -> str:
    """Of a scheduler that has answered, and with which Dask yet cannot talk."""
    return (
        f"{place.address}: the scheduler does not take this connection ({' '.join(str(error).split())[:200]}); has it "
        "another version of Dask, or is it ending?"
    )


@contextmanager
def _start_local(count: int) -> Iterator[Place]:
    """A scheduler in this process, and machines that each have a share of this one. They end when it does."""
    with ExitStack() as stack:
        remove_abandoned("cluster")
        kept = TemporaryFolder("cluster")
        stack.callback(kept.close)
        folder = kept.path
        make_certificates(folder / "tls")
        security = read_certificates(folder / "tls")
        listening = {"host": "127.0.0.1", "protocol": "tls://", "security": security, "dashboard": False}
        scheduler = {"cls": QuietScheduler, "options": listening}
        cluster = stack.enter_context(SpecCluster(scheduler=scheduler, security=security, silence_logs=False))
        write_file(folder / "scheduler.json", cluster.scheduler_address, folder / "tls")
        machines: list[subprocess.Popen[bytes]] = []
        printed = stack.enter_context(open(folder / "printed.txt", "w+b"))
        stack.callback(_show, printed, machines)
        stack.callback(_end, machines)
        shares = _share(count)
        for number, cores in enumerate(shares, 1):
            command = [sys.executable, "-m", "prefork", "join", str(folder / "scheduler.json"), "--wait", "0"]
            limit = int(read_memory().limit / count)
            options = ["--name", f"local{number}", "--memory-limit", f"{limit / 1e6:.0f}MB"]
            # A session of its own: a terminal's Ctrl-C is the driver's alone, who tells the machines when it is time.
            machine = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
            machines.append(machine)
            if cores and hasattr(psutil.Process, "cpu_affinity"):
                psutil.Process(machine.pid).cpu_affinity(cores)
        yield Place(cluster.scheduler_address, security)


def _share(count: int) -> list[list[int]]:
    """Cores for each machine; none where there are fewer cores than machines, or nobody can say."""
    try:
        cores = psutil.Process().cpu_affinity() or []
    except AttributeError:  # macOS
        cores = []
    return [cores[number::count] for number in range(count)] if len(cores) >= count else [[]] * count


def _show(printed: BinaryIO, machines: Sequence[subprocess.Popen[bytes]]) -> None:
    """What they have printed, if one has ended otherwise than it was told."""
    if any(machine.returncode not in (0, -signal.SIGTERM) for machine in machines):
        printed.seek(0)
        sys.stderr.write(printed.read().decode(errors="replace"))


def _end(machines: Sequence[subprocess.Popen[bytes]]) -> None:
    """In order, or else at once."""
    for machine in machines:
        if machine.poll() is None:
            machine.send_signal(signal.SIGTERM)
    for machine in machines:
        try:
            machine.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            machine.kill()
            machine.wait()
