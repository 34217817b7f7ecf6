"""What the launcher of the tests starts is what exec would have started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefork.platform_matrix import devices
from prefork.pool.server_processes import _WAITING
from prefork.wire.child import _list_arguments
from prefork.wire.environment import _ENVIRONMENT
from tests import launcher, launcher_client
from tests.prefork.command import PREFORK, wait_until_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the launcher needs Linux's PR_SET_CHILD_SUBREAPER")
SELF = """
import prefork
from prefork import LoadError
import atexit, json, os, resource, signal, sys, threading, time
atexit.register(lambda: print("the end"))
threading.Thread(target=lambda: (time.sleep(0.3), print("a thread"))).start()
print(json.dumps({
    "arguments": sys.argv, "path": sys.path, "main": [__name__, __file__, vars(sys.modules["__main__"]) is globals()],
    "environment": dict(os.environ), "folder": os.getcwd(), "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(), "cores": sorted(os.sched_getaffinity(0)),
    "limits": [resource.getrlimit(kind) for kind in range(16)],
    "descriptors": sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd < 1000),
    "command": open("/proc/self/cmdline", "rb").read().rstrip(b"\\0").decode().split("\\0"),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    "streams": [[s.encoding, s.errors, s.line_buffering] for s in (sys.stdin, sys.stdout, sys.stderr)],
}, indent=1))
print("to stderr", file=sys.stderr)
print(sys.stdin.read())
"""
ENDS = {
    "returns": "",
    "exits": "sys.exit(3)",
    "exits with words": "sys.exit('no')",
    "raises": "raise LoadError('so')",
    "is interrupted": "raise KeyboardInterrupt",
    "aborts": "os.abort()",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


def _start(script: Path, monkeypatch: pytest.MonkeyPatch, by_exec: bool) -> subprocess.CompletedProcess[str]:
    monkeypatch.setattr(launcher.Popen, "is_off", by_exec)
    return subprocess.run(
        [sys.executable, script, "an argument", ""],
        input="what it reads",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=script.parent,
        env={**os.environ, "OURS": "é \udcff"},
        start_new_session=True,
    )


def _list_lines(stderr: str) -> list[str]:
    """Without the launcher's frames, the marks that Python 3.13 sets below them, and what the shell says."""
    foreign = re.compile(r"bash: |.*launcher\.py|.*exec\(|[ ~^]+$")
    return [line for line in stderr.splitlines() if not foreign.match(line)]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_forked_program_cannot_be_told_from_one_that_was_execed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{SELF}{end}\n")
    forked, execed = (_start(script, monkeypatch, by_exec) for by_exec in (False, True))
    assert forked.stdout == execed.stdout
    assert _list_lines(forked.stderr) == _list_lines(execed.stderr)
    assert forked.returncode == execed.returncode


def _find_client() -> tuple[list[str], int]:
    """Its command, to which the arguments of `python` are added, and the descriptor that it inherits."""
    door = launcher.Popen.ask().door
    assert door is not None
    return [sys.executable, "-I", "-S", launcher_client.__file__, str(door.fileno())], door.fileno()


def _run_in_shell(text: str, folder: Path, by_exec: bool, *arguments: str) -> subprocess.CompletedProcess[str]:
    """ "$@" in the text: the program with these arguments."""
    client, door = _find_client()
    return subprocess.run(
        ["bash", "-c", text, "bash", *([sys.executable] if by_exec else client), *arguments],
        input="what it reads",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        pass_fds=[] if by_exec else [door],
    )


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_a_shell_starts_cannot_be_told_from_what_was_execed(tmp_path: Path, end: str) -> None:
    text = SELF.replace('"parent": os.getppid(),', "")
    (tmp_path / "script.py").write_text(f"{text}{end}\n")
    forked, execed = (
        _run_in_shell('"$@"; exit $?', tmp_path, by_exec, "script.py", "an argument", "") for by_exec in (False, True)
    )
    assert forked.stdout == execed.stdout
    assert _list_lines(forked.stderr) == _list_lines(execed.stderr)
    assert forked.returncode == execed.returncode


def test_a_module_that_a_shell_starts_cannot_be_told_from_one_that_was_execed(tmp_path: Path) -> None:
    pytest_command = ["-m", "pytest", "-W", "ignore::pytest.PytestAssertRewriteWarning", "none.py"]
    for arguments in (["-m", "prefork", "--version", "-v"], ["-m", "prefork", "align"], pytest_command):
        forked, execed = (_run_in_shell('"$@"', tmp_path, by_exec, *arguments) for by_exec in (False, True))
        assert forked.returncode == execed.returncode
        assert forked.stderr == execed.stderr
        assert re.sub(r"in \d+\.\d+s", "", forked.stdout) == re.sub(r"in \d+\.\d+s", "", execed.stdout)


