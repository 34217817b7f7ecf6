"""What Linux and macOS have in common."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefork.platform_matrix.systems.system import Handover, Status, System

_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


class Posix(System):
    can_fork = True
    passes_descriptors = True
    waits_for_pipes = True
    terminal = "dumb"
    # By default it is ignored, and workers have no terminal that would send it. (SIGURG is Go's, for its own threads.)
    interruption = signal.SIGWINCH if hasattr(signal, "SIGWINCH") else None
    no_link = os.O_NOFOLLOW if hasattr(os, "O_NOFOLLOW") else 0

    def prepare_handover(self, there: socket.socket) -> Handover:
        """It inherits the descriptor, in a session of its own: Ctrl-C is for the supervisor."""
        options = {"pass_fds": [there.fileno()], "start_new_session": True, "stdin": subprocess.DEVNULL}
        return Handover(str(there.fileno()), options)

    def take_over(self, handle: str) -> socket.socket:
        return socket.socket(fileno=int(handle))

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def interrupt(self, pid: int) -> None:
        assert self.interruption is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, self.interruption)

    def kill_session(self, leader: int) -> None:
        import psutil

        for pid in psutil.pids():
            with contextlib.suppress(OSError):  # it ends this moment, or is another user's
                if pid != leader and os.getsid(pid) == leader:
                    os.kill(pid, signal.SIGKILL)

    def describe_status(self, status: int) -> Status:
        if status >= 0:
            return super().describe_status(status)
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        killed = name == "SIGKILL"
        perhaps = ", perhaps by the kernel because memory ran out" if killed else ""
        return Status(f"was killed by {name}{perhaps}", killed, name in _FROM_OUTSIDE)

    def name_user(self) -> str:
        return str(os.getuid())

    def read_flags(self, fd: int) -> int:
        import fcntl

        return fcntl.fcntl(fd, fcntl.F_GETFL)

    def limit_address_space(self) -> float:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        return math.inf if soft == resource.RLIM_INFINITY else soft

    def max_descriptors(self) -> int:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return sys.maxsize if most == resource.RLIM_INFINITY else most

    def raise_descriptors(self) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for most in (65_536, 10_240):  # macOS allows no more than the latter, whatever it says
            wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
            if soft == resource.RLIM_INFINITY or soft >= wanted:
                return
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            except (OSError, ValueError):
                continue
            return

    # -- around a fork -------------------------------------------------------------------------------------------

    def run_at_fork(
        self, before: Callable[[], None] | None = None, after_in_child: Callable[[], None] | None = None
    ) -> None:
        wanted = {"before": before, "after_in_child": after_in_child}
        os.register_at_fork(**{name: action for name, action in wanted.items() if action is not None})

    def restore_signals(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def close_inherited(self, keep: set[int]) -> None:
        closed = self.open_nothing()
        for name in os.listdir(self.descriptors):
            fd = int(name)
            if fd > 2 and fd not in keep and fd != closed:
                with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                    if not self.reopen(fd):
                        os.dup2(closed, fd, inheritable=False)
        os.close(closed)

    def open_nothing(self) -> int:
        """A descriptor that can be closed and, if the system has such, nothing else."""
        return os.open(os.devnull, os.O_RDONLY)

    def reopen(self, fd: int) -> bool:
        """Gives a descriptor of a file a position of its own; False if it cannot, or is of something else."""
        return False

    # -- memory --------------------------------------------------------------------------------------------------

    def protect(self, address: int, size: int) -> None:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    # -- files ---------------------------------------------------------------------------------------------------

    def sync_folder(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def hold(self, path: Path) -> int:
        import fcntl

        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | self.no_link)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def is_other_user(self, status: os.stat_result) -> bool:
        return status.st_uid != os.getuid()
