"""The work is done on systems that lack what Linux has: see tests.systems."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.prefork.command import PREFORK, copy_sample, find_children, read_outputs, run, wait_until_gone, write_script
from tests.systems import SYSTEM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another system is made of what Linux has")
STRATEGIES = {"win32": "spawn", "darwin": "fork"}


COMMANDS = {
    "align": ("align", "--dtype", "float32"),  # by default int8, where the processor says that it is faster
    "morphotag": ("morphotag", "--lang", "eng"),
    "transcribe": ("transcribe", "--model", "tiny.en", "--dtype", "float32", "--lang", "eng"),
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each command what it takes, and what it makes of that on Linux."""
    folder = tmp_path_factory.mktemp("systems")
    for command in COMMANDS:
        for sample in ("child14", "child15") if command == "align" else ("child15",):
            transcript = copy_sample(folder / command, sample)
            if command == "transcribe":
                transcript.unlink()
        done = _run(command, folder)
        assert done.returncode == 0, done.stderr
    return folder


def _run(command: str, folder: Path, system: str = "", out: Path | None = None) -> subprocess.CompletedProcess[str]:
    name, *options = COMMANDS[command]
    environment: Any = {SYSTEM: system}
    source, target = folder / command, out or folder / f"{command} on Linux"
    return run("--force-cpu", name, source, target, "--workers", 2, *options, "--json", **environment)


@pytest.mark.parametrize("system", STRATEGIES)
@pytest.mark.parametrize("command", ["align", "morphotag", pytest.param("transcribe", marks=pytest.mark.slow)])
def test_samples_come_out_as_on_linux(command: str, system: str, corpora: Path, tmp_path: Path) -> None:
    done = _run(command, corpora, system, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'"strategy": "{STRATEGIES[system]}"' in done.stdout
    assert read_outputs(tmp_path) == read_outputs(corpora / f"{command} on Linux") != {}


@pytest.mark.parametrize("system", STRATEGIES)
def test_a_killed_command_goes_on(system: str, corpora: Path, tmp_path: Path) -> None:
    arguments = ["--force-cpu", *COMMANDS["align"], str(corpora / "align"), str(tmp_path), "--workers", "1", "--json"]
    with subprocess.Popen(
        [*PREFORK, *arguments], env={**os.environ, SYSTEM: system}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if '"event": "done"' in line)
        process.kill()
    done = _run("align", corpora, system, tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["done"], summary["skipped"]) == (1, 1)
    assert read_outputs(tmp_path) == read_outputs(corpora / "align on Linux")


# A user's script: calls that succeed, raise, and end or crash the worker that runs them.
_CALLS = """
import ctypes, os, signal, sys
from prefork import Runtime, WorkerDied

def load():
    import torch
    torch.manual_seed(0)
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
    torch.manual_seed(0)
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


@pytest.mark.usefixtures("script_engine")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2], ids=["Ctrl-C", "Ctrl-Break"])
def test_windows_interrupts_end_in_order_what_runs(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-Break reaches every process of the console; to tests on Linux, SIGUSR2 is SIGBREAK."""
    for job in range(6):
        write_script(tmp_path / "in", f"job{job}", *["sleep"] * 15)
    options = ("--engine", "script", "--format", "json", "--json", "--workers", "2")
    command = [*PREFORK, "align", str(tmp_path / "in"), str(tmp_path / "out"), *options]
    with subprocess.Popen(command, env={**os.environ, SYSTEM: "win32"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next(line for line in process.stdout if '"event": "done"' in line)
        for child in find_children(process.pid):
            if number == signal.SIGUSR2 and "prefork.wire.child" in " ".join(child.cmdline()):
                child.send_signal(number)
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    summary = json.loads(output.splitlines()[-1])
    assert summary["unfinished"] > 0 and summary["failed"] == {} and summary["deaths"] == 0


def test_a_console_of_windows_shows_what_it_can(tmp_path: Path) -> None:
    """In code page 1252 there is no box to draw tables with, and no letter of most languages."""
    copy_sample(tmp_path / "in", "child15", "Łódź")
    shutil.copy(tmp_path / "in" / "Łódź.cha", tmp_path / "in" / "日本.cha")
    environment: Any = {SYSTEM: "win32", "PYTHONIOENCODING": "cp1252"}
    for arguments in (("plan", "align", tmp_path / "in"), ("align", tmp_path / "in", tmp_path / "out"), ("matrix",)):
        done = run(*arguments, **environment)
        assert done.returncode == (1 if arguments[0] == "align" else 0), done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "Łódź.cha").is_file()


@pytest.mark.usefixtures("script_engine")
def test_what_a_model_prints_needs_no_console_that_has_its_letters(tmp_path: Path) -> None:
    """What goes to prefork's log is UTF-8, whatever the code page."""
    write_script(tmp_path / "in", "job", "print 日本 Łódź", "say x")
    environment: Any = {SYSTEM: "win32", "PYTHONIOENCODING": "cp1252"}
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--format", "json", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "日本 Łódź" in (tmp_path / "out" / ".prefork" / "log.txt").read_text(encoding="utf-8")
