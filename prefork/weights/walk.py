"""The walk through a model: every tensor that can be reached from it, and the memory that they look into."""

from __future__ import annotations

import gc
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

_PACKED = re.compile(r"\.classes\.(quantized|rnn|mkldnn|xnnpack|sparse)\.")  # C++ objects that keep weights


# What is never walked through in search of tensors: it leads to the whole interpreter, not to the model.
_OPAQUE = (
    types.ModuleType,
    type,
    types.FrameType,
    types.CodeType,
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
)
_LEAVES = frozenset((type(None), bool, str, bytes, int, float))  # the most frequent ones, known without a look at bases


@dataclass(slots=True)
class SharedStorage:
    """A storage outside the arena, with all the tensors that look into it: tied weights, slices, views."""

    owner: str
    names: list[str] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    low: int = 0  # bytes, the part of the storage that the tensors use
    high: int = 0

    @property
    def name(self) -> str:
        return self.names[0]

    def read(self) -> torch.Tensor:
        """(bytes,) uint8, the part that is used; not a copy."""
        size = self.high - self.low
        return torch.empty(0, dtype=torch.uint8).set_(self.tensors[0].untyped_storage(), self.low, (size,), (1,))


NamedTensors = Sequence[tuple[str, torch.Tensor]]


def walk_all(models: Mapping[str, Any]) -> dict[str, NamedTensors]:
    """What `walk` finds in each. It takes 35 ms for 1,600 tensors in 1,000 modules."""
    return {owner: list(walk(model)) for owner, model in models.items()}


def collect(named: Mapping[str, NamedTensors]) -> list[SharedStorage]:
    """Every storage that the tensors of some models look into, once."""
    return join(group(owner, tensors) for owner, tensors in named.items())


def join(storages: Iterable[Iterable[SharedStorage]]) -> list[SharedStorage]:
    joined = list({id(storage): storage for storage in _merge(list(chain.from_iterable(storages)))}.values())
    for storage in joined:
        storage.tensors = list({id(tensor): tensor for tensor in storage.tensors}.values())
        # several dtypes may look into one: it begins where the widest has a whole element
        storage.low -= storage.low % max(tensor.element_size() for tensor in storage.tensors)
    return joined


def group(owner: str, named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[SharedStorage]:
    storages: dict[int, SharedStorage] = {}
    for name, tensor in named:
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"{owner}: its tensor {name} has no values yet, and would get other ones in each worker; run the model "
                "once as it is loaded"
            )
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(
                f"{owner}: its tensor {name} lies on {tensor.device}, whose driver does not survive a fork; load it on "
                "the CPU (map_location, device_map), or share nothing with --strategy spawn"
            )
        if not _has_memory(tensor):
            continue
        key = tensor.untyped_storage().data_ptr()
        low, high = _extent(tensor)
        storage = storages.setdefault(key, SharedStorage(owner, low=low, high=high))
        storage.names.append(name)
        storage.tensors.append(tensor)
        storage.low, storage.high = min(storage.low, low), max(storage.high, high)
    yield from storages.values()


def _merge(storages: list[SharedStorage]) -> list[SharedStorage]:
    """Joins what two engines have of one storage, so that a model which both use is packed once."""
    merged: dict[int, SharedStorage] = {}
    for storage in storages:
        known = merged.setdefault(storage.tensors[0].untyped_storage().data_ptr(), storage)
        if known is not storage:
            known.names += storage.names
            known.tensors += storage.tensors
            known.low, known.high = min(known.low, storage.low), max(known.high, storage.high)
    return list(merged.values())


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte + 1 of the storage that the tensor can touch."""
    last = sum((int(size) - 1) * int(step) for size, step in zip(tensor.size(), tensor.stride(), strict=True))
    low = int(tensor.storage_offset()) * tensor.element_size()
    return low, low + (last + 1) * tensor.element_size()


def walk(root: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that can be reached from an object, each once, with its name."""
    return keep_tensors(visit(root))


def keep_tensors(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, thing) for name, thing in named if isinstance(thing, torch.Tensor))


