"""How much of a batch a device has memory for: what the engine estimates, corrected by what batches took. Pure.

The same fit as for tasks (`prefork.memory.forecast`). Sizes are what the engine estimates for one segment, times what a
batch has of them once padded.
"""

from __future__ import annotations

from collections.abc import Iterable

from prefork.memory.forecast import Series

_MOST_GROWTH = 2.0  # of the largest batch that was measured, or else of what the estimate allows
_CHANGE = 0.1  # of the size of batches: less is not worth sorting anew what waits


class BatchRoom:
    """num_elements: that a batch may have, padded.

    >>> room = BatchRoom(bytes_per_element=100.0, memory=10_000_000_000)
    >>> room.num_elements // 1_000_000
    99
    >>> room.add(90_000_000, taken=1_000_000_000)  # a ninth of what was thought
    True
    >>> room.num_elements // 1_000_000  # no more than twice as many as were ever tried
    180
    """

    def __init__(self, bytes_per_element: float, memory: int, points: Iterable[tuple[float, int]] = ()) -> None:
        """bytes_per_element: as the engine estimates it. memory: bytes for batches. points: sizes, and bytes that were
        taken, of earlier runs."""
        self._rate = max(bytes_per_element, 1e-3)
        self._memory = memory
        self._series = Series(points)
        self._estimated = self._find_size(Series())
        self.num_elements = self._count()

    def add(self, num_elements: int, taken: int) -> bool:
        """A batch of so many elements took so many bytes. Whether that changes how many there may be."""
        self._series.add(num_elements * self._rate, taken)
        count = self._count()
        if abs(count - self.num_elements) <= _CHANGE * self.num_elements:
            return False
        self.num_elements = count
        return True

    @property
    def most_taken(self) -> int:
        """Bytes, of all batches; 0 before there were any."""
        return max((taken for _, taken in self._series.points), default=0)

    def measure(self, num_elements: int) -> float:
        """Bytes that the engine estimates for so many."""
        return num_elements * self._rate

    def _count(self) -> int:
        largest = max((size for size, _ in self._series.points), default=self._estimated / _MOST_GROWTH)
        size = min(self._find_size(self._series), max(self._estimated, largest * _MOST_GROWTH))
        return max(1, int(size / self._rate))

    def _find_size(self, series: Series) -> float:
        """The largest that is predicted to fit, by halving."""
        low, high = 0.0, float(1 << 50)
        while high - low > max(1.0, low * 1e-3):
            middle = (low + high) / 2
            low, high = (middle, high) if series.predict(middle) <= self._memory else (low, middle)
        return low
