"""What an owner of weights in a device's memory exports of them, for other processes to open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of memory as 64-bit words in this machine's byte order, laid out in rows of 1,024: the sum modulo 2^64 of each
    row, mixed with the row's number and added up, and the same of the columns.

    Every change of a single word is seen, and every other that changes a row's or a column's sum, but for one in 2^64.
    Missed is what keeps them all (four words at the corners of a rectangle, plus and minus the same), and what is
    undone before anybody looks.
    """

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Export:
    """What another process needs to open an owner's memory. handle: CUDA's, or a path. device: for people."""

    kind: str
    handle: bytes
    size: int  # bytes
    checksum: Checksum  # of the file that was uploaded
    device: str
