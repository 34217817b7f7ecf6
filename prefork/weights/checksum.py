"""A checksum of weights that a GPU computes at the speed of its memory, and a process without torch too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefork.wire.exports import Checksum

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_ROW = 1024  # words
ROW_BYTES = 8 * _ROW


def measure(memory: torch.Tensor) -> Checksum:
    """memory: (bytes,) uint8 on any device, a multiple of 8. Reads it twice, and takes a thousandth of it for sums."""
    import torch

    words = memory.view(torch.int64)
    whole = words.numel() // _ROW * _ROW
    table, rest = words[:whole].view(-1, _ROW), words[whole:]
    rows, columns = table.sum(1), table.sum(0)
    if rest.numel():
        rows = torch.cat([rows, rest.sum().view(1)])
        columns[: rest.numel()] += rest
    sums = [_mix(sums, torch.arange(sums.numel(), device=sums.device)).sum() for sums in (rows, columns)]
    return Checksum(*torch.stack(sums).tolist())  # the only thing that waits for the device


class Summer:
    """`measure` for a process without torch, a chunk at a time."""

    def __init__(self, size: int) -> None:
        """size: bytes of all chunks together. Raises ValueError unless they are words."""
        import numpy as np

        if size % 8 != 0:
            raise ValueError(f"{size} bytes are not whole words of 8")
        self._rows: list[NDArray[np.int64]] = []
        self._columns = np.zeros(_ROW, np.int64)

    def add(self, chunk: NDArray[np.uint8]) -> None:
        """chunk: whole rows, the last one excepted."""
        import numpy as np

        words = chunk.view(np.int64)
        whole = words.size // _ROW * _ROW
        table, rest = words[:whole].reshape(-1, _ROW), words[whole:]
        self._rows.append(table.sum(1))
        self._columns += table.sum(0)
        if rest.size:
            self._rows.append(rest.sum(keepdims=True))
            self._columns[: rest.size] += rest

    def sum(self) -> Checksum:
        import numpy as np

        rows = np.concatenate(self._rows)
        return Checksum(*(int(_mix(sums, np.arange(sums.size)).sum()) for sums in (rows, self._columns)))


def _mix(sums: Any, places: Any) -> Any:
    """SplitMix64's output function (Steele, Lea and Flood 2014) of each sum and its place, one to one.

    sums, places: (n,) int64, of numpy or torch; products wrap. A plain weighted sum would lose high bits: two flipped
    signs of float32 numbers, times odd weights, add up to nothing.
    """
    mixed = sums + (places + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return mixed ^ (mixed >> 31 & 0x1FFFFFFFF)
