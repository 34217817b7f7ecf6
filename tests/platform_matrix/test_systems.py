"""What is in one module for each system: what the others are left with, and that nobody else names it."""

from __future__ import annotations

import ctypes
import errno
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork.platform_matrix.systems import choose, windows
from prefork.platform_matrix.systems.linux import Linux
from prefork.platform_matrix.systems.macos import MacOS
from prefork.platform_matrix.systems.posix import Posix
from prefork.platform_matrix.systems.windows import Windows


def test_each_system_has_its_own() -> None:
    kinds = {"linux": Linux, "darwin": MacOS, "win32": Windows, "freebsd14": Posix}
    assert {platform: type(choose(platform)) for platform in kinds} == kinds


def test_in_a_virtual_environment_on_windows_the_real_python_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", r"C:\venv\Scripts\python.exe")
    monkeypatch.setattr(sys, "_base_executable", r"C:\Python311\python.exe")
    python = Windows().find_python()
    assert python.executable == r"C:\Python311\python.exe"
    assert python.environment["__PYVENV_LAUNCHER__"] == r"C:\venv\Scripts\python.exe"
    monkeypatch.setattr(sys, "_base_executable", r"C:\venv\Scripts\python.exe")  # no virtual environment
    assert Windows().find_python().executable == r"C:\venv\Scripts\python.exe"
    assert "__PYVENV_LAUNCHER__" not in Windows().find_python().environment


@pytest.mark.parametrize(
    ("status", "words", "killed", "ended"),
    [
        (0, "exited with status 0", False, False),
        (3, "exited with status 3", False, False),
        (1, "exited with status 1, or was ended by another process", None, False),
        (0xC0000005, "crashed with status 0xc0000005: a memory access that is not allowed", False, False),
        (0xC0000005 - (1 << 32), "crashed with status 0xc0000005: a memory access that is not allowed", False, False),
        (0xC000013A, "was ended by Ctrl-Break, or with its console", False, True),
    ],
)
def test_what_windows_says_of_an_end(status: int, words: str, killed: bool | None, ended: bool) -> None:
    found = Windows().describe_status(status)
    assert (found.words, found.killed, found.ended) == (words, killed, ended)


def test_what_posix_says_of_an_end() -> None:
    for status, killed, ended in ((-signal.SIGKILL, True, True), (-signal.SIGTERM, False, True), (-11, False, False)):
        found = Posix().describe_status(status)
        assert (found.killed, found.ended) == (killed, ended)
        assert found.words.startswith(f"was killed by {signal.Signals(-status).name}")
    assert Posix().describe_status(-999).words == "was killed by signal 999"


def test_on_windows_a_process_that_has_just_ended_needs_no_more_killing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr("os.kill", refuse)
    Windows().kill(4711)


def test_a_file_that_somebody_reads_is_replaced_once_he_has_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reading = 3

    def replace(source: Path, target: Path) -> Path:
        nonlocal reading
        if reading := reading - 1:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        return replaced(source, target)

    replaced = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    Windows().replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new" and not (tmp_path / "new").exists()
    monkeypatch.setattr(windows, "_PATIENCE", 0.1)
    reading = 1_000_000
    (tmp_path / "new").write_text("new")
    with pytest.raises(PermissionError):
        Windows().replace(tmp_path / "new", tmp_path / "old")


@pytest.mark.parametrize(
    ("folder", "extended", "shown"),
    [
        (r"C:\corpus", r"\\?\C:\corpus", r"C:\corpus"),
        (r"C:\corpus\..\other", r"\\?\C:\other", r"C:\other"),
        (r"\\server\share\corpus", r"\\?\UNC\server\share\corpus", r"\\server\share\corpus"),
        (r"\\?\C:\corpus", r"\\?\C:\corpus", r"C:\corpus"),
    ],
)
def test_paths_of_any_length_are_taken_where_the_registry_does_not_say_so(
    folder: str, extended: str, shown: str
) -> None:
    system = Windows()
    vars(system)["_takes_long_paths"] = False
    assert str(system.extend(Path(folder))) == extended
    assert system.shorten(f"{extended} is not empty") == f"{shown} is not empty"
    vars(system)["_takes_long_paths"] = True
    assert system.extend(Path(folder)) == Path(folder)


def test_structures_are_as_large_as_windows_has_them() -> None:
    """On 64 bits: JOBOBJECT_BASIC_LIMIT_INFORMATION, JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""
    assert (ctypes.sizeof(windows._BasicLimits), ctypes.sizeof(windows._ExtendedLimits)) == (64, 144)


def test_where_no_job_object_takes_a_process_the_user_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Kernel:
        def AssignProcessToJobObject(self, job: int, handle: int) -> int:
            return 0

    system = Windows()
    vars(system).update(_kernel=Kernel(), _job=1)
    monkeypatch.setattr(windows._ctypes, "get_last_error", lambda: 5, raising=False)
    monkeypatch.setattr(windows._ctypes, "FormatError", lambda code: "Access is denied.", raising=False)
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        child: Any = process
        child._handle = process.pid
        process.communicate()
        system.bind(child)  # it has ended meanwhile
        assert not caplog.messages
        child.returncode, child.poll = None, lambda: None
        system.bind(child)
        system.bind(child)
        child.returncode = 0
    (message,) = caplog.messages
    assert message.startswith("no process can be put into a job object (Access is denied.): should this process be")
