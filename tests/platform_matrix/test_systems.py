"""What is in one module for each system: what the others are left with, and that nobody else names it."""

from __future__ import annotations

import ast
import ctypes
import errno
import functools
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.platform_matrix.systems import choose, windows
from prefork.platform_matrix.systems.linux import Linux
from prefork.platform_matrix.systems.macos import MacOS
from prefork.platform_matrix.systems.posix import Posix
from prefork.platform_matrix.systems.windows import Windows
from tests.systems import POSIX
from tests.systems.stubs import list_names

ROOT = Path(__file__).parents[2]


def test_each_system_has_its_own() -> None:
    kinds = {"linux": Linux, "darwin": MacOS, "win32": Windows, "freebsd14": Posix}
    assert {platform: type(choose(platform)) for platform in kinds} == kinds


def test_in_a_virtual_environment_on_windows_the_real_python_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    own = "prefork.platform_matrix.systems.windows.sys"
    monkeypatch.setattr(f"{own}.executable", r"C:\venv\Scripts\python.exe")
    monkeypatch.setattr(f"{own}._base_executable", r"C:\Python311\python.exe")
    python = Windows().find_python()
    assert python.executable == r"C:\Python311\python.exe"
    assert python.environment["__PYVENV_LAUNCHER__"] == r"C:\venv\Scripts\python.exe"
    monkeypatch.setattr(
        "prefork.platform_matrix.systems.windows.sys._base_executable", r"C:\venv\Scripts\python.exe"
    )  # no virtual environment
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
    ended: Any = SimpleNamespace(_handle=4711, poll=lambda: 0)
    running: Any = SimpleNamespace(_handle=4712, poll=lambda: None)
    system.bind(ended)
    assert not caplog.messages
    system.bind(running)
    system.bind(running)
    (message,) = caplog.messages
    assert message.startswith("no process can be put into a job object (Access is denied.): should this process be")


# -- nobody else names what only one system has ------------------------------------------------------------------------

_MODULES = ("os", "signal", "socket", "select", "mmap", "time", "subprocess")
_FILES = ("/proc", "/sys/", "/dev/shm", "proc/", "sys/")
_ANYWHERE = {  # who may, and why
    "platform_matrix/memory.py": "reads control groups below a root that tests give; elsewhere there are none",
    "platform_matrix/facts.py": "the same",
    "platform_matrix/cuda.py": "the driver's library has a name on each system, and describes itself alike",
}
_FORKING = {  # that run where there is fork, or descriptors are passed, and name what Linux and macOS share
    *("platform_matrix/canary.py", "platform_matrix/inherited.py", "platform_matrix/openings.py"),
    *("prefork/work/zygote.py", "prefork/work/calls.py", "prefork/pool/call_link.py", "prefork/wire/blocks.py"),
    *("prefork/wire/channel.py", "prefork/wire/child.py", "prefork/wire/shared_tracker.py"),
    "prefork/weights/device_memory.py",
}


@functools.cache
def _list_systems(module: str, name: str) -> frozenset[str]:
    return frozenset(system for system in ("linux", "darwin", "win32") if name in list_names(module, system))


def _find_names(path: Path) -> Iterator[tuple[int, str, frozenset[str]]]:
    """Lines, names, and the systems that have them."""
    everywhere = frozenset({"linux", "darwin", "win32"})
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case (
                ast.Attribute(value=ast.Name(id=module), attr=name)
                | ast.Call(
                    func=ast.Name(id="hasattr" | "getattr"),
                    args=[ast.Name(id=module), ast.Constant(value=str(name)), *_],
                )
            ) if module in _MODULES and (systems := _list_systems(module, name)) and systems != everywhere:
                yield node.lineno, f"{module}.{name}", systems
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in (
                ("sys", "platform"),
                ("os", "name"),
            ):
                yield node.lineno, f"{module}.{name}", frozenset({"one"})
            case ast.Attribute(attr="CDLL" | "WinDLL" | "windll" as name):
                yield node.lineno, name, frozenset({"one"})
            case ast.Import(names=[ast.alias(name=name)]) if name in POSIX:
                yield node.lineno, name, frozenset({"linux", "darwin"})
            case ast.Constant(value=str(name)) if name.startswith(_FILES) and "\n" not in name:
                yield node.lineno, name, frozenset({"linux"})


def test_nobody_else_names_what_only_one_system_has() -> None:
    sources = [path for root in ("engines", "platform_matrix", "prefork") for path in (ROOT / root).rglob("*.py")]
    named = {
        f"{relative}:{line}: {name}"
        for path in sources
        if (relative := path.relative_to(ROOT).as_posix()) not in _ANYWHERE
        and not relative.startswith(("platform_matrix/systems/", "prefork/platform_matrix/", "prefork/engines/"))
        for line, name, systems in _find_names(path)
        if len(systems) == 1 or relative not in _FORKING
    }
    assert not named, "\n".join(sorted(named))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os\nos.memfd_create('x')", {"os.memfd_create"}),
        ("import os\nif hasattr(os, 'memfd_create'): pass", {"os.memfd_create"}),
        ("import signal\nsignal.SIGKILL", {"signal.SIGKILL"}),
        ("import signal\nsignal.SIGINT", set()),
        ("import sys\nsys.platform", {"sys.platform"}),
        ("open('/proc/self/maps')", {"/proc/self/maps"}),
        ("import fcntl", {"fcntl"}),
        ("import ctypes\nctypes.CDLL(None)", {"CDLL"}),
        ("import os\nos.startfile('x')", {"os.startfile"}),
    ],
)
def test_such_names_are_found(text: str, found: set[str], tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(text)
    assert {name for _, name, _ in _find_names(tmp_path / "module.py")} == found
