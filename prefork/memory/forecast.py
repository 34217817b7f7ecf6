"""What a task will take: memory of a worker's own at its peak, beyond what it has, from what earlier tasks took.

    taken + FLOOR = (base + slope * size) * factor

`size` is what an engine says of a segment, in bytes: proportional to its seconds, with the slope that the model's
configuration suggests (`Engine.estimate_memory`). Base and slope are fitted by least squares of the relative error;
the factor is an upper quantile of what was measured over what the line says, raised while there are few measurements.
Before there are any, the line is what the configuration says, and two points of it with little weight stay in the
fit: where nothing has been measured, it is still they that count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prefork.platform_matrix.cache import Cache

QUANTILE = 0.9  # of the tasks stay below what is predicted; more would be a tenth above what most take
BASE = 60_000_000  # bytes that a task takes beside what its model does with the segment: 10 to 30 MB were measured
FLOOR = 10_000_000  # bytes added to all that is compared: what is far less does not matter, however wrong it is
_PRIOR_WEIGHT = 0.05  # of a measurement, for each of the two points that stand for the configuration
_CAUTION = 0.25  # more than the line says after one measurement, less by the root of how many there are
_KEPT = 32  # measurements of one size, the newest ones
_STEPS = 2  # sizes to a doubling
_MOST = 1 << 50  # bytes; more than any machine has
_VERSION = 1
_MOST_SERIES = 50  # models, dtypes, thread counts ... of one command that are remembered


@dataclass(frozen=True, slots=True)
class FittedLine:
    """base, slope: of the line through the middle of what was measured, FLOOR added; factor: up from there to the upper
    quantile."""

    base: float  # bytes
    slope: float  # bytes for each byte that the configuration suggests
    factor: float

    def predict(self, size: float) -> int:
        """Bytes."""
        return max(0, math.ceil((self.base + self.slope * size) * self.factor - FLOOR))


class Series:
    """What tasks took, of one engine, model, dtype, device, strategy and number of threads; and what follows from them.

    >>> series = Series()
    >>> for size in range(1, 21):
    ...     series.add(size * 1e6, 20_000_000 + size * 2_000_000)
    >>> round(series.predict(10e6) / 1e6)
    43
    """

    def __init__(self, points: Iterable[tuple[float, int]] = ()) -> None:
        self._points: dict[int, deque[tuple[float, int]]] = {}
        self._line: FittedLine | None = None
        for size, taken in points:
            self.add(size, taken)

    def add(self, size: float, taken: int) -> None:
        """size: bytes that the configuration suggests. taken: bytes that were measured."""
        size = _bound(size)
        self._points.setdefault(_find_step(size), deque(maxlen=_KEPT)).append((size, min(max(1, taken), _MOST)))
        self._line = None

    def predict(self, size: float) -> int:
        """Bytes that a task will take."""
        if self._line is None:
            self._line = fit(self.points)
        return self._line.predict(_bound(size))

    @property
    def points(self) -> list[tuple[float, int]]:
        """Sizes and what was taken, the newest of each size."""
        return [point for step in sorted(self._points) for point in self._points[step]]

    @property
    def typical(self) -> int | None:
        """Bytes that most tasks stay below; None if nothing is known."""
        all_taken = sorted(taken for _, taken in self.points)
        return find_quantile(all_taken, QUANTILE) if all_taken else None


def fit(points: list[tuple[float, int]]) -> FittedLine:
    """The line through the measurements, with the configuration's as what is known beforehand.

    Weighted least squares of the relative error, by the normal equations; neither base nor slope is negative, and with
    FLOOR added the base is at least that.
    """
    count = len(points)
    if not count:
        return FittedLine(BASE + FLOOR, 1.0, 1.0)
    far = 2 * max(size for size, _ in points) or BASE
    measured = [(size, taken + FLOOR) for size, taken in points]
    prior = [(0.0, BASE + FLOOR), (far, BASE + far + FLOOR)]
    weighted = [(1.0, *point) for point in measured] + [(_PRIOR_WEIGHT, *point) for point in prior]
    w, wx, wy, wxx, wxy = (
        math.fsum(weight / taken**2 * size**i * taken**j for weight, size, taken in weighted)
        for i, j in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1))
    )
    slope = (w * wxy - wx * wy) / (w * wxx - wx**2)
    middle = (wy - slope * wx) / w
    if slope < 0:
        middle, slope = wy / w, 0.0
    elif middle < FLOOR:
        middle, slope = float(FLOOR), (wxy - FLOOR * wx) / wxx
    ratios = sorted(taken / (middle + slope * size) for size, taken in measured)
    return FittedLine(middle, slope, max(1.0, find_quantile(ratios, QUANTILE)) + _CAUTION / math.sqrt(count))


def find_quantile(ordered: list[Any], share: float) -> Any:
    """The smallest value that at least this share of all are not above.

    >>> find_quantile([1, 2, 3, 4], 0.5)
    2
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _bound(size: float) -> float:
    """What an engine says, whatever it is, as bytes that a fit can be made with."""
    return float(min(size, _MOST)) if size >= 1 else 0.0


def _find_step(size: float) -> int:
    return round(_STEPS * math.log2(size)) if size >= 1 else 0


class History:
    """What earlier runs of a command with an engine have measured, in one file of the user's cache folder."""

    def __init__(self, command: str, engine: str) -> None:
        self._cache = Cache(f"memory/{command}-{engine}.json", _MOST_SERIES)

    def load(self, name: str) -> Series:
        """The measurements of one kind of task; none if there are none of this version, or they make no sense.

        name: what tells it from others.
        """
        match self._cache.load(name):
            case {"version": version, "points": list() as points} if version == _VERSION:
                return Series(_read_points(points))
        return Series()

    def store(self, name: str, series: Series) -> None:
        """Keeps them for the next run."""
        if series.points:
            points = [[round(size), taken] for size, taken in series.points]
            self._cache.store(name, {"version": _VERSION, "points": points})


def _read_points(points: list[Any]) -> list[tuple[float, int]]:
    """Those of them that make sense."""
    found = []
    for point in points:
        match point:
            case [bool(), _] | [_, bool()]:
                continue
            case [int() | float() as size, int() as taken] if 0 <= size <= _MOST and 0 < taken <= _MOST:
                found.append((float(size), taken))
    return found
