"""Kinds of device, asked as on the machines that have them: with a torch that was built without the others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefork.platform_matrix.device_kinds import KINDS, find_kind, is_out_of_memory
from prefork.platform_matrix.failures import Failure
from prefork.work.loading import uses_tf32
from prefork.work.staging import judge, open_staging
from prefork.work.torch_state import release

GB = 1 << 30
MPS_FULL = (
    "MPS backend out of memory (MPS allocated: 9.00 GiB, other allocations: 464.00 KiB, max allowed: 9.32 GiB). Tried "
    "to allocate 1024.00 MiB on private pool."
)


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch as Macs have it: whatever needs CUDA first asks for it to be initialised, which raises this."""

    def refuse() -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    for name in ("memory_allocated", "memory_reserved", "mem_get_info", "empty_cache", "synchronize", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: refuse())


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What Apple's GPU answers to torch's own functions, and what they did to it."""
    state = SimpleNamespace(allocated=2 * GB, driver=5 * GB, recommended=12 * GB, limit=1.7, emptied=0, waited=0)

    def empty() -> None:
        state.driver, state.emptied = state.allocated, state.emptied + 1

    def wait() -> None:
        state.waited += 1

    def limit(share: float) -> None:
        if not 0 <= share <= 2:
            raise RuntimeError(f"invalid high watermark ratio {share}")
        state.limit = share

    answers: dict[str, Callable[..., Any]] = {
        "_mps_emptyCache": empty,
        "_mps_deviceSynchronize": wait,
        "_mps_setMemoryFraction": limit,
        "_mps_currentAllocatedMemory": lambda: state.allocated,
        "_mps_driverAllocatedMemory": lambda: state.driver,
        "_mps_recommendedMaxMemory": lambda: state.recommended,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch._C, name, answer, raising=False)
    return state


@pytest.mark.usefixtures("without_cuda")
def test_every_kind_but_cuda_does_without_it(metal: SimpleNamespace) -> None:
    for name in KINDS:
        if name == "cuda":
            with pytest.raises(AssertionError, match="not compiled with CUDA"):
                release(name)
            continue
        kind = find_kind(name)
        kind.empty_cache()
        kind.synchronize(name)
        kind.limit_memory(GB)
        kind.speed_up()
        release(name)
        assert judge(RuntimeError("no such operator"), name) is None
        assert open_staging(name).fetch([{"a": torch.ones(2)}]).wait()[0]["a"].tolist() == [1.0, 1.0]
    assert metal.waited == 1


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(("driver", "emptied"), [(3 * GB, 0), (4 * GB, 1)])
def test_after_a_batch_mps_gives_back_what_torch_keeps_beyond_a_tenth(
    metal: SimpleNamespace, driver: int, emptied: int
) -> None:
    metal.driver = driver
    release("mps")
    assert metal.emptied == emptied
    memory = find_kind("mps").read_memory("mps")
    assert memory is not None
    assert (memory.allocated, memory.total, memory.free) == (2 * GB, 12 * GB, 12 * GB - metal.driver)


@pytest.mark.parametrize(("size", "share"), [(6 * GB, 0.5), (40 * GB, 2.0), (0, 0.01)])
def test_a_process_gets_a_share_of_what_metal_recommends_and_never_all(
    metal: SimpleNamespace, size: int, share: float
) -> None:
    """A share of 0 would be no limit."""
    find_kind("mps").limit_memory(size)
    assert metal.limit == share


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (RuntimeError(MPS_FULL), True),
        (RuntimeError("Invalid buffer size: 15.26 GiB"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (ValueError(MPS_FULL), False),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 7"), False),
    ],
)
def test_what_is_out_of_memory_is_known_of_every_kind(error: BaseException, short: bool) -> None:
    assert is_out_of_memory(error, f"{type(error).__name__}: {error}") is short


def test_a_kind_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="kind 'xpu'; known are cpu, cuda, mps"):
        find_kind("xpu:0")
    assert find_kind("cuda:3").name == "cuda"
    assert find_kind("cuda").classify(RuntimeError("CUDA error: an illegal access"), "CUDA error") is Failure.CONTEXT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What CUDA's allocator answers, and what was done to it."""
    state = SimpleNamespace(allocated=10 * GB, reserved=30 * GB, emptied=0)
    answers: dict[str, Callable[..., Any]] = {
        "memory_allocated": lambda *_: state.allocated,
        "memory_reserved": lambda *_: state.reserved,
        "mem_get_info": lambda *_: (50 * GB, 80 * GB),
        "empty_cache": lambda: setattr(state, "emptied", state.emptied + 1),
        "get_device_capability": lambda *_: (9, 0),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return state


@pytest.mark.parametrize(
    ("reserved", "need", "idle", "emptied"),
    [
        (30, 0, True, 1),  # 20 GB that nobody uses are more than a tenth
        (17, 0, True, 0),
        (30, 15, True, 0),  # the next batch would ask for it again
        (34, 15, True, 1),
        (60, 0, False, 0),  # not between two batches of a file
    ],
)
def test_cudas_cache_is_emptied_between_files_and_not_below_what_a_batch_needs(
    gpu: SimpleNamespace, reserved: int, need: int, idle: bool, emptied: int
) -> None:
    gpu.reserved = reserved * GB
    release("cuda", need * GB, idle)
    assert gpu.emptied == emptied


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("before", ["nothing", "older", "newer"])
def test_tf32_is_switched_on_so_that_either_of_torchs_switches_can_be_read(before: str) -> None:
    products = torch.backends.cuda.matmul
    usual = products.allow_tf32
    if before == "older":
        products.allow_tf32 = False
    elif before == "newer":
        products.fp32_precision = "ieee"
    try:
        find_kind("cuda").speed_up()
        assert products.allow_tf32 and products.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
        assert isinstance(torch.backends.cudnn.allow_tf32, bool)
        assert uses_tf32("cuda")
    finally:
        products.allow_tf32 = usual
