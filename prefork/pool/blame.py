"""Blame: which segment a model server fails at, found by halving the batches that it failed with. Pure.

A batch that fails is tried once more as it is: it may not have been to blame. If it fails again it is cut in two, and
so is what fails of it, until there is one segment left; that one is guilty. A batch that did not fit into memory is cut
in two at once. A server that somebody killed from outside says nothing about its batch, unless that goes on; a device
that has failed says nothing at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum

from prefork.wire.messages import Group, Request

_MOST_KILLS = 5  # of the server during one batch, from outside: after that it counts against the batch


class Cause(Enum):
    """What a batch failed of."""

    ERROR = "error"
    MEMORY = "memory"
    KILL = "kill"  # from outside
    DEVICE = "device"  # the hardware's own fault


class Blame:
    """>>> blame = Blame()
    >>> batch = ((0, 1), (0, 2), (1, 1))
    >>> blame.lose(batch, Cause.ERROR)      # nobody yet: it is tried once more
    >>> blame.groups
    [((0, 1), (0, 2), (1, 1))]
    >>> blame.lose(batch, Cause.ERROR)
    >>> blame.groups
    [((0, 1), (0, 2)), ((1, 1),)]
    >>> blame.lose(((1, 1),), Cause.ERROR)
    (1, 1)
    """

    def __init__(self) -> None:
        self._failures: dict[Group, int] = {}  # of batches that are to be run again, just as they are
        self._kills: Counter[Group] = Counter()

    @property
    def groups(self) -> list[Group]:
        """Batches that are to be run again, as they are and before all others, in this order."""
        return list(self._failures)

    def lose(self, batch: Iterable[Request], cause: Cause) -> Request | None:
        """A batch has failed; the request that is guilty, if that is known now."""
        group = tuple(batch)
        if not group:
            return None
        failures = self._failures.pop(group, 0)
        if cause is Cause.DEVICE:
            self._failures[group] = failures
            return None
        if cause is Cause.KILL and self._kills[group] < _MOST_KILLS:
            self._kills[group] += 1
            self._failures[group] = failures
            return None
        if len(group) == 1 and failures:
            return group[0]
        half = len(group) // 2
        cut = len(group) > 1 and (failures or cause is Cause.MEMORY)
        for part in (group[:half], group[half:]) if cut else (group,):
            self._failures[part] = failures + 1
        return None

    def clear(self, batch: Iterable[Request]) -> None:
        """A batch has been done."""
        group = tuple(batch)
        self._failures.pop(group, None)
        self._kills.pop(group, None)

    def knows(self, batch: Iterable[Request]) -> bool:
        """Whether it is one that has failed before, or part of one."""
        return tuple(batch) in self._failures

    def forget(self, worker: int) -> None:
        """A worker is gone, and nobody wants its requests."""
        self._keep(lambda request: request[0] != worker)

    def discard(self, requests: Iterable[Request]) -> None:
        """Nobody waits for these any more."""
        gone = set(requests)
        self._keep(lambda request: request not in gone)

    def _keep(self, is_wanted: Callable[[Request], bool]) -> None:
        failures: dict[Group, int] = {}
        kills: Counter[Group] = Counter()
        for group, count in self._failures.items():
            if rest := tuple(filter(is_wanted, group)):
                failures[rest] = max(count, failures.get(rest, 0))
                kills[rest] = max(self._kills[group], kills[rest])
        self._failures, self._kills = failures, kills
