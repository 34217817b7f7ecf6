"""What Windows has and Linux has not, made of what Linux has, for `tests.systems`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import mmap
import multiprocessing
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil

from tests.environment import LAUNCHER
from tests.systems import for_prefork, is_asked_by_prefork, is_meant_by_prefork

_TERMINATED = 1  # exit status of a process that TerminateProcess has ended, as Popen.kill has it
_CRASHES = {signal.SIGSEGV: 0xC0000005, signal.SIGABRT: 3, signal.SIGILL: 0xC000001D, signal.SIGBUS: 0xC0000006}
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
_PIDFD_GETFD = 438  # system call, on all machines
_libc = ctypes.CDLL(None, use_errno=True)


def add(values: dict[str, dict[str, Any]]) -> None:
    """What prefork finds in each module in place of Linux's, or beside it."""
    values["platform"] = {"system": lambda: "Windows", "release": lambda: "11", "machine": lambda: "AMD64"}
    values["ctypes"] = {
        "CDLL": _load_library,
        "WinDLL": _load_windows_library,
        "get_last_error": lambda: 5,
        "FormatError": lambda _: "Access is denied.",
    }
    os.environ["PREFORK_TESTS_PYTHON"] = sys.executable
    values["sys"] |= {"executable": str(Path(__file__).with_name("python.sh")), "_base_executable": sys.executable}
    values["os"] = {"name": "nt", "O_BINARY": 0, "O_NOINHERIT": 0}
    values["signal"] = {
        "SIGBREAK": signal.SIGUSR2,  # a test sends it as Ctrl-Break
        "CTRL_C_EVENT": 0,
        "CTRL_BREAK_EVENT": 1,
        "signal": _handle_signal,
        "valid_signals": lambda: {*_SIGNALS, signal.SIGUSR2},
    }
    values["socket"] = {"socketpair": _pair_sockets, "fromshare": _open_shared}
    values["subprocess"] = {"CREATE_NEW_PROCESS_GROUP": 0, "CREATE_NO_WINDOW": 0}
    socket.socket.share = _share  # type: ignore[attr-defined]
    selectors.DefaultSelector.register = _register  # type: ignore[method-assign,assignment]
    os.kill = for_prefork(_end_process, os.kill)
    subprocess.Popen._handle_exitstatus = _take_status  # type: ignore[attr-defined]
    subprocess.Popen._execute_child = _execute  # type: ignore[attr-defined]
    subprocess.Popen.kill = _terminate  # type: ignore[assignment, method-assign]
    subprocess.Popen._handle = property(lambda child: child.pid)  # type: ignore[attr-defined]
    os.replace, os.rename = _refuse_if_open(os.replace), _refuse_if_open(os.rename)
    os.unlink, os.remove = _refuse_if_open(os.unlink), _refuse_if_open(os.remove)
    mmap.mmap = _Mapping  # type: ignore[misc]
    multiprocessing.get_all_start_methods = for_prefork(lambda: ["spawn"], multiprocessing.get_all_start_methods)
    psutil.Process.memory_full_info = _measure


_own_register = selectors.DefaultSelector.register
_own_kill = os.kill
_own_popen = subprocess.Popen
_own_signal = signal.signal
_own_terminate: Any = subprocess.Popen.kill
_own_execute: Any = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_own_status: Any = subprocess.Popen._handle_exitstatus  # type: ignore[attr-defined]


def _load_library(name: str | None, *arguments: Any, **options: Any) -> Any:
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    raise FileNotFoundError(f"Could not find module {name!r} (or one of its dependencies)")


def _protect(address: Any, size: Any, protection: int, _old: Any) -> int:
    assert protection == 2  # PAGE_READONLY
    return int(_libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ) == 0)


_jobs: dict[int, subprocess.Popen[str]] = {}
_JOB = "import os, sys; [os.kill(int(pid), 9) for pid in list(sys.stdin) if os.path.exists(f'/proc/{int(pid)}')]"


def _make_job(_security: Any, _name: Any) -> int:
    """A process that kills all that it was told of when this one has gone: the other end of its pipe is here alone."""
    command = [LAUNCHER, "-I", "-S", "-c", _JOB]  # by that name it is none of prefork's
    own = _own_popen(command, executable=sys.executable, stdin=subprocess.PIPE, text=True, start_new_session=True)
    _jobs[own.pid] = own
    return own.pid


def _limit_job(job: int, kind: int, limits: Any, size: int) -> int:
    assert (kind, size, limits._obj.basic.flags) == (9, 144, 0x2000)  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    return int(job in _jobs)


