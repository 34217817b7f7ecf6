"""The work is done on systems that lack what Linux has: see tests.systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.prefork.command import copy_sample, read_outputs, run, wait_until_gone
from tests.systems import SYSTEM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another system is made of what Linux has")
STRATEGIES = {"win32": "spawn", "darwin": "fork"}


def _name(system: str) -> dict[str, Any]:
    return {SYSTEM: system}


@pytest.mark.parametrize("system", STRATEGIES)
def test_samples_are_aligned_as_on_linux(system: str, tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    done = run("align", tmp_path / "in", tmp_path / "here", "--force-cpu", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    done = run(
        "align", tmp_path / "in", tmp_path / "there", "--force-cpu", "--dtype", "float32", "--json", **_name(system)
    )
    assert done.returncode == 0, done.stderr
    assert f'"strategy": "{STRATEGIES[system]}"' in done.stdout
    assert read_outputs(tmp_path / "here") == read_outputs(tmp_path / "there") != {}


# A user's script: calls that succeed, raise, and end or crash the worker that runs them.
_CALLS = """
import ctypes, os, signal, sys
from prefork import Runtime, WorkerDied

def load():
    import torch
    return torch.nn.Linear(8, 8)

def answer(model, value):
    return 7 * value

def leave(model):
    os._exit(3)

def crash(model):
    ctypes.string_at(0)

def end(model):
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    with Runtime(load=load, workers=2, strategy=sys.argv[1], notice=lambda text: None) as runtime:
        print(runtime.submit(answer, 1).result(60))
        for function in (leave, crash, end):
            try:
                runtime.submit(function).result(60)
            except WorkerDied as error:
                print(function.__name__, error)
            print(runtime.submit(answer, 1).result(60))
        print(sum(runtime.map(answer, range(100))))
"""


_TWICE = "its worker died twice with nothing done in between"
_ENDINGS = {
    "win32": (
        "exited with status 3",
        "crashed with status 0xc0000005: a memory access that is not allowed",
        "exited with status 1, or was ended by another process",
    ),
    "darwin": (
        "exited with status 3",
        "was killed by SIGSEGV",
        "was killed by SIGKILL, perhaps by the kernel because memory ran out",
    ),
}


@pytest.mark.parametrize("system", STRATEGIES)
def test_calls_survive_workers_that_end_crash_or_are_killed(system: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_CALLS)
    done = subprocess.run(
        [sys.executable, str(script), STRATEGIES[system]],
        env={**os.environ, SYSTEM: system},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line.partition(": ")[::2] for line in done.stdout.splitlines()]
    assert [text for _, text in said if text] == [f"{words}; {_TWICE}" for words in _ENDINGS[system]]
    assert [text for text, rest in said if not rest] == ["7"] * 4 + ["34650"]


# Busy workers, and the pids of all.
_BUSY = """
import os, sys, time
from prefork import Runtime

def load():
    import torch
    return torch.nn.Linear(8, 8)

def stay(model):
    time.sleep(120)

if __name__ == "__main__":
    with Runtime(load=load, workers=2, strategy=sys.argv[1], notice=lambda text: None) as runtime:
        for _ in range(2):
            runtime.submit(stay)
        while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        pids = runtime.supervisor.list_pids()
        print(os.getpid(), pids.get("zygote", 0), *(pid for name, pid in pids.items() if "worker" in name), flush=True)
        time.sleep(120)
"""


@pytest.mark.parametrize(
    ("system", "strategy", "killed"),
    [
        ("win32", "spawn", ["supervisor"]),
        ("darwin", "spawn", ["supervisor"]),
        ("darwin", "fork", ["supervisor"]),
        ("darwin", "fork", ["zygote", "supervisor"]),
    ],
)
def test_busy_workers_do_not_outlive_those_who_started_them(
    system: str, strategy: str, killed: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_BUSY)
    command = [sys.executable, str(script), strategy]
    with subprocess.Popen(command, env={**os.environ, SYSTEM: system}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        supervisor, zygote, *workers = map(int, process.stdout.readline().split())
        assert process.pid == supervisor and wait_until_gone(workers, 0) == workers and len(workers) == 2
        for name in killed:
            os.kill({"supervisor": supervisor, "zygote": zygote}[name], signal.SIGKILL)
        assert not wait_until_gone([*workers, zygote] if zygote else workers, 5)