def visit(root: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor, and every C++ object that may hold some, that can be reached from an object.

    A tensor is called what its module calls it, with the path to the module in front ("encoder.layers.0.weight"); one
    that is in no module, the path to it ("cache.layers.0.keys"). Where there is no path, its shape stands for it.
    """
    names: dict[int, str] = {}
    seen: set[int] = set()
    keep: list[Any] = []  # what is made on the way (parameter wrappers of scripted modules) must keep its id
    tensors: list[tuple[str, torch.Tensor]] = []  # an optimizer may lead to them before their module does
    stack = [("", root)]
    while stack:
        path, thing = stack.pop()
        if id(thing) in seen or isinstance(thing, _OPAQUE):
            continue
        seen.add(id(thing))
        keep.append(thing)
        if isinstance(thing, torch.Tensor):
            tensors.append((path, thing))
        if type(thing) is torch.ScriptObject and _PACKED.search(str(thing._type())):
            yield f"a {str(thing._type()).rpartition('.')[2]}", thing
        stack.extend(_list_references(path, thing, seen))
        if isinstance(thing, torch.nn.Module):
            named = [
                *thing.named_parameters(remove_duplicate=False),
                *thing.named_buffers(remove_duplicate=False),
            ]
            for name, tensor in named:
                names.setdefault(id(tensor), _extend(path, name))
            stack.extend((path, tensor) for _, tensor in named)
    for path, tensor in tensors:
        yield names.get(id(tensor)) or path or f"a {describe_shape(tensor)} tensor", tensor


def _list_references(path: str, thing: Any, seen: Set[int]) -> list[tuple[str, Any]]:
    """What an object leads to, with its path. What has a name comes last, and so is looked at first."""
    if isinstance(thing, types.FunctionType):  # not its globals: they lead to everything
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        rest = (thing.__defaults__, thing.__kwdefaults__, thing.__dict__)
        return [*((path, part) for part in rest), *((_extend(path, name), cell) for name, cell in cells)]
    found = [
        (path, part)
        for part in gc.get_referents(thing)
        if type(part) not in _LEAVES and id(part) not in seen and not isinstance(part, _OPAQUE)
    ]
    if found and not isinstance(thing, torch.Tensor):
        found += [
            (_extend(path, str(name)), part)
            for name, part in _list_members(thing)
            if type(part) not in _LEAVES and id(part) not in seen and not isinstance(part, _OPAQUE)
        ]
    return found


def _list_members(thing: Any) -> Iterator[tuple[str | int, Any]]:
    """What an object holds under a name, found without a line of its own code."""
    if isinstance(thing, dict):
        yield from ((key, part) for key, part in dict.items(thing) if isinstance(key, str | int))
    elif isinstance(thing, list | tuple):
        yield from enumerate(tuple.__iter__(thing) if isinstance(thing, tuple) else list.__iter__(thing))
    for kind in type(thing).__mro__:
        attributes = vars(kind).get("__dict__")
        if isinstance(attributes, types.GetSetDescriptorType):
            yield from attributes.__get__(thing).items()
            return


def _extend(path: str, name: str) -> str:
    """A module's own tables are no part of the name that it gives to what is in them."""
    if name in ("_parameters", "_buffers", "_modules"):
        return path
    return f"{path}.{name}" if path else name


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether there is something to share: plain memory of its own on the CPU."""
    if must_stay(tensor) or tensor.device.type != "cpu" or tensor.numel() == 0:
        return False
    return is_real(tensor) and tensor.untyped_storage().nbytes() > 0


def is_real(tensor: torch.Tensor) -> bool:
    """Whether it has values, and does not only stand for a tensor, as some do in a module of torch.export: those have
    no address, or lie on "meta" and say otherwise, if the module was loaded from a file."""
    try:
        storage = tensor.untyped_storage()
        storage.data_ptr()
    except RuntimeError:
        return False
    return storage.device.type == tensor.device.type


def must_stay(thing: Any) -> bool:
    """Whether its memory cannot be replaced by other memory."""
    if not isinstance(thing, torch.Tensor):
        return True
    special = thing.layout is not torch.strided or thing.is_quantized or thing.is_nested
    return special or hasattr(thing, "__tensor_flatten__")


def describe_shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.size())) or "scalar"