def _assign(job: int, handle: int) -> int:
    pipe = _jobs[job].stdin
    assert pipe is not None
    print(handle, file=pipe, flush=True)
    return 1


def _load_windows_library(name: str, *_: Any, **__: Any) -> Any:
    """kernel32 and ntdll, as far as prefork calls them."""
    if name == "ntdll":
        return types.SimpleNamespace(RtlAreLongPathsEnabled=lambda: 1)
    assert name == "kernel32"
    return types.SimpleNamespace(
        VirtualProtect=_protect,
        CreateJobObjectW=_make_job,
        SetInformationJobObject=_limit_job,
        AssignProcessToJobObject=_assign,
    )


def _handle_signal(number: int, handler: Any) -> Any:
    if number not in {*_SIGNALS, signal.SIGUSR2}:
        raise ValueError("invalid signal value")
    return _own_signal(number, handler)


def _end_process(pid: int, number: int) -> None:
    """Windows knows TerminateProcess alone."""
    _own_kill(pid, signal.SIGKILL)


class _Mapping(mmap.mmap):
    """Windows's takes a descriptor, a length and an access."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        if is_asked_by_prefork() and options.keys() - {"tagname", "access", "offset"}:
            raise TypeError("mmap() got an unexpected keyword argument")
        return super().__new__(cls, *arguments, **options)


_own_measure = psutil.Process.memory_full_info
_Memory = namedtuple("_Memory", "rss vms uss")


def _measure(process: Any) -> Any:
    found = _own_measure(process)
    return _Memory(found.rss, found.vms, found.uss)


def _refuse_if_open(own: Any) -> Any:
    """What replaces or removes a file: not while it is open or mapped, by whomever."""

    def act(path: Any, *others: Any, **options: Any) -> Any:
        if is_meant_by_prefork():
            for place in (path, *others):
                if is_open(place):
                    raise PermissionError(13, "The process cannot access the file: it is being used", os.fspath(place))
        return own(path, *others, **options)

    return act


def is_open(path: Any) -> bool:
    """Whether a process of this user has it open or mapped."""
    if not Path(path).is_file():
        return False
    wanted = os.path.realpath(path)
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f" {wanted}\n" in Path(f"/proc/{process}/maps").read_text():
                return True
            for fd in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    if str(Path(f"/proc/{process}/fd/{fd}").readlink()) == wanted:
                        return True
    return False


@functools.wraps(_own_execute)
def _execute(child: Any, *arguments: Any) -> None:
    """On Linux too Python looks at this variable, and for the packages beside the launcher."""
    _own_execute(
        child,
        *(
            {name: value for name, value in argument.items() if name != "__PYVENV_LAUNCHER__"}
            if isinstance(argument, dict)
            else argument
            for argument in arguments
        ),
    )


def _terminate(child: Any) -> None:
    """TerminateProcess is denied while a process is ending, and its exit status is not known yet then."""
    if _is_ending(child.pid) and is_asked_by_prefork():
        raise PermissionError(13, "Access is denied")
    _own_terminate(child)


def _is_ending(pid: int) -> bool:
    """Whether it is about to end by itself, or has: PF_EXITING, linux/sched.h."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0] in "ZX" or bool(int(fields[6]) & 4)
    return False


def _take_status(child: Any, status: int, *arguments: Any) -> None:
    _own_status(child, status, *arguments)
    if child.returncode is not None and child.returncode < 0:
        child.returncode = _CRASHES.get(-child.returncode, _TERMINATED)


def _pair_sockets(*arguments: Any) -> tuple[socket.socket, socket.socket]:
    """A TCP connection, as Python has it there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    return here, there


def _register(selector: Any, fileobj: Any, events: int, data: Any = None) -> Any:
    """select() takes sockets alone."""
    fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if is_asked_by_prefork() and not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(10038, "An operation was attempted on something that is not a socket")
    return _own_register(selector, fileobj, events, data)


def _share(own: socket.socket, pid: int) -> bytes:
    """For one process alone, as WSADuplicateSocket has it."""
    kept = os.dup(own.fileno())  # until this process ends: on Windows the system has it
    return json.dumps({"for": pid, "of": os.getpid(), "fd": kept}).encode()


def _open_shared(data: bytes) -> socket.socket:
    shared = json.loads(data)
    if shared["for"] != os.getpid():
        raise OSError(10022, "An invalid argument was supplied")
    owner = os.pidfd_open(shared["of"])
    try:
        fd = _libc.syscall(_PIDFD_GETFD, owner, shared["fd"], 0)
    finally:
        os.close(owner)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return socket.socket(fileno=fd)
