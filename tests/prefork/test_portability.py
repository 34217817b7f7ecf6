"""What other systems lack is not needed to import prefork, to decide, or to speak with a process."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefork.platform_matrix.systems import SYSTEM
from prefork.platform_matrix.systems.windows import Windows
from prefork.wire import endings
from prefork.wire.child import ChildProcess, OutputPipe
from prefork.wire.endings import CUT_OFF, Killer, find_killer

pytestmark = pytest.mark.exec

ROOT = Path(__file__).resolve().parents[2]

# Imports every module as another system has it, and decides.
EVERYTHING = """
import sys
import torch, numpy, rich.console, typer, pyarrow  # what others import is their business
from tests.systems import become
become(sys.argv[1])
import importlib, pkgutil
import prefork
count = 0
for module in pkgutil.walk_packages(prefork.__path__, "prefork."):
    if module.name != "prefork.pytest_plugin" and "platform_matrix.systems." not in module.name:
        importlib.import_module(module.name)
        count += 1
from prefork.platform_matrix.devices import Devices
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Request, decide
plan = decide(read_facts(Devices()), Request(engines=("ctc",)))
print(count, plan.row.title, plan.strategy, plan.refusal or "no refusal", sep="|")
"""

# A Mac as Python sees it: torch says that it has MPS, until it is told not to.
MAC = """
import torch
torch._C._has_mps = True
torch._C._mps_is_available = lambda: True
torch.backends.mps.is_available.cache_clear()
assert torch.backends.mps.is_available() and torch.mps.device_count() == 1
from prefork.work.torch_state import hide_mps
hide_mps()
import transformers.utils
refused = 0
for make in (torch.empty, torch.zeros, torch.rand):
    try:
        make(2, 3, device="mps")
    except RuntimeError as error:
        refused += "MPS is hidden (--force-cpu, --no-mps)" in str(error)
assert refused == 3 and torch.accelerator.current_accelerator() is None
print(torch.backends.mps.is_available(), torch.backends.mps.is_built(), torch.mps.device_count(),
      transformers.utils.is_torch_mps_available(), sep="|")
"""


def _run(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split("|")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "row", "strategy"), [("win32", "Windows, CPU", "spawn"), ("darwin", "macOS, CPU only", "fork")]
)
def test_every_module_is_imported_and_decides_where_linux_is_not(system: str, row: str, strategy: str) -> None:
    count, *decided = _run(EVERYTHING, system)
    assert int(count) > 250
    assert decided == [row, strategy, "no refusal"]


def test_mps_that_is_hidden_is_there_for_nobody() -> None:
    assert _run(MAC) == ["False", "False", "0", "False"]


@pytest.mark.parametrize("pumped", [False, True], ids=["pipe", "socket, as Windows needs it"])
def test_what_a_process_prints_is_read_without_blocking(pumped: bool) -> None:
    code = "import sys; sys.stdin.readline(); sys.stdout.write('x' * 300_000 + 'end')"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as p:
        assert p.stdin is not None and p.stdout is not None
        output = OutputPipe(p.stdout, pumped)
        assert output.read(100) is None
        p.stdin.write(b"\n")
        received, deadline = b"", time.monotonic() + 20
        while (data := output.read(100_000)) != b"":
            assert time.monotonic() < deadline
            received += data or b""
        assert received == b"x" * 300_000 + b"end"
        output.close()


def test_a_channel_needs_no_unix_socket() -> None:
    """Windows makes its socket pairs of TCP connections, and passes no descriptors."""
    from prefork.wire.channel import Channel

    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    here.setblocking(False)
    channel, other = Channel(here), Channel(there)
    channel.post({"weights": b"x" * 100_000})
    while not channel.flush():
        time.sleep(0.01)
    assert other.receive() == ({"weights": b"x" * 100_000}, [])
    other.send("done")
    deadline = time.monotonic() + 10
    messages: list[object] = []
    while not messages and time.monotonic() < deadline:
        messages += channel.poll()
    assert messages == ["done"]
    channel.close()
    other.close()


def test_a_process_that_is_ending_needs_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """TerminateProcess is denied then, on Windows; the supervisor's thread must not end of it."""

    def deny(_: object) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    child = ChildProcess("work.spawned", {})
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", deny)
        child.kill()
    child.kill()
    assert child.end(10) in (CUT_OFF, -9)


def test_a_process_that_is_gone_before_it_has_its_socket_has_ended_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows passes the socket on once the process runs, which fails then; a run must not end of it."""

    def lose(_: socket.socket, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(SYSTEM, "hand_over", lose)
    child = ChildProcess("work.spawned", {})
    with pytest.raises(EOFError):
        child.receive(20)
    assert child.end(10) == -9


@pytest.mark.parametrize(
    ("status", "by_prefork", "short", "killer"),
    [
        (0, True, True, None),
        (3, True, True, None),
        (-9, True, True, Killer.PREFORK),
        (-9, False, True, Killer.KERNEL),
        (-9, False, False, Killer.SOMEBODY),
        (-11, True, True, None),
        (-15, False, True, None),
    ],
)
def test_one_function_says_whether_and_by_whom_a_process_was_killed(
    status: int, by_prefork: bool, short: bool, killer: Killer | None
) -> None:
    assert find_killer(status, by_prefork, lambda: short) is killer


def test_on_windows_only_who_has_ended_a_process_knows_that_it_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """TerminateProcess leaves a status that a process can give itself, and the kernel ends none for want of memory."""
    monkeypatch.setattr(endings, "SYSTEM", Windows())
    assert find_killer(1, by_prefork=True) is Killer.PREFORK
    assert find_killer(1, by_prefork=False, was_memory_short=lambda: pytest.fail("asked")) is None
    assert find_killer(0xC0000005, by_prefork=True) is None