def test_two_that_a_shell_starts_at_once_do_not_mix_up_their_streams(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom prefork import LoadError\nprint(*sys.argv[1:], 'torch' in sys.modules, sys.stdin.read())\n"
    )
    (tmp_path / "script.py").write_text(program)
    done = _run_in_shell('"$@" 1 | "$@" 2 | "$@" 3', tmp_path, False, "script.py")
    assert done.stdout.split() == ["3", "True", "2", "True", "1", "True", "what", "it", "reads"]
    (tmp_path / "script.py").write_text(program.replace("from prefork", "# from prefork"))
    assert _run_in_shell('"$@"', tmp_path, False, "script.py").stdout == "False what it reads\n"  # it is exec'ed


def test_what_a_shell_has_started_ends_when_it_is_interrupted(tmp_path: Path) -> None:
    client, door = _find_client()
    script = "from prefork import LoadError\nimport os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    (tmp_path / "script.py").write_text(script)
    command = [*client, "script.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, pass_fds=[door], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert not wait_until_gone([pid], 20)


def test_it_is_forked_and_what_is_not_prefork_s_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("import prefork\nfrom prefork import LoadError\nimport sys; print('torch' in sys.modules)\n")
    assert [_start(script, monkeypatch, by_exec).stdout for by_exec in (False, True)] == ["True\n", "False\n"]
    script.write_text("import sys; print('torch' in sys.modules)\n")
    assert _start(script, monkeypatch, False).stdout == "False\n"


@pytest.mark.parametrize("value", ["", "0", "1", "true"])
def test_what_is_kept_off_the_hub_is_so_when_it_is_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nwas_there = 'torch' in sys.modules\nimport prefork\nimport huggingface_hub as hub\n"
        "print(was_there, hub.is_offline_mode(), hub.constants.HF_HUB_OFFLINE)\n"
    )
    forked, execed = (_start(script, monkeypatch, by_exec).stdout.split() for by_exec in (False, True))
    assert [forked[0], execed[0]] == ["True", "False"]
    assert forked[1:] == execed[1:] == [str(value in ("1", "true"))] * 2


@pytest.mark.parametrize("variable", ["STANZA_RESOURCES_DIR", "HF_HOME", "OMP_NUM_THREADS"])
def test_what_libraries_read_when_they_are_imported_makes_it_execed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    code = launcher._find_code(PREFORK)
    assert code is not None and not launcher.Popen.ask().may_start(code, os.environ)


def test_what_a_library_sets_as_a_test_imports_it_is_gone_with_the_next_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.Popen, "before", {"HF_KNOWN": "as it was", "OURS": "x"})
    monkeypatch.setattr(os, "environ", {"HF_KNOWN": "changed", "OURS": "y", "KMP_INIT_AT_FORK": "FALSE"})
    launcher.forget_what_libraries_set()
    assert os.environ == {"HF_KNOWN": "as it was", "OURS": "y"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals_reach_it_and_it_is_waited_for_like_any_child(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text("from prefork import LoadError\nimport time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == -number


def test_what_prefork_starts_is_what_the_launcher_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of their processes would be exec'ed, and the suite take half as long again, without a word."""
    asked = launcher.Popen.ask()
    zygote = launcher._find_code([sys.executable, *_list_arguments("work.zygote", "5")])
    server = launcher._find_code([sys.executable, *_list_arguments("work.server", "5")])
    assert zygote is not None and asked.may_start(zygote, {**os.environ, **_ENVIRONMENT})
    assert server is not None and asked.may_start(server, {**os.environ, **_ENVIRONMENT, **_WAITING})
    command = launcher._find_code(PREFORK)
    assert command is not None and asked.may_start(command, os.environ)
    started: list[list[str]] = []

    def note(arguments: list[str], **_: object) -> None:
        started.append(arguments)
        raise OSError("noted")

    monkeypatch.setattr(subprocess, "Popen", note)
    with pytest.raises(devices.NoAnswer):
        devices.interrogate("torch", devices.__name__, 1.0)
    asking = launcher._find_code(started[0])
    assert asking is not None and asked.may_start(asking, os.environ)
