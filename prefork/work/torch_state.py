"""What torch keeps for the whole process: random numbers, memory, devices."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from prefork.platform_matrix import device_kinds
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.exceptions import describe_error

_keep: list[Any] = []


def reseed(seed: int) -> None:
    """Seeds every generator there is: without it, all workers would draw the zygote's numbers.

    torch's on the CPU alone: torch.manual_seed looks for every other device first, 3 of a fork's 13 ms.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


@dataclass(slots=True)
class Draws:
    """Whether random numbers were drawn: who draws some has to be seeded alike, and is not kept."""

    any: bool = False


@contextmanager
def watch_draws() -> Iterator[Draws]:
    """Of the generators that `reseed` seeds."""
    import numpy as np
    import torch

    def look() -> tuple[Any, ...]:
        state = np.random.get_state(legacy=False)
        numbers = state["state"]
        drawn = (numbers["key"].tobytes(), numbers["pos"], state["has_gauss"])
        return torch.default_generator.get_state().numpy().tobytes(), random.getstate(), drawn

    before, draws = look(), Draws()
    yield draws
    draws.any = look() != before


def release(device: str, need: int = 0, idle: bool = True) -> None:
    """Gives back what nobody uses; of a GPU's memory what torch keeps, once that is a tenth of all and what the next
    batch needs. idle: nothing is computed, and nothing waits to be; else a GPU with streams keeps what it has: to give
    it back would wait for all that it does, and the next batch would have to ask for it again.

    need: bytes.
    """
    SYSTEM.release_free_memory()
    kind = find_kind(device)
    if kind.has_streams and not idle:
        return
    memory = kind.read_memory(device)
    if memory is not None and memory.is_hoarded(need):
        kind.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory: Python's own, or of a device. FFmpeg's is none: see ABSURD in
    `prefork.engines.audio.container`."""
    from av.error import FFmpegError

    if isinstance(error, FFmpegError):
        return False
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return device_kinds.is_out_of_memory(error, describe_error(error))


def hide_mps() -> None:
    """Has torch say that there is no MPS, to everything that is imported after it, and refuse to put tensors there.

    torch has no switch for it. A torch that was built without MPS is left alone.
    """
    import torch

    if not torch._C._has_mps:
        return
    core: Any = torch._C
    core._has_mps = False
    core._mps_is_available = lambda: False
    core._accelerator_getAccelerator = lambda: None
    torch.backends.mps.is_available.cache_clear()
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for operator in ("empty.memory_format", "empty_strided"):  # what makes a tensor comes through these
        library.impl(operator, _refuse_mps, "MPS", allow_override=True)
    _keep.append(library)  # what it says holds as long as it lives


def _refuse_mps(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("MPS is hidden (--force-cpu, --no-mps): load this on the CPU")
