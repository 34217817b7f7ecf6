"""A process of a pool that somebody stops (SIGSTOP) is noticed, and what it was to do is done by another."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from prefork import Job, Runtime
from prefork.pool.stopped import StoppedProcesses

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says whether a process is stopped")


@pytest.mark.usefixtures("script_engine")
@pytest.mark.parametrize(
    ("strategy", "name"),
    [("fork", "zygote"), ("fork", "worker 0"), ("spawn", "worker 0"), ("server", "server"), ("server", "zygote")],
)
def test_whoever_is_stopped_is_replaced_and_nothing_is_lost(
    strategy: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork.pool.stopped._LIMIT_SECONDS", 1.5)
    notices: list[str] = []
    jobs = []
    for number in range(6):
        source = tmp_path / f"{number}.txt"
        source.write_text("sleep\n" * 6)
        jobs.append(Job(source.name, source))
    with Runtime("script", workers=2, strategy=strategy, notice=notices.append) as runtime:
        results = runtime.map(jobs)
        while not (pid := runtime.supervisor.list_pids().get(name)):
            time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        assert [result.error for result in results] == [None] * len(jobs)
        while not notices:  # of one that had nothing to do just then
            time.sleep(0.1)
    assert any(f"{name} (pid {pid}) was stopped from outside" in notice for notice in notices)


def test_after_all_were_stopped_together_nobody_is_killed() -> None:
    """As by a laptop that sleeps, or a container that is frozen: the time that passed was nobody's."""
    notices: list[str] = []
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    watch = StoppedProcesses(notices.append)
    try:
        for now in (100.0, 101.5, 200.0, 201.5):
            watch.end(lambda: {"worker 0": child}, now)
        assert notices == []
        for now in range(203, 213):
            watch.end(lambda: {"worker 0": child}, float(now))
        assert notices
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    finally:
        if not notices:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
