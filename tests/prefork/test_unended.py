"""Processes that SIGKILL does not end, as those that wait in the kernel for a GPU which does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prefork import Runtime
from prefork.platform_matrix import canary
from prefork.platform_matrix.canary import Canary, Fate
from prefork.pool.tasks import HangLimit
from prefork.wire import child
from prefork.wire.child import ChildProcess
from prefork.wire.endings import UNENDED
from tests import launcher
from tests.prefork.command import write_job

pytestmark = [
    pytest.mark.usefixtures("script_engine"),
    pytest.mark.skipif(sys.platform != "linux", reason="takes SIGKILL from Linux's processes"),
]


@pytest.fixture
def unended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """pids of who was killed, and lives on until the test is over."""
    pids: list[int] = []

    def kill(process: subprocess.Popen[bytes]) -> None:
        pids.append(process.pid)

    for popen in (launcher.Popen, subprocess.Popen):
        monkeypatch.setattr(popen, "kill", kill)
    monkeypatch.setattr(child, "_DYING_SECONDS", 0.5)
    monkeypatch.setattr(canary, "_DYING_SECONDS", 0.5)
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_end_of_a_process_is_not_waited_for_without_end(unended: list[int]) -> None:
    process = ChildProcess("work.server", {})
    process.kill()
    started = time.monotonic()
    assert process.end(60.0) == UNENDED
    assert process.poll() == UNENDED
    assert time.monotonic() - started < 5.0
    assert process.is_killed and unended[0] == process.pid


@pytest.mark.parametrize("strategy", ["server", "spawn"])
def test_another_takes_the_place_of_who_does_not_end(strategy: str, unended: list[int], tmp_path: Path) -> None:
    """A segment hangs, once; whoever has it is killed for that, and does not end."""
    verb = "model hang" if strategy == "server" else "hang"
    jobs = [write_job(tmp_path, "talk", "say one"), write_job(tmp_path, "slow", f"{verb} {tmp_path / 'marker'}")]
    notices: list[str] = []
    limit = HangLimit(1.0, 0.1)
    with Runtime("faulty", workers=1, strategy=strategy, hang_limit=limit, notice=notices.append) as runtime:
        results = list(runtime.map(jobs))
    assert [result.error for result in results] == [None, None]
    assert unended


def test_a_canary_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_DYING_SECONDS", 0.5)
    monkeypatch.setattr(Canary, "kill", lambda _: None)
    monkeypatch.setattr(canary, "_kill_group", lambda _: False)

    def hang() -> bytes:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        time.sleep(60)
        return b""

    hung = Canary(hang)
    started = time.monotonic()
    outcome = hung.wait(0.2)
    assert outcome.fate is Fate.HUNG and time.monotonic() - started < 5.0
    os.kill(hung.pid, signal.SIGKILL)
    os.waitpid(hung.pid, 0)
