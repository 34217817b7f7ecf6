"""What only Windows has. Its functions are described at https://learn.microsoft.com/windows/win32/api."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import ntpath
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from prefork.platform_matrix.systems.system import Handover, Python, Status, System

_PAGE_READONLY = 2  # winnt.h
_KILL_ON_JOB_CLOSE = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE, winnt.h
_EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation, winnt.h
_TERMINATED = 1  # what TerminateProcess has a process exit with, as subprocess and Task Manager call it
_INTERRUPTED = 0xC000013A  # STATUS_CONTROL_C_EXIT, ntstatus.h: its console was closed, or Ctrl-Break was pressed
_CRASHES = {  # ntstatus.h
    0xC0000005: "a memory access that is not allowed",
    0xC0000006: "a page that could not be read",
    0xC0000017: "want of memory",
    0xC000001D: "an instruction that this processor does not have",
    0xC0000094: "a division by zero",
    0xC00000FD: "a stack overflow",
    0xC0000135: "a DLL that was not found",
    0xC0000142: "a DLL that could not be initialised",
    0xC0000374: "a damaged heap",
    0xC0000409: "a damaged stack, or abort()",
}
_LONG = "\\\\?\\"  # before a path that may be longer than 260 characters, and
_LONG_SHARE = "\\\\?\\UNC\\"  # in place of the \\\\ of one on another machine
_PATIENCE = 5.0  # seconds that a file may be open elsewhere: virus scanners and indexers look at what is new
_RETRY_SECONDS = 0.02


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION, winnt.h."""

    _fields_ = (
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("least_working_set", ctypes.c_size_t),
        ("most_working_set", ctypes.c_size_t),
        ("processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION, winnt.h."""

    _fields_ = (("basic", _BasicLimits), ("counters", ctypes.c_uint64 * 6), ("memory", ctypes.c_size_t * 4))


class Windows(System):
    temporary = "TEMP"

    # -- processes ---------------------------------------------------------------------------------------------

    def find_python(self) -> Python:
        """Not sys.executable in a virtual environment: that is a launcher, whose child would be the real process, with
        another pid. The same as multiprocessing.popen_spawn_win32 starts (https://bugs.python.org/issue35797)."""
        base = getattr(sys, "_base_executable", sys.executable)
        if os.path.normcase(base) == os.path.normcase(sys.executable):
            return super().find_python()
        return Python(base, {"__PYVENV_LAUNCHER__": sys.executable})

    def prepare_handover(self, there: socket.socket) -> Handover:
        """It makes its own from what is written to its stdin. Of a group of its own: Ctrl-C is for the supervisor."""
        return Handover("stdin", {"stdin": subprocess.PIPE, "creationflags": _subprocess.CREATE_NEW_PROCESS_GROUP})

    def hand_over(self, there: socket.socket, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        with child.stdin as stdin:
            stdin.write(there.share(child.pid))  # type: ignore[attr-defined]

    def take_over(self, handle: str) -> socket.socket:
        found: socket.socket = _socket.fromshare(sys.stdin.buffer.read())
        return found

    def bind(self, child: subprocess.Popen[bytes]) -> None:
        """By a job object, which ends all that is in it when the last handle of it is closed."""
        job = self._job
        if job and not self._kernel.AssignProcessToJobObject(job, int(child._handle)) and child.poll() is None:  # type: ignore[attr-defined]
            _warn("no process can be put into a job object")
            self.__dict__["_job"] = 0

    @cached_property
    def _job(self) -> int:
        """A handle, which is closed when this process ends; 0 if there can be none."""
        job = self._kernel.CreateJobObjectW(None, None)
        limits = _ExtendedLimits(_BasicLimits(flags=_KILL_ON_JOB_CLOSE))
        size = ctypes.sizeof(limits)
        if job and self._kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, ctypes.byref(limits), size):
            return int(job)
        _warn("no job object can be made")
        return 0

    @cached_property
    def _kernel(self) -> Any:
        kernel = _ctypes.WinDLL("kernel32", use_last_error=True)
        handle, pointer = ctypes.c_void_p, ctypes.c_void_p
        kernel.CreateJobObjectW.restype = handle
        kernel.CreateJobObjectW.argtypes = (pointer, pointer)
        kernel.SetInformationJobObject.argtypes = (handle, ctypes.c_int, pointer, ctypes.c_uint32)
        kernel.AssignProcessToJobObject.argtypes = (handle, handle)
        kernel.VirtualProtect.argtypes = (pointer, ctypes.c_size_t, ctypes.c_uint32, pointer)
        return kernel

    def begin_child(self, parent: int) -> None:
        """Ctrl-Break goes to every process of a console, whatever its group."""
        signal.signal(_signal.SIGBREAK, signal.SIG_IGN)

    def kill(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended, or is ending
            os.kill(pid, signal.SIGTERM)  # TerminateProcess, whatever the signal

    def describe_status(self, status: int) -> Status:
        number = status & 0xFFFFFFFF
        if number in _CRASHES:
            return Status(f"crashed with status {number:#010x}: {_CRASHES[number]}")
        if number == _INTERRUPTED:
            return Status("was ended by Ctrl-Break, or with its console", ended=True)
        if number in (_TERMINATED, signal.SIGTERM):
            return Status(f"exited with status {number}, or was ended by another process", None)
        return super().describe_status(status)

    def list_interrupts(self) -> tuple[signal.Signals, ...]:
        return (*super().list_interrupts(), _signal.SIGBREAK)

    # -- memory --------------------------------------------------------------------------------------------------

    def protect(self, address: int, size: int) -> None:
        if not self._kernel.VirtualProtect(address, size, _PAGE_READONLY, ctypes.byref(ctypes.c_uint32())):
            raise OSError(_ctypes.get_last_error(), _describe_failure())

    # -- files ---------------------------------------------------------------------------------------------------

    def replace(self, source: Path, target: Path) -> None:
        """A file that somebody reads cannot be replaced; it is tried again for a while."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return super().replace(source, target)
            except PermissionError:
                if target.is_dir() or time.monotonic() > until:
                    raise
                time.sleep(_RETRY_SECONDS)

    def extend(self, folder: Path) -> Path:
        """Where the registry has not lifted the limit of 260 characters (LongPathsEnabled)."""
        if self._takes_long_paths or str(folder).startswith(_LONG):
            return folder
        path = ntpath.abspath(folder)
        return Path(f"{_LONG_SHARE}{path[2:]}" if path.startswith("\\\\") else f"{_LONG}{path}")

    def shorten(self, text: str) -> str:
        return text.replace(_LONG_SHARE, "\\\\").replace(_LONG, "")

    @cached_property
    def _takes_long_paths(self) -> bool:
        asks = getattr(_ctypes.WinDLL("ntdll"), "RtlAreLongPathsEnabled", None)  # since Windows 10, version 1607
        return asks is not None and bool(asks() & 0xFF)


def _describe_failure() -> str:
    """What the last call into Windows said."""
    return str(_ctypes.FormatError(_ctypes.get_last_error())).strip()


def _warn(what: str) -> None:
    logging.getLogger("prefork").warning(
        "%s (%s): should this process be ended by force, end its python.exe processes too", what, _describe_failure()
    )


# What type checkers do not know of on other systems.
_ctypes: Any = ctypes
_signal: Any = signal
_socket: Any = socket
_subprocess: Any = subprocess
