"""Which of the tasks that wait is for which worker: what one has read, decoded or heard it need not do again."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prefork.pool.tasks import Task

_LOOKED_AT = 64  # tasks that wait, for one that is near
_MOST_JOBS = 8  # of which a worker may still know something


@dataclass(slots=True)
class Near:
    """What a worker may know something of. place: the part of a data set that it has read last. jobs: the ranks of
    those that it has had tasks of, the last ones."""

    place: str = ""
    jobs: deque[tuple[int, ...]] = field(default_factory=lambda: deque(maxlen=_MOST_JOBS))

    def note(self, task: Task) -> None:
        """It has been given this one."""
        if task.name == "call":
            return
        self.place = task.place or self.place
        for part in (part for part, _ in task.origins) if task.origins else (task,):
            if part.order and part.job not in self.jobs:
                self.jobs.append(part.job)


def put_near_first(tasks: Iterator[Task], here: Near, others: Sequence[Near]) -> Iterator[Task]:
    """First those of which a worker may know something already: of the part of a data set that it has read, or of a job
    that it has had tasks of, whose sound it has decoded and perhaps heard. Then those of which no other worker does; in
    their order otherwise. here: of the worker; others: of all others."""
    first = next(tasks, None)
    if first is None:
        return iter(())
    found = itertools.chain([first], tasks)
    if first.name == "call":
        return found
    if first.place:
        places = {other.place for other in others if other.place}
        return iter(sorted(found, key=lambda task: 0 if task.place == here.place else 1 + (task.place in places)))
    jobs = {job for other in others for job in other.jobs}

    def rate(task: Task) -> int:
        if task.is_last:
            return 3
        if task.attempts or task.alone or task.name == "call" or task.job in here.jobs:
            return 0
        return 1 + (task.job in jobs)

    return itertools.chain(sorted(itertools.islice(found, _LOOKED_AT), key=rate), found)
