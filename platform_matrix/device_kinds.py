"""What each kind of device can do that torch computes on: the one place that asks torch about one kind alone.

`find_kind(device)` gives its kind. Nothing here initialises a device but the methods that read or change one; a torch
that was built without a kind knows nothing of it and is not asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from prefork.platform_matrix import cuda_errors
from prefork.platform_matrix.failures import Failure

# What torch's allocator says when it gets nothing: on Linux and macOS, on Windows, and where C++ does not say more.
_HOST_MEMORY = ("can't allocate memory", "not enough memory: you tried to allocate", "std::bad_alloc")
# ATen's MPSAllocator.mm: above the limit of the process, and above that of one buffer, which a smaller batch has not.
_MPS_MEMORY = ("MPS backend out of memory", "Invalid buffer size: ")
_MOST_UNUSED = 0.1  # of a device's memory that torch may keep between two segments


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of a device. allocated: in tensors of this process; reserved: what torch holds for them. free: for anybody;
    total: that may be used."""

    allocated: int
    reserved: int
    free: int
    total: int

    def is_hoarded(self, need: int) -> bool:
        """Whether torch keeps more for later than the others can spare. need: bytes that the next batch takes of it."""
        return self.reserved - self.allocated > need + _MOST_UNUSED * self.total


class DeviceKind(ABC):
    """One kind. name: as torch has it before the colon. lacks: data types, as torch names them, that it cannot hold.
    has_streams: copies to and from it can go on while it computes."""

    name: ClassVar[str]
    lacks: ClassVar[frozenset[str]] = frozenset()
    has_streams: ClassVar[bool] = False

    @abstractmethod
    def read_memory(self, device: str) -> DeviceMemory | None:
        """None where it is the machine's, and torch has no allocator that keeps any."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Gives back what torch has reserved and does not use."""

    @abstractmethod
    def synchronize(self, device: str) -> None:
        """Waits until all that was launched is done. Raises what went wrong there."""

    def reset_peak(self, device: str) -> int | None:  # noqa: ARG002
        """Bytes that this process has in tensors; from here on the most of that is noted. None if nobody can say."""
        return None

    def read_peak(self, device: str) -> int:  # noqa: ARG002
        """The most that it was since."""
        return 0

    def limit_memory(self, size: int) -> None:  # noqa: B027  most have no such limit
        """size: bytes that this process may take of it."""

    def speed_up(self) -> None:  # noqa: B027  most do all they can by themselves
        """Has it do what it can and torch does not do by itself."""

    def probe(self, device: str) -> None:  # noqa: B027  one that breaks takes the process with it
        """Computes something small. Raises what is wrong with the device, or with this process's use of it."""

    @abstractmethod
    def classify(self, error: BaseException, text: str) -> Failure | None:
        """None if the error says nothing of the device. text: of the error, its type's name in front."""

    def judge(self, error: BaseException, text: str, device: str) -> Failure | None:
        """The same, once the device has been tried: CONTEXT if it does no more, None if it does."""
        failure = self.classify(error, text)
        if failure in (Failure.MEMORY, Failure.DEVICE):
            return failure
        try:
            self.probe(device)
        except Exception as broken:  # noqa: BLE001  whatever it raises, it does not compute
            found = self.classify(broken, f"{type(broken).__name__}: {broken}")
            return None if found is Failure.MEMORY else found or Failure.CONTEXT
        return None


class _CPU(DeviceKind):
    name = "cpu"

    def read_memory(self, device: str) -> DeviceMemory | None:  # noqa: ARG002
        return None

    def empty_cache(self) -> None:
        pass

    def synchronize(self, device: str) -> None:
        pass

    def classify(self, error: BaseException, text: str) -> Failure | None:
        is_short = isinstance(error, RuntimeError) and any(words in text for words in _HOST_MEMORY)
        return Failure.MEMORY if is_short else None


class _CUDA(DeviceKind):
    """NVIDIA's GPUs, and AMD's, which torch calls so too."""

    name = "cuda"
    has_streams = True

    def read_memory(self, device: str) -> DeviceMemory:
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device), free, total)

    def empty_cache(self) -> None:
        import torch

        torch.cuda.empty_cache()

    def synchronize(self, device: str) -> None:
        import torch

        torch.cuda.synchronize(device)

    def reset_peak(self, device: str) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)

    def read_peak(self, device: str) -> int:
        import torch

        return torch.cuda.max_memory_allocated(device)

    def speed_up(self) -> None:
        """Matrix products of float32 in TF32, where it has that; convolutions use it by themselves.

        By the older of torch's two switches: once the newer one is set (fp32_precision, since 2.9), whoever reads the
        older one, as pyannote does, gets a RuntimeError.
        """
        import torch

        if torch.cuda.get_device_capability()[0] >= 8:  # Ampere
            torch.backends.cuda.matmul.allow_tf32 = True

    def probe(self, device: str) -> None:
        import torch

        torch.ones(1, device=device).add_(1).item()
        torch.cuda.synchronize(device)

    def classify(self, error: BaseException, text: str) -> Failure | None:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            return Failure.MEMORY
        if not isinstance(error, RuntimeError):
            return None
        code = getattr(error, "error_code", None) if isinstance(error, torch.AcceleratorError) else None
        return cuda_errors.classify(code, text)


class _MPS(DeviceKind):
    """Apple's GPUs. They use the machine's memory, of which Metal recommends a part, three quarters or less; torch lets
    each process take 1.7 times as much. Metal says nothing of a device that is broken: it aborts the process."""

    name = "mps"
    lacks = frozenset({"float64", "complex128"})

    def read_memory(self, device: str) -> DeviceMemory:  # noqa: ARG002
        import torch

        held, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
        return DeviceMemory(torch.mps.current_allocated_memory(), held, max(0, total - held), total)

    def empty_cache(self) -> None:
        import torch

        torch.mps.empty_cache()

    def synchronize(self, device: str) -> None:  # noqa: ARG002
        import torch

        torch.mps.synchronize()

    def limit_memory(self, size: int) -> None:
        """Of what the system recommends; torch takes shares of it up to 2, and 0 for no limit at all."""
        import torch

        share = size / torch.mps.recommended_max_memory()
        torch.mps.set_per_process_memory_fraction(min(2.0, max(share, 0.01)))

    def classify(self, error: BaseException, text: str) -> Failure | None:
        is_short = isinstance(error, RuntimeError) and any(words in text for words in _MPS_MEMORY)
        return Failure.MEMORY if is_short else None


KINDS: dict[str, DeviceKind] = {kind.name: kind for kind in (_CPU(), _CUDA(), _MPS())}


def find_kind(device: str) -> DeviceKind:
    """device: as torch names it, `cuda:1` too. Raises ValueError for a kind that nobody has looked at."""
    name = device.partition(":")[0]
    if name not in KINDS:
        raise ValueError(f"nothing is known of devices of the kind {name!r}; known are {', '.join(KINDS)}")
    return KINDS[name]


def is_out_of_memory(error: BaseException, text: str) -> bool:
    """Whether a device of any kind says so: what a model does on another one than its own fails alike."""
    return any(kind.classify(error, text) is Failure.MEMORY for kind in KINDS.values())
