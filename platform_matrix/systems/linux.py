"""What only Linux has."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefork.platform_matrix.systems.posix import Posix

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PF_EXITING = 0x4  # linux/sched.h; the flags in /proc/[pid]/stat, proc_pid_stat(5)
_VICTIM = 500  # added to a thousandth of memory that the kernel counts when it looks for a victim, -1000 to 1000
_MADV_PAGEOUT = 21  # linux/mman.h
_MADV_POPULATE_READ = 22  # linux/mman.h
_SA_SIGINFO = 4  # asm-generic/signal.h
_SI_CODE_OFFSET = 8  # bytes into siginfo_t on 64-bit Linux
_SI_ADDR_OFFSET = 16
_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")

_installed: list[Any] = []
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Sigaction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Linux(Posix):
    has_nameless_files = True
    knows_shares = True
    descriptors = Path("/proc/self/fd")

    # -- processes ---------------------------------------------------------------------------------------------

    def begin_child(self, parent: int) -> None:
        """The kernel sees to it."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)

    def is_exiting(self, pid: int) -> bool:
        fields = _read_status(pid)
        return not fields or fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)

    def is_stopped(self, pid: int) -> bool:
        return _read_status(pid)[:1] == ["T"]

    def prefer_as_victim(self) -> None:
        with contextlib.suppress(OSError):  # not allowed
            Path("/proc/self/oom_score_adj").write_text(str(_VICTIM))

    # -- around a fork -------------------------------------------------------------------------------------------

    def open_nothing(self) -> int:
        return os.open(os.devnull, os.O_PATH)

    def reopen(self, fd: int) -> bool:

        link = f"/proc/self/fd/{fd}"
        if not stat.S_ISREG(os.fstat(fd).st_mode) or os.readlink(link).startswith("/memfd:"):  # noqa: PTH115
            return False
        flags, inherited = fcntl.fcntl(fd, fcntl.F_GETFL), os.get_inheritable(fd)
        new = os.open(link, flags & (os.O_ACCMODE | os.O_APPEND))
        try:
            os.lseek(new, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(new, fd, inherited)
        finally:
            os.close(new)
        return True

    # -- memory --------------------------------------------------------------------------------------------------

    def count_own(self, pid: int) -> int | None:
        """Resident in private mappings, those shared with a parent since a fork included."""
        try:
            fields = Path(f"/proc/{pid}/statm").read_text().split()
        except OSError:
            return None
        return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE if len(fields) > 2 else None

    def release_free_memory(self) -> None:
        """glibc alone knows how.

        After every segment, a wav2vec2 of 95 M peaks at 220 MB instead of 271 (the embedded model at 52 instead of 58),
        always the same for the same length (0.99 to 1.01 of a line through the lengths instead of 0.94 to 1.25), and is
        not slower (20.0 and 20.6 s instead of 20.4 and 21.1). A fixed M_MMAP_THRESHOLD of 1 MB gains no more, and is.
        """
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def populate(self, address: int, size: int) -> None:
        _advise(address, size, _MADV_POPULATE_READ)  # a kernel before 5.14 does not know it

    def page_out(self, address: int, size: int) -> None:
        _advise(address, size, _MADV_PAGEOUT)  # a kernel before 5.4 does not know it

    def is_copied_on_write(self, address: int, size: int) -> bool:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, access, *_ = line.split()
            low, high = (int(part, 16) for part in span.split("-"))
            if low < address + size and address < high and not (access.startswith("rw") and access.endswith("p")):
                return False
        return True

    def watch_faults(self, describe: Callable[[int], bytes], fd: int) -> None:
        """Python's own signal handlers run between two bytecodes, which a faulting instruction never reaches; this one
        runs inside the fault. Whatever else faults passes through it unharmed."""
        libc = ctypes.CDLL(None, use_errno=True)
        before = _Sigaction()

        def handle(signum: int, info: int, _context: Any) -> None:
            code = ctypes.c_int.from_address(info + _SI_CODE_OFFSET).value
            if code <= 0:  # a process has sent it: no instruction runs again
                libc.sigaction(signum, ctypes.byref(before), None)
                os.kill(os.getpid(), signum)
                return
            os.write(fd, describe(ctypes.c_void_p.from_address(info + _SI_ADDR_OFFSET).value or 0))
            libc.sigaction(signum, ctypes.byref(before), None)  # the instruction runs again, and now it is the end

        handler = _Handler(handle)
        _installed.append(handler)  # ctypes does not keep it alive
        action = _Sigaction(ctypes.cast(handler, ctypes.c_void_p).value, flags=_SA_SIGINFO)
        if libc.sigaction(signal.SIGSEGV, ctypes.byref(action), ctypes.byref(before)) != 0:
            raise OSError(ctypes.get_errno(), "cannot watch for writes to shared weights")

    # -- files ---------------------------------------------------------------------------------------------------

    def read_processor(self) -> str:
        """As the kernel describes the first one, without what changes with its load."""
        try:
            first = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("\n\n")[0]
        except OSError:
            return ""
        return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in _PROCESSOR)


def _read_status(pid: int) -> list[str]:
    """The fields of /proc/[pid]/stat from the state on; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _advise(address: int, size: int, advice: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)
