"""Results as bytes: two of them are the same if and only if their bytes are."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_REMEDY = "return tensors, arrays, numbers, text, or lists and mappings of them"


class NotComparable(Exception):
    """A result holds something of which nobody knows whether it is the same in two processes. Says what, in a line."""


def encode(result: Any) -> bytes:
    """SHA-256 of a result: tensors, arrays, numbers, text, bytes, None, and lists, tuples, sets, mappings and
    dataclasses of these. Raises NotComparable for anything else, and for what fails when it is looked at."""
    digest = hashlib.sha256()
    try:
        for part in _parts(result):
            digest.update(struct.pack("!Q", len(part)))
            digest.update(part)
    except NotComparable:
        raise
    except RecursionError as error:
        raise NotComparable(
            f"a result that holds itself, or is nested too deeply, cannot be compared; {_REMEDY}"
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise NotComparable(f"a result cannot be compared ({reason}); {_REMEDY}") from error
    return digest.digest()


def _parts(thing: Any) -> Iterator[bytes]:
    torch, np = sys.modules.get("torch"), sys.modules.get("numpy")  # what nobody has imported, nothing is a kind of
    if torch is not None and isinstance(thing, torch.Tensor):
        yield from _parts_of_tensor(thing.detach())
    elif np is not None and isinstance(thing, np.ndarray | np.generic) and thing.dtype.hasobject:
        raise NotComparable(f"an array that holds Python objects cannot be compared; {_REMEDY}")
    elif np is not None and isinstance(thing, np.ndarray):
        yield f"array {thing.dtype.str} {thing.shape}".encode()
        yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, str | bytes | int | float | complex | None) or (np and isinstance(thing, np.generic)):
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
        raise NotComparable(f"a result of type {type(thing).__qualname__} cannot be compared; {_REMEDY}")


def _parts_of_tensor(tensor: torch.Tensor) -> Iterator[bytes]:
    import torch

    if tensor.is_meta:
        raise NotComparable("a tensor on the meta device cannot be compared: it has no data; return one on the CPU")
    if tensor.is_quantized:  # its bytes say nothing without its scale
        raise NotComparable("a quantized tensor cannot be compared; return its dequantize()")
    if tensor.is_conj() or tensor.is_neg():
        raise NotComparable(
            "a conjugate or negative view cannot be compared; return its resolve_conj() and resolve_neg()"
        )
    yield f"tensor {tensor.dtype} {tuple(tensor.shape)}".encode()
    dense = (tensor.to_dense() if tensor.layout is not torch.strided else tensor).cpu().contiguous()
    yield dense.view(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""
