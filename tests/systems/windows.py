"""What Windows has and Linux has not, made of what Linux has, for `tests.systems`."""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import selectors
import signal
import socket
import stat
import subprocess
from collections import namedtuple
from typing import Any

import psutil

from tests.systems import for_prefork, is_asked_by_prefork

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
        "windll": windll,
        "WinDLL": lambda *_, **__: windll.kernel32,
        "WinError": _make_error,
    }
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
    mmap.mmap = _Mapping  # type: ignore[misc]
    multiprocessing.get_all_start_methods = for_prefork(lambda: ["spawn"], multiprocessing.get_all_start_methods)
    psutil.Process.memory_full_info = _measure


_own_register = selectors.DefaultSelector.register
_own_kill = os.kill
_own_signal = signal.signal
_own_status: Any = subprocess.Popen._handle_exitstatus  # type: ignore[attr-defined]


def _load_library(name: str | None, *arguments: Any, **options: Any) -> Any:
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    raise FileNotFoundError(f"Could not find module {name!r} (or one of its dependencies)")


def _make_error(code: int | None = None, text: str | None = None) -> OSError:
    return OSError(22, text or "refused by Windows", None, code)


class _Kernel:
    """kernel32, as far as prefork calls it."""

    def VirtualProtect(self, address: Any, size: Any, protection: int, _old: Any) -> int:
        assert protection == 2  # PAGE_READONLY
        return int(_libc.mprotect(address, size, mmap.PROT_READ) == 0)


class windll:
    kernel32 = _Kernel()


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
