"""Results as bytes: two of them are the same if and only if their bytes are."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch


class NotComparable(Exception):
    """A result holds something of which nobody knows whether it is the same in two processes."""


def encode(result: Any) -> bytes:
    """SHA-256 of a result: tensors, arrays, numbers, text, bytes, None, and lists, tuples, sets, mappings and
    dataclasses of these. Raises NotComparable for anything else."""
    digest = hashlib.sha256()
    for part in _parts(result):
        digest.update(struct.pack("!Q", len(part)))
        digest.update(part)
    return digest.digest()


def _parts(thing: Any) -> Iterator[bytes]:
    if isinstance(thing, torch.Tensor):
        yield from _parts_of_tensor(thing.detach())
    elif isinstance(thing, np.ndarray) and thing.dtype != object:
        yield f"array {thing.dtype.str} {thing.shape}".encode()
        yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, str | bytes | int | float | complex | None | np.generic):
        yield f"{type(thing).__name__} {thing!r}".encode(errors="surrogatepass")
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = dataclasses.fields(thing)
        yield from _parts({field.name: getattr(thing, field.name) for field in fields})
    elif isinstance(thing, Mapping):
        yield f"mapping {len(thing)}".encode()
        for key, value in sorted(thing.items(), key=lambda item: encode(item[0])):
            yield from _parts(key)
            yield from _parts(value)
    elif isinstance(thing, Set):
        yield f"set {len(thing)}".encode()
        yield from sorted(encode(member) for member in thing)
    elif isinstance(thing, Sequence):
        yield f"sequence {len(thing)}".encode()
        for member in thing:
            yield from _parts(member)
    else:
        raise NotComparable(
            f"a result of type {type(thing).__qualname__} cannot be compared; "
            "return tensors, arrays, numbers, text, or lists and mappings of them"
        )


def _parts_of_tensor(tensor: torch.Tensor) -> Iterator[bytes]:
    yield f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode()
    dense = (tensor.to_dense() if tensor.layout is not torch.strided else tensor).cpu().contiguous()
    yield dense.view(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""
