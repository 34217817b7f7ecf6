"""What a run asks of a supervisor, for all machines together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefork.engines.base import LoadError
from prefork.memory.tally import Tally
from prefork.pool.status import WorkerStatus

if TYPE_CHECKING:
    from prefork.cluster.driver import Cluster
    from prefork.cluster.messages import MachineReport


@dataclass(frozen=True, slots=True)
class Workers:
    """How many there are, on all machines."""

    workers: int


@dataclass(frozen=True, slots=True)
class Governor:
    """What the machines' governors have counted."""

    tally: Tally


class Control:
    """Of single workers, of one plan and of one inventory it knows nothing: each machine has its own. reports: of the
    machines, once they have ended."""

    plan = None
    inventory = None
    exhausted = ""

    def __init__(self, cluster: Cluster, reports: Sequence[MachineReport]) -> None:
        self.loaded = threading.Event()
        self.failure: BaseException | None = None
        self._cluster = cluster
        self._reports = reports

    @property
    def governor(self) -> Governor:
        tally = Tally()
        for report in self._reports:
            tally = tally.merge(report.tally)
        return Governor(tally)

    @property
    def steps(self) -> Counter[tuple[str, str]]:
        steps: Counter[tuple[str, str]] = Counter()
        for report in self._reports:
            steps.update(report.steps)
        return steps

    @property
    def deaths(self) -> int:
        return sum(report.deaths for report in self._reports)

    def status(self) -> Sequence[WorkerStatus]:
        return ()

    def drain(self, seconds: float) -> None:
        self._cluster.drain(seconds)

    def give_up(self, error: LoadError) -> None:
        self._cluster.give_up(error)
