"""What a forked child shares with its parent beside memory: positions in files, pipes, sockets, mappings, processes.

A fork copies descriptors, not what they refer to (https://man7.org/linux/man-pages/man2/fork.2.html): where one process
reads, seeks or answers, it does so for all. Reads, never changes. No file is opened anew: to close it would end the
locks that this process has on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import io
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefork.platform_matrix.holders import Tracked, find_holder
from prefork.platform_matrix.openings import Openings
from prefork.platform_matrix.systems import SYSTEM

Identity = tuple[int, int, int]  # descriptor, device, inode

_NETWORK = (socket.AF_INET, socket.AF_INET6)
_MOST_LETTERS = 120  # of a command line
_SQLITE = b"SQLite format 3\0"
_BESIDE = re.compile(r"-(wal|shm|journal)$")  # a database: https://www.sqlite.org/tempfiles.html
_DEVICES = ("/dev/nvidia", "/dev/dri", "/dev/kfd")  # whose drivers are hazards of their own
_TRACKERS = re.compile(r"resource_tracker|multiprocessing\.forkserver")
_OBJECTS = {  # the kernel's, as Linux calls them
    "eventpoll": "what one process adds to it or removes, it adds or removes for all",
    "eventfd": "a signal that one process takes, no other gets",
    "timerfd": "a tick that one process takes, no other gets",
    "inotify": "an event that one process takes, no other gets",
    "fanotify": "an event that one process takes, no other gets",
    "signalfd": "it gives each process that process's own signals",
    "io_uring": "all processes write to its queues",
    "userfaultfd": "it serves the parent's memory, and no child's",
}
CONNECTION = "connection"
_EACH = "open it in each worker"


@dataclass(frozen=True, slots=True)
class Shared:
    """Something that a child shares. kind: a file, a pipe, and so on. what: a sentence. harmless: it is made for this.

    identity: None of memory and processes. has_position: it is a file that can be read.
    """

    kind: str
    what: str
    remedy: str = _EACH
    harmless: bool = False
    identity: Identity | None = None
    has_position: bool = False


def identify() -> frozenset[Identity]:
    """The descriptors that are open now, to leave them out later."""
    return frozenset(identity for identity, _ in _list_descriptors())


def list_shared(ours: Collection[Identity] = (), openings: Openings | None = None) -> list[Shared]:
    """All that children forked now would share with this process; not stdin, stdout and stderr.

    ours: descriptors that are not to be reported. openings: knows where in the code something was opened.
    """
    look = _Look(openings)
    found = [look.describe(identity, mode) for identity, mode in _list_descriptors() if identity not in ours]
    return [*filter(None, found), *look.list_mappings(), *look.list_processes()]


def list_connections(ours: Collection[int] = ()) -> list[Shared]:
    """Those to other machines, or through the network to other programs. ours: descriptors not to be reported."""
    look = _Look()
    sockets = [
        identity
        for identity, mode in _list_descriptors()
        if stat.S_ISSOCK(mode) and identity[0] not in ours and _get_family(identity[0]) in _NETWORK
    ]
    return [shared for shared in map(look.describe_socket, sockets) if shared is not None and shared.kind == CONNECTION]


def read_uses(found: Collection[Shared]) -> dict[Shared, int]:
    """What changes when somebody uses it, in bytes: the position in a file, what was sent over a TCP connection."""
    uses = {}
    for shared in found:
        if shared.identity is None:
            continue
        with suppress(OSError):  # closed meanwhile
            if shared.has_position:
                uses[shared] = os.lseek(shared.identity[0], 0, os.SEEK_CUR)
            elif shared.kind == CONNECTION:
                with socket.socket(fileno=os.dup(shared.identity[0])) as own:
                    sent = SYSTEM.count_sent(own)
                if sent is not None:
                    uses[shared] = sent
    return uses


def _get_family(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as own:
        return own.family


def _list_descriptors() -> Iterator[tuple[Identity, int]]:
    """With their mode."""
    for fd in sorted(map(int, os.listdir(SYSTEM.descriptors))):
        with suppress(OSError):  # the listing's own
            status = os.fstat(fd)
            if fd > 2:
                yield (fd, status.st_dev, status.st_ino), status.st_mode


class _Look:
    """At one descriptor after the other."""

    def __init__(self, openings: Openings | None = None) -> None:
        self._openings = openings or Openings()

    def describe(self, identity: Identity, mode: int) -> Shared | None:
        """None if nothing can come of sharing it."""
        fd = identity[0]
        if SYSTEM.is_name_only(fd):
            return None
        if stat.S_ISSOCK(mode):
            return self.describe_socket(identity)
        name = SYSTEM.name_descriptor(fd)
        if stat.S_ISREG(mode):
            return self._describe_file(identity, name)
        if stat.S_ISDIR(mode):
            what = f"folder {name} is being listed{self._find_place(fd)}; each entry goes to one process alone"
            return Shared("folder", what, identity=identity)
        if stat.S_ISFIFO(mode):
            return self._describe_pipe(identity, name)
        found = re.match(r"anon_inode:\[?([\w-]+)", name)
        if found is None or found[1] not in _OBJECTS:  # a device, or what nobody reads from
            return None
        what = f"kernel object {found[1]} is open{self._find_place(fd)}; {_OBJECTS[found[1]]}"
        return Shared(found[1], what, identity=identity)

    def _describe_file(self, identity: Identity, name: str) -> Shared | None:
        if SYSTEM.is_memory(name):  # listed as such if it can be written to
            return None
        fd = identity[0]
        database = _BESIDE.sub("", name)
        flags = SYSTEM.read_flags(fd)
        access = flags & os.O_ACCMODE
        reads, writes, appends = access != os.O_WRONLY, access != os.O_RDONLY, flags & os.O_APPEND
        where = self._find_place(fd, self._openings.find_file(name, access), self._openings.find_file(database))
        if (reads and os.pread(fd, len(_SQLITE), 0) == _SQLITE) or (database != name and Path(database).exists()):
            what = f"the SQLite database {database} is open{where}; no connection to it may be used across a fork"
            return Shared("database", what, "connect to it in each worker", identity=identity, has_position=reads)
        mode = " and ".join(["reading"] * reads + ["appending" if appends else "writing"] * writes)
        shared = "all processes write to it" if appends and not reads else "all processes share its position"
        return Shared("file", f"file {name} is open for {mode}{where}; {shared}", identity=identity, has_position=reads)

    def _describe_pipe(self, identity: Identity, name: str) -> Shared:
        tracker = sys.modules.get("multiprocessing.resource_tracker")
        if tracker is not None and tracker._resource_tracker._fd == identity[0]:
            return Shared("pipe", "the pipe to multiprocessing's resource tracker is open", "", True, identity)
        pipe = f"named pipe {name}" if name.startswith("/") else f"a pipe (descriptor {identity[0]})"
        where = self._find_place(identity[0], self._openings.find_file(name))
        what = f"{pipe} is open{where}; what one process reads from it, no other gets"
        return Shared("pipe", what, identity=identity)

    def describe_socket(self, identity: Identity) -> Shared | None:
        """As `describe`."""
        fd = identity[0]
        with socket.socket(fileno=os.dup(fd)) as own:
            family = own.family
            peer, here = _ask(own.getpeername), _ask(own.getsockname)
            listens = _ask(lambda: own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        where = self._find_place(fd, self._openings.find_socket(fd))
        if listens:
            what = f"a socket listens at {_write_address(here)}{where}; each connection goes to one process alone"
            return Shared("listening socket", what, harmless=True, identity=identity)
        if family in _NETWORK:
            if not peer:
                return None
            what = (
                f"file descriptor {fd} is connected to {peer[0]} port {peer[1]}{where}; a child that uses it disturbs "
                "its parent"
            )
            return Shared(CONNECTION, what, "close it before the models are loaded", identity=identity)
        kind = "unix socket" if family == getattr(socket, "AF_UNIX", None) else f"socket of family {int(family)}"
        other = f" to {_write_address(peer)}" if peer else ""
        what = f"a {kind} (descriptor {fd}){other} is open{where}; what one process reads from it, no other gets"
        return Shared("socket", what, identity=identity)

    def list_mappings(self) -> Iterator[Shared]:
        """Memory that is shared and can be written to, by the file that it is of; Linux alone tells."""
        for mapping in SYSTEM.list_shared_mappings():
            name = mapping.name
            if mapping.is_semaphore:
                yield Shared("semaphore", f"semaphore {name} is open", "", harmless=True)
            elif _BESIDE.search(name) is None and not name.startswith(_DEVICES):  # else told of its database
                place = self._openings.find_file(name)
                where = f", opened in {place}" if place else ""
                what = f"{_write_size(mapping.size)} of {name or 'memory'} are mapped shared and writable{where}"
                remedy = "map it copy-on-write (MAP_PRIVATE), or for reading alone"
                yield Shared("mapping", f"{what}; what one process writes there, all others see", remedy)

    def list_processes(self) -> Iterator[Shared]:
        """Programs that this process has started and that run."""
        import psutil

        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it ends this moment
                arguments = child.cmdline()
                command = " ".join(arguments)[:_MOST_LETTERS] or child.name()
                if child.status() == psutil.STATUS_ZOMBIE:
                    continue
                if _TRACKERS.search(command):
                    yield Shared("process", f"process {child.pid} is multiprocessing's own", "", harmless=True)
                    continue
                place = self._openings.find_program(arguments)
                what = f"process {child.pid} ({command}) is running{f', started in {place}' if place else ''}"
                yield Shared(
                    "process",
                    f"{what}; no forked child can wait for it, and those that ask it get each other's answers",
                    "start it in each worker",
                )

    def _find_place(self, fd: int, *places: str) -> str:
        """Where it was opened, by what is known of that, or who has it; empty if nothing is."""
        if place := next(filter(None, places), ""):
            return f", opened in {place}"
        holder = self._holders.get(fd, "")
        return f", held by {holder}" if holder else ""

    @cached_property
    def _holders(self) -> dict[int, str]:
        """By descriptor: who has the object that has it."""
        kinds: list[type[Any]] = [io.FileIO]
        for module, name in (("multiprocessing.connection", "_ConnectionBase"), ("selectors", "_BaseSelectorImpl")):
            if (found := getattr(sys.modules.get(module), name, None)) is not None:
                kinds.append(found)
        holders = {}
        with Tracked() as objects:
            files = [thing for thing in objects if issubclass(type(thing), tuple(kinds))]
            objects.clear()
            for file in files:
                with suppress(Exception):  # it is closed
                    fd = file.fileno()
                    holders[fd] = find_holder(file)
        return holders


def _ask(question: Callable[[], Any]) -> Any:
    """None where a socket of this kind, or this one now, has no answer."""
    try:
        return question()
    except OSError:
        return None


def _write_size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


def _write_address(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]} port {address[1]}"
    return os.fsdecode(address) if isinstance(address, bytes | str) and address else "no address"
