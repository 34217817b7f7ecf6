"""Calls of functions, between the supervisor and a worker.

A worker is given several at once, as long as they take next to no time, and begins each but the first of them by
reading its number from a pipe. The supervisor reads from the same pipe to take back what has not begun: each number is
read by one of them. The messages are tuples, because there may be thousands a second.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.blocks import Place
from prefork.wire.channel import mark_frequent

CAN_TAKE_BACK = SYSTEM.passes_descriptors  # elsewhere a worker is given one call at a time
MOST_YIELDED = 16  # things that a call has yielded and nobody has taken yet: then it waits
TOKEN = struct.Struct("=Q")  # the number of a call that may be begun


class OpenTokens(NamedTuple):
    """Descriptor: the pipe. blocks: that the worker may have at a time."""

    blocks: int


@mark_frequent
class RunCalls(NamedTuple):
    """To be run in their order.

    first: the number of the first one; the others follow. calls: the pickle of each, and where its large buffers lie.
    at_once: the worker has nothing else to do, and begins the first without having read its number. fresh: blocks that
    the worker has not seen, with their bytes; their descriptors come with the message. returned: blocks of the
    worker's, and how many of the buffers there that it has sent nobody looks at any more; -1 if it must not use the
    block again. dropped: blocks of the supervisor's that are no more. Without calls, it asks for what is not needed.
    """

    first: int
    calls: Sequence[tuple[bytes, Sequence[Place]]]
    at_once: bool = False
    fresh: Sequence[tuple[int, int]] = ()
    returned: Sequence[tuple[int, int]] = ()
    dropped: Sequence[int] = ()


@mark_frequent
class CallDone(NamedTuple):
    """data: what it has returned, pickled. places: where its large buffers lie. The rest as for RunCalls, from the
    worker's side: what is handed back and what is returned of it come in one message."""

    number: int
    data: bytes
    places: Sequence[Place] = ()
    fresh: Sequence[tuple[int, int]] = ()
    returned: Sequence[tuple[int, int]] = ()
    dropped: Sequence[int] = ()


@mark_frequent
class CallGave(NamedTuple):
    """Something that a call has yielded, or reported, while it runs."""

    number: int
    data: bytes
    yielded: bool
    places: Sequence[Place] = ()
    fresh: Sequence[tuple[int, int]] = ()
    returned: Sequence[tuple[int, int]] = ()
    dropped: Sequence[int] = ()


class ContinueCall(NamedTuple):
    """So many of the things that a call has yielded have been taken."""

    number: int
    taken: int


class CallFailed(NamedTuple):
    """error: as `pickle_error` makes it."""

    number: int
    error: bytes


class CallOutOfMemory(NamedTuple):
    number: int
    reason: str


@mark_frequent
class BlocksReleased(NamedTuple):
    """As in CallDone."""

    returned: Sequence[tuple[int, int]] = ()
    dropped: Sequence[int] = ()
