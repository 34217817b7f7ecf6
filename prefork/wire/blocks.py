"""Large buffers of calls and results, in memory that both ends of a channel map.

Each end has blocks of its own, in which it puts what it sends, and maps those of the other. A block is used again once
nobody looks at it any more: fresh memory costs many times what it takes to copy into memory that is mapped already (10
MB: 63 ms in fresh pages, 6 ms in used ones, on a busy virtual machine).

Who has received a buffer gets a view of the block itself, without another copy. Blocks are mapped privately: what a
process writes into what it has received stays with it. A block is used again once every buffer that was sent in it has
been returned; one that somebody looked at when a process forked is never used again, because the child may still look.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import pickle
import sys
import time
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.memory_file import open_memory

LARGE = 1 << 16  # bytes from which a buffer is placed in a block; below, it costs less to copy it
MOST_BLOCKS = 64  # of one process
IDLE_SECONDS = 5.0  # after which a block that nobody has used is given back
_POPULATE_READ = 22  # MADV_POPULATE_READ, linux/mman.h; since Linux 5.14


@dataclass(slots=True)
class _Probe:
    memory: object


_probe = _Probe(object())
_ALONE = sys.getrefcount(_probe.memory)  # references to what one attribute alone refers to, as sys counts them
_HERE = "here"  # a holder: this process looks at what was handed back to it


class Placed(NamedTuple):
    """Where a buffer lies. theirs: in a block of whoever reads this, who has sent it before."""

    block: int
    size: int  # bytes of the block
    start: int
    length: int
    theirs: bool = False


Buffer = pickle.PickleBuffer | memoryview | bytes | bytearray
Place = Placed | bytearray  # bytearray: small, or there was no room for another block


@dataclass(slots=True, eq=False)
class Block:
    """holders: how many of its buffers somebody needs: a call that may be tried again, a process that was sent them.
    receivers: who has its descriptor. spoiled: it must not be used again."""

    number: int
    size: int
    fd: int
    memory: mmap.mmap
    holders: Counter[Hashable] = field(default_factory=Counter)
    receivers: set[Hashable] = field(default_factory=set)
    used: float = 0.0
    spoiled: bool = False

    def let_go(self, holder: Hashable, count: int) -> None:
        self.holders[holder] -= count
        if self.holders[holder] <= 0:
            del self.holders[holder]


class Blocks:
    """Those of this process. most: that there may be at a time; each takes three descriptors."""

    def __init__(self, most: int = MOST_BLOCKS) -> None:
        self._all: dict[int, Block] = {}
        self._most = most
        self._numbers = itertools.count()
        self._seen = Mapped()  # those of them that were handed back
        self._gone: dict[Hashable, list[int]] = {}  # by receiver: those that are no more, which it does not know yet

    def put(self, buffer: Buffer, holder: Hashable) -> Place:
        """Copies it into a block that is free, or, if it is small or there is no more room for blocks, just copies
        it."""
        view = buffer.raw() if isinstance(buffer, pickle.PickleBuffer) else memoryview(buffer)
        block = self._take(view.nbytes) if SYSTEM.has_nameless_files and view.nbytes >= LARGE else None
        if block is None:
            return bytearray(view)
        _copy(block.memory, view)
        block.holders[holder] += 1
        return Placed(block.number, block.size, 0, view.nbytes)

    def _take(self, size: int) -> Block | None:
        self._release_seen()
        free = [block for block in self._all.values() if block.size >= size and not block.holders]
        best = min(free, key=lambda block: block.size, default=None)
        if best is not None and best.size <= 2 * size:
            best.used = time.monotonic()
            return best
        if len(self._all) >= self._most and not self._drop_one():
            return None
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = -1
        try:
            fd = open_memory()
            os.truncate(fd, size)
            block = Block(next(self._numbers), size, fd, mmap.mmap(fd, size), used=time.monotonic())
        except OSError:  # no memory, no more files, no more mappings: the buffer goes the ordinary way
            if fd != -1:
                os.close(fd)
            return None
        self._all[block.number] = block
        return block

    def _drop_one(self) -> bool:
        """Room for another, if there is one that nobody needs."""
        free = next((block for block in self._all.values() if not block.holders), None)
        if free is not None:
            self._drop(free)
        return free is not None

    def _drop(self, block: Block) -> None:
        del self._all[block.number]
        for receiver in block.receivers:
            self._gone.setdefault(receiver, []).append(block.number)
        self._seen.forget([block.number])
        os.close(block.fd)

    def take_gone(self, receiver: Hashable) -> list[int]:
        """Blocks that are no more, and that it is to be told of."""
        return self._gone.pop(receiver, [])

    def list_fresh(self, places: Sequence[Place], receiver: Hashable) -> tuple[list[tuple[int, int]], list[int]]:
        """The blocks of these that it has not seen, with their bytes, and descriptors of them to be sent and closed."""
        wanted = [self._all[p.block] for p in places if isinstance(p, Placed) and not p.theirs]
        fresh = [block for block in dict.fromkeys(wanted) if receiver not in block.receivers]
        for block in fresh:
            block.receivers.add(receiver)
        return [(block.number, block.size) for block in fresh], [os.dup(block.fd) for block in fresh]

    def hold(self, places: Sequence[Place], holder: Hashable) -> None:
        """They are sent to it."""
        for place in places:
            if isinstance(place, Placed):
                self._all[place.block].holders[holder] += 1

    def release(self, returned: Iterable[tuple[int, int]], holder: Hashable) -> None:
        """returned: blocks, and how many of their buffers it needs no more; -1: none, and nobody may use it again."""
        for number, count in returned:
            block = self._all.get(number)
            if block is None:
                continue
            block.spoiled = block.spoiled or count < 0
            block.let_go(holder, count if count >= 0 else block.holders[holder])
            if block.spoiled and not block.holders:
                self._drop(block)

    def let_go(self, places: Sequence[Place], holder: Hashable) -> None:
        """It needs them no more."""
        self.release([(place.block, 1) for place in places if isinstance(place, Placed)], holder)

    def _release_seen(self) -> None:
        self.release(self._seen.take_released(), _HERE)

    def forget(self, holder: Hashable) -> None:
        """It has gone."""
        self._gone.pop(holder, None)
        for block in list(self._all.values()):
            block.receivers.discard(holder)
            self.release([(block.number, block.holders[holder])], holder)

    def trim(self) -> None:
        """Gives back what has not been used for a while."""
        self._release_seen()
        before = time.monotonic() - IDLE_SECONDS
        for block in [block for block in self._all.values() if block.used < before and not block.holders]:
            self._drop(block)

    def view(self, placed: Placed) -> memoryview | bytearray:
        """What the other end has handed back."""
        block = self._all[placed.block]
        if block.number not in self._seen:
            self._seen.open(block.number, block.size, os.dup(block.fd))
        block.holders[_HERE] += 1
        block.used = time.monotonic()
        return self._seen.view(placed)

    def __contains__(self, number: int) -> bool:
        return number in self._all

    def close(self) -> None:
        for block in list(self._all.values()):
            self._drop(block)


@dataclass(slots=True)
class _Mapping:
    memory: mmap.mmap
    address: int
    size: int


class Mapped:
    """Blocks that this process reads, each mapped privately."""

    def __init__(self) -> None:
        self._all: dict[int, _Mapping] = {}
        self._lent: dict[int, int] = {}  # blocks that something here may still look at: buffers received since
        self._forked = False
        _everything_mapped.add(self)

    def open(self, number: int, size: int, fd: int) -> None:
        """Maps a block that this end sees for the first time; closes the descriptor."""
        try:
            memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):  # an older kernel: page by page, when they are read
            memory.madvise(_POPULATE_READ)
        self._all[number] = _Mapping(memory, _find_address(memory), size)

    def view(self, place: Place) -> memoryview | bytearray:
        if isinstance(place, bytearray):
            return place
        self._lent[place.block] = self._lent.get(place.block, 0) + 1
        return self.peek(place)

    def peek(self, place: Placed) -> memoryview:
        """The same, of a buffer that was received before."""
        return memoryview(self._all[place.block].memory)[place.start : place.start + place.length]

    def locate(self, buffer: Buffer) -> Placed | None:
        """Where in these blocks a buffer lies that was made of what was received; None if it does not, if it takes
        less than half of its block, which it would keep, or if what was received has been written to, or nobody can
        say."""
        if not self._lent:
            return None
        raw = buffer.raw() if isinstance(buffer, pickle.PickleBuffer) else memoryview(buffer)
        start, length = _find_address(raw), raw.nbytes
        for number in self._lent:
            mapping = self._all[number]
            if mapping.address <= start and start + length <= mapping.address + mapping.size <= start + 2 * length:
                if _was_written(mapping):
                    return None
                return Placed(number, mapping.size, start - mapping.address, length, theirs=True)
        return None

    def is_seen(self, number: int) -> bool:
        """Whether something in this process still looks at a block: every view holds the mapping."""
        return sys.getrefcount(self._all[number].memory) > _ALONE

    def take_released(self) -> list[tuple[int, int]]:
        """Blocks that nothing here looks at any more, as `Blocks.release` takes them; what was written into them is
        forgotten."""
        if not self._lent:
            return []
        if self._forked:
            self._forked = False
            abandoned = list(self._lent)
            self.forget(abandoned)
            return [(number, -1) for number in abandoned]
        released = [number for number in self._lent if not self.is_seen(number)]
        for number in released:
            mapping = self._all[number]
            if _was_written(mapping):
                mapping.memory.madvise(mmap.MADV_DONTNEED)
        return [(number, self._lent.pop(number)) for number in released]

    def forget(self, numbers: Iterable[int]) -> None:
        """The other end has given them back. Views of them stay as they are."""
        for number in numbers:
            self._all.pop(number, None)
            self._lent.pop(number, None)

    def abandon(self) -> None:
        """This process is about to fork: the child will look at what this one looks at now, and tell nobody."""
        self._forked = bool(self._lent)

    def __contains__(self, number: int) -> bool:
        return number in self._all

    def __bool__(self) -> bool:
        return bool(self._all)


_everything_mapped: weakref.WeakSet[Mapped] = weakref.WeakSet()


def _abandon_all() -> None:
    for mapped in list(_everything_mapped):
        mapped.abandon()


SYSTEM.run_at_fork(before=_abandon_all)


def _copy(memory: mmap.mmap, view: memoryview) -> None:
    """Lets other threads run while it copies, if numpy is there; who has large arrays has it."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        memory[: view.nbytes] = view
    else:
        numpy.copyto(numpy.frombuffer(memory, numpy.uint8, view.nbytes), numpy.frombuffer(view, numpy.uint8))


class _Buffer(ctypes.Structure):
    """Py_buffer, as far as its address."""

    _fields_ = (("buf", ctypes.c_void_p), ("rest", ctypes.c_byte * 256))


def _find_address(thing: object) -> int:
    """Of the memory of something that has the buffer protocol, read-only ones too."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(thing), ctypes.byref(buffer), 0)
    address = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return int(address or 0)


def _was_written(mapping: _Mapping) -> bool:
    """Whether a private mapping has pages of its own. True where nobody can say."""
    return SYSTEM.was_written(mapping.address, mapping.size)
