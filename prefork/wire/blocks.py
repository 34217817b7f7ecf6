"""Large buffers of calls and results, in memory that both ends of a channel map.

Each end has blocks of its own, in which it puts what it sends, and maps those of the other. A block is used again once
nobody looks at it any more: fresh memory costs many times what it takes to copy into memory that is mapped already (10
MB: 63 ms in fresh pages, 6 ms in used ones, on a busy virtual machine).

Who has received a buffer gets a view of the block itself, without another copy. A worker maps the blocks of its
supervisor privately: what it writes into an argument stays with it, and a call that is tried again finds its arguments
as they were.
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
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prefork.wire.memory_file import open_memory

CAN_SHARE = hasattr(os, "memfd_create")  # elsewhere memory has to be a file on a disk, or have a name
_MOST = 64  # blocks of one process that are kept to be used again
_IDLE_SECONDS = 5.0  # after which a block that nobody has used is given back
_POPULATE_READ = 22  # MADV_POPULATE_READ, linux/mman.h; since Linux 5.14
_SHARED = 1 << 61  # in an entry of /proc/self/pagemap: the page is a file's, or shared
_THERE = 3 << 62  # it is in memory, or swapped out


@dataclass(slots=True)
class _Probe:
    memory: object


_probe = _Probe(object())
_ALONE = sys.getrefcount(_probe.memory)  # references to what one attribute alone refers to, as sys counts them


class Placed(NamedTuple):
    """Where a buffer lies. theirs: in a block of whoever reads this, who has sent it before."""

    block: int
    size: int  # bytes of the block
    start: int
    length: int
    readonly: bool
    theirs: bool = False


Buffer = pickle.PickleBuffer | memoryview | bytes
Place = Placed | bytes  # bytes: there was no room for another block


@dataclass(slots=True, eq=False)
class Block:
    """holders: who needs it: a call that may be tried again, a process that looks at it. receivers: who has its
    descriptor."""

    number: int
    size: int
    fd: int
    memory: mmap.mmap
    holders: set[Hashable] = field(default_factory=set)
    receivers: set[Hashable] = field(default_factory=set)
    used: float = 0.0

    @property
    def is_seen(self) -> bool:
        """Whether something in this process looks at it: every view holds the mapping."""
        return sys.getrefcount(self.memory) > _ALONE


class Blocks:
    """Those of this process."""

    def __init__(self) -> None:
        self._all: dict[int, Block] = {}
        self._numbers = itertools.count()

    def put(self, buffer: Buffer, holder: Hashable) -> Place:
        """Copies it into a block that is free, or, if there is no more room for blocks, just copies it."""
        view = buffer.raw() if isinstance(buffer, pickle.PickleBuffer) else memoryview(buffer)
        block = self._take(view.nbytes) if CAN_SHARE else None
        if block is None:
            return bytes(view)
        _copy(block.memory, view)
        block.holders.add(holder)
        return Placed(block.number, block.size, 0, view.nbytes, view.readonly)

    def _take(self, size: int) -> Block | None:
        free = [block for block in self._all.values() if block.size >= size and not (block.holders or block.is_seen)]
        best = min(free, key=lambda block: block.size, default=None)
        if best is not None and best.size <= 2 * size:
            best.used = time.monotonic()
            return best
        if len(self._all) >= _MOST and not self._drop_one(free):
            return None
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = open_memory()
        try:
            os.truncate(fd, size)
            block = Block(next(self._numbers), size, fd, mmap.mmap(fd, size), used=time.monotonic())
        except OSError:  # no memory, or no more mappings: the buffer goes the ordinary way
            os.close(fd)
            return None
        self._all[block.number] = block
        return block

    def _drop_one(self, free: Sequence[Block]) -> bool:
        """Room for another: one that nobody uses goes, or one that has been given away for good."""
        for block in free or [block for block in self._all.values() if not block.holders]:
            self._drop(block)
            return True
        return False

    def _drop(self, block: Block) -> None:
        """Its memory goes with the last view of it."""
        del self._all[block.number]
        os.close(block.fd)

    def list_fresh(self, places: Sequence[Place], receiver: Hashable) -> tuple[list[tuple[int, int]], list[int]]:
        """The blocks of these that it has not seen, with their bytes, and descriptors of them to be sent and closed."""
        wanted = [self._all[p.block] for p in places if isinstance(p, Placed) and not p.theirs]
        fresh = [block for block in dict.fromkeys(wanted) if receiver not in block.receivers]
        for block in fresh:
            block.receivers.add(receiver)
        return [(block.number, block.size) for block in fresh], [os.dup(block.fd) for block in fresh]

    def hold(self, places: Sequence[Place], holder: Hashable) -> None:
        for place in places:
            if isinstance(place, Placed):
                self._all[place.block].holders.add(holder)

    def release(self, numbers: Iterable[int], holder: Hashable) -> None:
        for number in numbers:
            if (block := self._all.get(number)) is not None:
                block.holders.discard(holder)

    def forget(self, holder: Hashable) -> None:
        """It has gone."""
        for block in self._all.values():
            block.holders.discard(holder)
            block.receivers.discard(holder)

    def trim(self) -> list[int]:
        """Gives back what has not been used for a while; the numbers of those blocks."""
        before = time.monotonic() - _IDLE_SECONDS
        idle = [b for b in self._all.values() if b.used < before and not (b.holders or b.is_seen)]
        for block in idle:
            self._drop(block)
        return [block.number for block in idle]

    def view(self, placed: Placed) -> memoryview:
        """What the other end has handed back."""
        return _view(self._all[placed.block].memory, placed)

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
    """The blocks of the other end. private: what is written into them stays in this process."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self._all: dict[int, _Mapping] = {}
        self._lent: set[int] = set()  # blocks that something here may still look at

    def open(self, number: int, size: int, fd: int) -> None:
        """Maps a block that this end sees for the first time; closes the descriptor."""
        try:
            kind = mmap.MAP_PRIVATE if self._private else mmap.MAP_SHARED
            memory = mmap.mmap(fd, size, flags=kind, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):  # an older kernel: page by page, when they are read
            memory.madvise(_POPULATE_READ)
        self._all[number] = _Mapping(memory, _find_address(memory), size)

    def view(self, place: Place) -> memoryview | bytes:
        if isinstance(place, bytes):
            return place
        self._lent.add(place.block)
        return _view(self._all[place.block].memory, place)

    def locate(self, buffer: Buffer) -> Placed | None:
        """Where in these blocks a buffer lies that was made of what was received; None if it does not, or if what was
        received has been written to, or nobody can say."""
        if not self._lent:
            return None
        raw = buffer.raw() if isinstance(buffer, pickle.PickleBuffer) else memoryview(buffer)
        start, length = _find_address(raw), raw.nbytes
        for number in self._lent:
            mapping = self._all[number]
            if mapping.address <= start and start + length <= mapping.address + mapping.size:
                if _was_written(mapping):
                    return None
                return Placed(number, mapping.size, start - mapping.address, length, raw.readonly, theirs=True)
        return None

    def is_seen(self, number: int) -> bool:
        """Whether something in this process still looks at a block."""
        return sys.getrefcount(self._all[number].memory) > _ALONE

    def take_released(self) -> list[int]:
        """Blocks that nothing here looks at any more; what was written into them is forgotten."""
        released = [number for number in self._lent if not self.is_seen(number)]
        for number in released:
            mapping = self._all[number]
            if self._private and _was_written(mapping):
                mapping.memory.madvise(mmap.MADV_DONTNEED)
        self._lent.difference_update(released)
        return released

    def forget(self, numbers: Iterable[int]) -> None:
        """The other end has given them back."""
        for number in numbers:
            self._all.pop(number, None)
            self._lent.discard(number)


def _view(memory: mmap.mmap, placed: Placed) -> memoryview:
    view = memoryview(memory)[placed.start : placed.start + placed.length]
    return view.toreadonly() if placed.readonly else view


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
    """Whether a private mapping has pages of its own: proc_pid_pagemap(5). True where nobody can say."""
    first, count = mapping.address // mmap.PAGESIZE, mapping.size // mmap.PAGESIZE
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
