"""A system as prefork needs it, and what stands for the rest where a system has nothing of the kind."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Python:
    """How this Python is started again. environment: what that needs, added to this process's own."""

    executable: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Handover:
    """How a child process gets a socket. handle: what it is told, for `take_over`. options: of subprocess.Popen."""

    handle: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """What an exit status says. words: `exited with status 3`. killed: at once, which no process can prevent; None
    where the same status can mean something else. ended: by a signal that no fault of its own raises."""

    words: str
    killed: bool | None = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class SharedMapping:
    """size: bytes. name: of the file, or of the semaphore; empty of memory without one."""

    name: str
    size: int
    is_semaphore: bool = False


class System:
    """What holds of any system; each method says what it does where the system can do it."""

    can_fork = False
    passes_descriptors = False  # with messages, from process to process
    loses_descriptors = False  # that are closed here before the other process has taken them
    waits_for_pipes = False  # `selectors` takes more than sockets
    network_spoils_forks = False  # a process that asks a network for something must not fork after it
    has_nameless_files = False  # in memory, which end with the last who has them
    hides_memory = False  # no process may look at another's page tables
    knows_shares = False  # how many processes share a page, and not only what is a process's own
    terminal = ""  # what a terminal is called that no TERM describes

    has_metal = False  # and with it MPS
    interruption: int | None = None  # a signal that tells a worker to end its call, and else does nothing
    tells_threads = False  # whether each of them rests, and who started it
    no_link = 0  # for os.open: fails where a symbolic link stands for the file
    descriptors = Path("/dev/fd")  # a folder that lists this process's own, where it can fork
    memory_folder: Path | None = None  # in memory, where files can be made if nowhere else
    temporary = "TMPDIR"  # the variable that names the folder for temporary files

    def check(self) -> None:
        """Raises FactsError if what the system says of processes is missing, or another's: what they use of memory,
        which threads they have, and what they hold open."""

    # -- processes ---------------------------------------------------------------------------------------------

    def find_python(self) -> Python:
        """What to start for a child process to be this one's child, and in the same environment of packages."""
        return Python(sys.executable)

    def prepare_handover(self, there: socket.socket) -> Handover:
        """For a child process that is to have the socket."""
        raise NotImplementedError

    def hand_over(self, there: socket.socket, child: subprocess.Popen[bytes]) -> None:
        """Does what is left to do for that once the child is started. Raises OSError if it has gone."""

    def take_over(self, handle: str) -> socket.socket:
        """In the child: the socket. handle: as `prepare_handover` has it."""
        raise NotImplementedError

    def bind(self, child: subprocess.Popen[bytes]) -> None:
        """In the parent, once a child is started: where it can, the system ends it when this process ends."""

    def begin_child(self, parent: int) -> None:
        """In a child, before anything else: it leaves interrupts to its parent, and where the system sees to it, ends
        with it, however that ends. Starts no thread: it may be a process that forks."""

    def watch_parent(self, parent: int) -> None:
        """In a child that forks no more: where the system does not see to it, a thread ends it when its parent ends. A
        process that is busy reads nothing from its channel."""

    def kill(self, pid: int) -> None:
        """Ends a process at once. Nothing happens if it has just ended."""
        raise NotImplementedError

    def interrupt(self, pid: int) -> None:
        """Sends `interruption`, if there is one. Nothing happens if the process has just ended."""

    def kill_session(self, leader: int) -> None:
        """Ends what is left of the session of a process that has ended: children that were stopped before they could
        ask to die with it, or that it knew nothing of."""

    def describe_status(self, status: int) -> Status:
        """status: as subprocess has it."""
        return Status(f"exited with status {status}")

    def is_exiting(self, pid: int) -> bool:
        """Whether a process is about to be gone by itself, so that a signal changes nothing. True where nobody can
        say."""
        return True

    def is_stopped(self, pid: int) -> bool:
        """Whether a process was stopped by a signal, and not by a debugger. False where nobody can say."""
        return False

    def limit_address_space(self) -> float:
        """Bytes that any process of this user may map; infinite without a limit."""
        return math.inf

    def prefer_as_victim(self) -> None:
        """If the kernel has to end somebody for want of memory, let it be this process: it can be replaced."""

    def max_descriptors(self) -> int:
        """File descriptors that a process of this user may have open."""
        return 512

    def raise_descriptors(self) -> None:
        """Has this process and its children have as many open as they may, for what has a connection to many others."""

    def list_interrupts(self) -> tuple[signal.Signals, ...]:
        """The signals by which somebody asks a program to end in order."""
        return (signal.SIGINT, signal.SIGTERM)

    def name_user(self) -> str:
        """This user, as no other is called."""
        return os.environ.get("USERNAME", "user")

    def identify_boot(self) -> str:
        """Which start of the machine this is; empty where only the time of it is known."""
        return ""

    def identify_driver(self) -> str:
        """The version of the GPU's driver; empty where there is none, or the system does not say."""
        return ""

    def list_libraries(self) -> list[bytes]:
        """Paths of what this process has loaded; none where only the loader itself is asked."""
        return []

    def sample_threads(self) -> dict[int, tuple[str, bool]] | None:
        """This process's other threads, once they have come to rest: name, whether it waits. None where the system does
        not tell."""
        return None

    def trace_threads(self, tids: list[int]) -> dict[int, str]:
        """The file name of the library that started each of these threads; empty if it is not known."""
        return dict.fromkeys(tids, "")

    # -- what is open ------------------------------------------------------------------------------------------

    def name_descriptor(self, fd: int) -> str:
        """The path that it was opened by, or what the kernel calls it; empty where nobody says."""
        return ""

    def read_flags(self, fd: int) -> int:
        """What it was opened with."""
        raise NotImplementedError

    def is_name_only(self, fd: int) -> bool:
        """Whether it can be named and nothing else: neither read nor written."""
        return False

    def is_memory(self, name: str) -> bool:
        """Whether a descriptor of this name is of a file without one, in memory."""
        return False

    def list_open_files(self) -> set[str]:
        """By their paths; none where the system does not say."""
        return set()

    def list_shared_mappings(self) -> list[SharedMapping]:
        """Memory of this process that is shared and can be written to; none where the system does not say."""
        return []

    def count_sent(self, connection: socket.socket) -> int | None:
        """Bytes that the other end of a TCP connection has confirmed; None where the system does not say."""
        return None

    # -- around a fork -------------------------------------------------------------------------------------------

    def run_at_fork(
        self, before: Callable[[], None] | None = None, after_in_child: Callable[[], None] | None = None
    ) -> None:
        """Whenever this process forks."""

    def restore_signals(self) -> None:
        """In a forked child: default signal handling; a write to a closed pipe stays an exception, as everywhere in
        Python."""
        raise NotImplementedError

    def close_inherited(self, keep: set[int]) -> None:
        """In a forked child: closes every file descriptor above stderr that is not to be kept.

        Files that a model has open stay so (Linux): opened anew, because descriptors that are inherited have one
        position together, and whoever reads would move it for all. The other numbers stay taken, by a descriptor that
        can be closed and nothing else: an object that was inherited closes its number again once it is collected, and
        by then that would be another's.
        """
        raise NotImplementedError

    # -- memory --------------------------------------------------------------------------------------------------

    def release_free_memory(self) -> None:
        """Gives the kernel what malloc holds back of memory that has been freed."""

    def hold_blocks_apart(self) -> None:
        """From here on, blocks of memory above some kB have mappings of their own: what is freed while models are
        loaded leaves no holes among what stays, which every child would fill with pages of its own."""

    def reuse_blocks(self) -> None:
        """The opposite, for a child that computes: a block that was freed is used again."""

    def release_mapped_files(self) -> None:
        """Lets go of what is mapped of files, libraries above all, and was never written to. It is read again, from the
        kernel's cache, when it is touched."""

    def count_own(self, pid: int) -> int | None:
        """Bytes of a process, counted cheaply: what they grow by, its own memory has grown by. None where nobody can
        say, or if it is gone."""
        return None

    def read_pressure(self) -> int | None:
        """How short memory is by the system's own account: 1 not at all, 2 it warns, 4 it is about to end processes.
        None where it gives none: then it shows in what is available."""
        return None

    def measure_available(self) -> int:
        """Bytes that are free or would be given up at once; 0 where psutil knows them best."""
        return 0

    def open_nameless(self, label: str) -> int:
        """A descriptor of a file without a name, in memory, if it `has_nameless_files`. label: for whoever looks."""
        raise NotImplementedError

    def name_nameless(self, fd: int) -> str:
        """A path by which other processes of this user open it as long as this one has it open."""
        raise NotImplementedError

    def reset_peak(self) -> bool:
        """From here on the highest size of this process is kept anew; False where the system keeps none."""
        return False

    def measure_given_back(self) -> int | None:
        """Bytes by which this process was larger at its highest; None where the system does not say."""
        return None

    def measure_address_space(self, pid: int) -> int:
        """Bytes that a process has mapped; 0 if it is gone, or where the system does not say."""
        return 0

    def was_written(self, address: int, size: int) -> bool:
        """Whether a private mapping has pages of its own. True where nobody can say."""
        return True

    def protect(self, address: int, size: int) -> None:
        """Makes memory read-only for this process, and for all that are forked from it. address, size: bytes, of whole
        pages. Raises OSError."""
        raise NotImplementedError

    def populate(self, address: int, size: int) -> None:
        """Enters mapped memory into this process's page tables at once. Advice."""

    def page_out(self, address: int, size: int) -> None:
        """Lets the kernel take back pages that can be had again. Advice: nothing is lost."""

    def is_copied_on_write(self, address: int, size: int) -> bool:
        """Whether a process that writes there gets a copy of its own, once it is forked. What torch.multiprocessing has
        shared, or a file that is mapped, may be everybody's, or read-only. False where nobody can say."""
        return False

    def watch_faults(self, describe: Callable[[int], bytes], fd: int) -> None:
        """Makes this process write to `fd` what `describe` says of the address that an instruction could not reach,
        before SIGSEGV ends it. Nothing where only the system itself says it."""

    # -- files ---------------------------------------------------------------------------------------------------

    def sync_folder(self, path: Path) -> None:
        """Until what it lists is on the disk."""

    def replace(self, source: Path, target: Path) -> None:
        """Gives a file the name of another, which is gone then. Raises OSError."""
        source.replace(target)

    def extend(self, folder: Path) -> Path:
        """The folder by a name below which paths may be of any length. Of a file, its name in such a folder."""
        return folder

    def shorten(self, text: str) -> str:
        """A text with folders that have been extended as their users call them."""
        return text

    def hold(self, path: Path) -> int:
        """A descriptor that locks a file or folder as long as it is open, however this process ends; -1 where the
        system has no such locks. Raises BlockingIOError if it is locked, and OSError for a link."""
        return -1

    def is_other_user(self, status: os.stat_result) -> bool:
        """Whether a file is another user's."""
        return False

    def read_processor(self) -> str:
        """What the processor is and can do; empty where only `platform.processor` says it."""
        return ""
