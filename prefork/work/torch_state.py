"""What torch keeps for the whole process: random numbers, memory, devices."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.exceptions import describe_error

# What torch's allocator says when it gets nothing: on Linux and macOS, on Windows, and where C++ does not say more.
_ALLOCATOR = ("can't allocate memory", "not enough memory: you tried to allocate", "std::bad_alloc")


_MOST_UNUSED = 0.1  # of a GPU's memory that torch may keep between two segments


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


def release(device: str) -> None:
    """Gives back what nobody uses; of a GPU's memory what torch keeps, once that is a tenth of all: the next segment
    would have to ask for it again, and that takes longer than on the CPU."""
    import torch

    SYSTEM.release_free_memory()
    if device != "cpu":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if unused > _MOST_UNUSED * torch.cuda.mem_get_info()[1]:
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory: Python's own, the allocator's of torch on the CPU, CUDA's. FFmpeg's is
    none: see ABSURD in `prefork.engines.audio.container`."""
    import torch
    from av.error import FFmpegError

    if isinstance(error, FFmpegError):
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in describe_error(error) for words in _ALLOCATOR)


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


def speed_up(device: str) -> None:
    """What a GPU can do and torch does not do by itself: matrix products of float32 in TF32, where it has that."""
    if device != "cuda":
        return
    import torch

    if torch.cuda.get_device_capability()[0] >= 8:  # Ampere
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
