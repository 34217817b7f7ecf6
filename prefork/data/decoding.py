"""What workers do: decode the recordings of a batch, and pad them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefork.engines.audio.whole import decode_raw, scale
from prefork.run.problems import Problem, attempt

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Decoded(NamedTuple):
    """seqs: (rows, samples) float32 at 16 kHz, zeros behind the end of each. seq_lens: (rows,) samples. errors: by the
    row's place in the batch; their rows are in neither."""

    seqs: NDArray[np.float32]
    seq_lens: NDArray[np.int64]
    errors: dict[int, str]


def decode_batch(content: NDArray[np.uint8], sizes: Sequence[int], paths: Sequence[str]) -> Decoded:
    """content: the bytes of all recordings, one after the other; sizes: of each; -1: it is null. paths: of the rows."""
    found: list[NDArray[Any]] = []
    errors: dict[int, str] = {}
    start = 0
    for place, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        if size < 0:
            errors[place] = f"{path} is null; leave the row out, or put its recording there"
            continue
        data = content[start : start + size].tobytes()
        start += size
        raw = attempt(path, partial(decode_raw, data, Path(path)))
        if isinstance(raw, Problem):
            errors[place] = raw.reason
        else:
            found.append(raw)
    return pad(found, errors)


def pad(found: Sequence[NDArray[Any]], errors: dict[int, str]) -> Decoded:
    """found: samples of the rows, int16 or float32."""
    lengths = np.array([len(raw) for raw in found], np.int64)
    seqs = _make_room(len(found), int(lengths.max(initial=0)))
    for row, raw in enumerate(found):
        scale(raw, seqs[row, : len(raw)])
        seqs[row, len(raw) :] = 0.0
    return Decoded(seqs, lengths, errors)


_room = np.zeros(0, np.float32)


def _make_room(rows: int, samples: int) -> NDArray[np.float32]:
    """The process's one array, as far as it is needed: what a call returns is sent before the next begins, and fresh
    memory costs more than what is written into it."""
    global _room  # noqa: PLW0603
    if len(_room) < rows * samples:
        _room = np.empty(rows * samples, np.float32)
    return _room[: rows * samples].reshape(rows, samples)
