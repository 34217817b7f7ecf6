"""What only Linux has."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefork.platform_matrix.errors import FactsError
from prefork.platform_matrix.systems import linux_threads
from prefork.platform_matrix.systems.posix import Posix
from prefork.platform_matrix.systems.system import SharedMapping

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PF_EXITING = 0x4  # linux/sched.h; the flags in /proc/[pid]/stat, proc_pid_stat(5)
_VICTIM = 500  # added to a thousandth of memory that the kernel counts when it looks for a victim, -1000 to 1000
_MADV_PAGEOUT = 21  # linux/mman.h
_MADV_POPULATE_READ = 22  # linux/mman.h
_SA_SIGINFO = 4  # asm-generic/signal.h
_SI_CODE_OFFSET = 8  # bytes into siginfo_t on 64-bit Linux
_SI_ADDR_OFFSET = 16
_SHARED = 1 << 61  # in an entry of /proc/self/pagemap: the page is a file's, or shared
_THERE = 3 << 62  # it is in memory, or swapped out
_SIZES = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB", re.MULTILINE)  # in /proc/[pid]/status
_TCP_INFO_BYTES, _BYTES_ACKED = 128, 120  # of struct tcp_info in linux/tcp.h; where tcpi_bytes_acked is
_NAMELESS = "/memfd:"  # how names of memfd_create's files begin
_ANONYMOUS = "/dev/zero"  # and those of shared memory without a file
_SEMAPHORES = "/dev/shm/sem."
_DELETED = " (deleted)"
_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
# In /proc/[pid]/smaps, of a file that cannot be written to: its addresses, and kB of it that are no longer the file's.
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-[-x]p \S+ \S+ [1-9]\d* +/.*\n(?:(?!Anonymous)[A-Z]\w+:.*\n)*Anonymous: +(\d+) kB",
    re.MULTILINE,
)

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
    memory_folder = Path("/dev/shm")
    tells_threads = True

    def check(self) -> None:
        try:
            itself = str(Path("/proc/self").readlink())
        except OSError as error:
            raise FactsError(
                f"/proc is not mounted here ({error.strerror}); mount it: mount -t proc proc /proc"
            ) from error
        if itself != str(os.getpid()):
            raise FactsError(
                f"/proc is another PID namespace's: process {os.getpid()} is called {itself} there; "
                "mount this one's: mount -t proc proc /proc, or unshare --mount-proc"
            )

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

    def identify_boot(self) -> str:
        return _read("/proc/sys/kernel/random/boot_id")

    def identify_driver(self) -> str:
        return _read("/sys/module/nvidia/version")

    def sample_threads(self) -> dict[int, tuple[str, bool]] | None:
        return linux_threads.sample_threads(threading.get_native_id())

    def trace_threads(self, tids: list[int]) -> dict[int, str]:
        return linux_threads.trace_threads(tids)

    # -- what is open ------------------------------------------------------------------------------------------

    def name_descriptor(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}").removesuffix(_DELETED)  # noqa: PTH115  it may be no path

    def is_name_only(self, fd: int) -> bool:
        return bool(self.read_flags(fd) & os.O_PATH)

    def is_memory(self, name: str) -> bool:
        return name.startswith(_NAMELESS)

    def list_open_files(self) -> set[str]:
        paths = set()
        for name in os.listdir(self.descriptors):
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                paths.add(os.readlink(self.descriptors / name))  # noqa: PTH115
        return paths

    def list_shared_mappings(self) -> list[SharedMapping]:
        sizes: dict[str, int] = {}
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            span, access, _, _, inode, *rest = line.split(maxsplit=5)
            if access[1] == "w" and access[3] == "s":
                start, end = (int(address, 16) for address in span.split("-"))
                name = rest[0].removesuffix(_DELETED) if rest else f"{_ANONYMOUS} {inode}"
                sizes[name] = sizes.get(name, 0) + end - start
        return [
            SharedMapping(name.removeprefix(_SEMAPHORES), size, True)
            if name.startswith(_SEMAPHORES)
            else SharedMapping("" if name.startswith(_ANONYMOUS) else name, size)
            for name, size in sizes.items()
        ]

    def count_sent(self, connection: socket.socket) -> int | None:
        information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(struct.unpack_from("=Q", information, _BYTES_ACKED)[0])

    # -- around a fork -------------------------------------------------------------------------------------------

    def open_nothing(self) -> int:
        return os.open(os.devnull, os.O_PATH)

    def reopen(self, fd: int) -> bool:

        import fcntl

        link = f"/proc/self/fd/{fd}"
        if not stat.S_ISREG(os.fstat(fd).st_mode) or self.is_memory(os.readlink(link)):  # noqa: PTH115
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
        fields = _read(f"/proc/{pid}/statm").split()
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

    def hold_blocks_apart(self) -> None:
        """glibc raises the threshold itself to what was freed last, 32 MB at most, unless it is set.

        A worker that transcribes with whisper-tiny.en has 81 MB of its own at most instead of 94, as fast as before. If
        it kept the threshold, it would be 63 to 71, and a fifth slower: the kernel clears every page.
        """
        _set_malloc(_M_MMAP_THRESHOLD, 64 << 10)

    def reuse_blocks(self) -> None:
        _set_malloc(_M_MMAP_THRESHOLD, 32 << 20)
        _set_malloc(_M_TRIM_THRESHOLD, 32 << 20)

    def release_mapped_files(self) -> None:
        madvise = ctypes.CDLL(None).madvise
        for mapping in _MAPPING.finditer(_read("/proc/self/smaps")):
            start, end, anonymous = (int(mapping[1], 16), int(mapping[2], 16), int(mapping[3]))
            if not anonymous:  # else relocations were written there
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    def open_nameless(self, label: str) -> int:
        return os.memfd_create(label, os.MFD_CLOEXEC)

    def name_nameless(self, fd: int) -> str:
        return f"/proc/{os.getpid()}/fd/{fd}"

    def reset_peak(self) -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # a sandbox without it
            return False
        return True

    def measure_given_back(self) -> int | None:
        status = {name: 1024 * int(size) for name, size in _SIZES.findall(_read("/proc/self/status"))}
        return status["VmHWM"] - status["VmRSS"] if len(status) == 2 else None

    def measure_address_space(self, pid: int) -> int:
        fields = _read(f"/proc/{pid}/statm").split()
        return int(fields[0]) * mmap.PAGESIZE if fields else 0

    def was_written(self, address: int, size: int) -> bool:
        """proc_pid_pagemap(5)."""
        first, count = address // mmap.PAGESIZE, size // mmap.PAGESIZE
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:
                file.seek(8 * first)
                data = file.read(8 * count)
        except OSError:
            return True
        if len(data) < 8 * count:
            return True
        import numpy as np

        entries = np.frombuffer(data, np.uint64)
        return bool(((entries & _THERE != 0) & (entries & _SHARED == 0)).any())

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
        first = _read("/proc/cpuinfo").partition("\n\n")[0]
        return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in _PROCESSOR)


def _read_status(pid: int) -> list[str]:
    """The fields of /proc/[pid]/stat from the state on; none if there is no such process."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _read(file: str) -> str:
    """Empty if there is no such process or file."""
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _advise(address: int, size: int, advice: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)


def _set_malloc(option: int, value: int) -> None:
    """Of glibc; musl has no such options."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(option, value)
