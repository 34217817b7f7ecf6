"""Weights in a device's memory: one copy, opened by others, and found out if it changes.

CUDA's calls go to a driver over the host's memory, compiled here: it sees whether every argument arrives as CUDA's
header declares it, and says no as CUDA does. What real GPUs do is in tests/gpu.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefork.engines.base import LoadError
from prefork.weights.arena import Arena
from prefork.weights.checksum import ROW_BYTES, Summer, measure
from prefork.weights.device_memory import GPU, CUDAMemory, DeviceError, HostMemory, WeightsChanged, attach
from prefork.wire.exports import Checksum, Export
from prefork.wire.memory_file import MemoryFile

pytestmark = [
    pytest.mark.usefixtures("script_engine"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is opened by way of /proc, and CUDA IPC is Linux's"),
]

torch.set_num_threads(1)  # this process forks: it must have no pool of threads


def _in_child(do: Callable[[], bool]) -> int:
    """Exit code of a forked process: 0 if it found it true."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # a death may be expected, and no news
        os._exit(0 if do() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fill(path: Path, size: int) -> bytes:
    data = np.random.default_rng(size).bytes(size)
    path.write_bytes(data)
    return data


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_driver(tmp_path_factory.mktemp("driver"))


def compile_driver(folder: Path) -> str:
    source = Path(__file__).parents[1] / "data" / "host_libcuda.c"
    path = folder / "libcuda.so.1"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
    except FileNotFoundError:
        pytest.skip("needs a C compiler (cc) for the driver that stands in for CUDA's")
    return str(path)


@pytest.mark.parametrize("size", [8, ROW_BYTES - 8, ROW_BYTES, 5 * ROW_BYTES + 64])
def test_a_checksum_is_the_same_with_torch_and_without_it(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    summer = Summer(size)
    for start in range(0, size, 2 * ROW_BYTES):
        summer.add(data[start : start + 2 * ROW_BYTES])
    assert summer.sum() == measure(torch.from_numpy(data))


def test_a_checksum_sees_bits_places_and_signs() -> None:
    words = torch.randint(-(2**62), 2**62, (3 * 1024 + 5,))

    def change(what: Callable[[torch.Tensor], object]) -> Checksum:
        changed = words.clone()
        what(changed)
        return measure(changed.view(torch.uint8))

    def swap(words: torch.Tensor, left: slice, right: slice) -> None:
        words[left], words[right] = words[right].clone(), words[left].clone()

    seen = {
        "nothing": measure(words.view(torch.uint8)),
        "a bit": change(lambda w: w[-1:].bitwise_xor_(1)),
        "two neighbours swapped": change(lambda w: swap(w, slice(7, 8), slice(8, 9))),
        "two words below each other swapped": change(lambda w: swap(w, slice(7, 8), slice(1031, 1032))),
        "two rows swapped": change(lambda w: swap(w, slice(0, 1024), slice(1024, 2048))),
        "two signs": change(lambda w: _flip(w, 3, 2000)),
        "two signs in a row": change(lambda w: _flip(w, 3, 4)),
        "all zero": change(lambda w: w.zero_()),
    }
    assert len(set(seen.values())) == len(seen)


def _flip(words: torch.Tensor, *places: int) -> None:
    for place in places:
        words[place].bitwise_xor_(-(2**63))


def test_models_that_look_into_the_one_copy_compute_what_they_did() -> None:
    import script_functions as functions

    model = functions.Holder(functions.Tied().eval())
    inputs = torch.randn(3, 64)
    tied: Any = model.parts[0]["model"]
    before = tied.second(inputs), tied.norm(inputs), tied.conv(inputs[:1])
    memory, export, arena = _upload({"model": model})

    def compute() -> bool:
        guard = attach(arena, {"model": model}, HostMemory(), export)
        first = guard.view.tensor.data_ptr()
        after = tied.second(inputs), tied.norm(inputs), tied.conv(inputs[:1])
        guard.check()
        return (
            all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
            and tied.second.weight is tied.first.weight
            and all(first <= tensor.data_ptr() < first + arena.size for tensor in tied.state_dict().values())
        )

    assert [_in_child(compute) for _ in range(2)] == [0, 0]
    memory.free()


def _upload(models: dict[str, object]) -> tuple[HostMemory, Export, Arena]:
    file = MemoryFile()
    arena = Arena.pack(models, file.path)
    arena.seal()
    memory = HostMemory()
    export: Export = pickle.loads(pickle.dumps(memory.upload(file.path, arena.size)))  # as it travels
    file.close()
    return memory, export, arena


def test_weights_that_another_process_writes_over_are_found_out_and_the_device_is_named() -> None:
    model = torch.nn.Linear(64, 64)
    memory, export, arena = _upload({"model": model})
    guard = attach(arena, {"model": model}, HostMemory(), export)
    guard.check()
    script = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), b'!', 1000)"
    subprocess.run([sys.executable, "-c", script, export.handle], check=True)
    with pytest.raises(WeightsChanged, match=r"in the memory of the host's memory are not those that were put there"):
        guard.check()
    with pytest.raises(WeightsChanged):  # nor does a new reader begin with them
        attach(arena, {"model": torch.nn.Linear(2, 2)}, HostMemory(), export)
    memory.free()


def test_a_reader_that_writes_is_killed() -> None:
    model = torch.nn.Linear(8, 8)
    memory, export, arena = _upload({"model": model})

    def write() -> bool:
        attach(arena, {"model": model}, HostMemory(), export)
        model.weight.data[0, 0] = 1.0
        return True

    assert _in_child(write) == -signal.SIGSEGV
    memory.free()


def test_a_model_that_only_the_cpu_can_run_is_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = torch.nn.Sequential(torch.nn.Linear(4, 4))
        model = torch.ao.quantization.quantize_dynamic(layers)  # type: ignore[no-untyped-call]
    memory, export, arena = _upload({"tagger": model})
    with pytest.raises(LoadError, match=r"tagger: a LinearPackedParamsBase cannot be moved .* run with --devices cpu"):
        attach(arena, {"tagger": model}, HostMemory(), export)
    memory.free()


def test_memory_that_has_been_freed_cannot_be_opened() -> None:
    memory, export, _ = _upload({"model": torch.nn.Linear(2, 2)})
    memory.free()
    with pytest.raises(DeviceError, match=r"cannot open the weights: .*No such file .*\(ENOENT\)"):
        HostMemory().open(export)


def test_a_file_of_weights_that_is_not_there_or_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot read the weights: .*nowhere.* \(ENOENT\)"):
        HostMemory().upload(str(tmp_path / "nowhere"), 64)
    _fill(tmp_path / "short", 100)
    with pytest.raises(DeviceError, match=r"cannot read the weights: mmap length is greater than file size"):
        HostMemory().upload(str(tmp_path / "short"), 6400)


def test_memory_is_given_back_when_nobody_looks_into_it_any_more() -> None:
    memory, export, _ = _upload({"model": torch.nn.Linear(2, 2)})
    view = HostMemory().open(export)
    memory.free()
    gc.collect()
    before = Path("/proc/self/maps").read_text().count("prefork-arena")
    view.close()
    assert Path("/proc/self/maps").read_text().count("prefork-arena") == before - 1


@pytest.mark.parametrize(
    ("what", "name", "refuses"),
    [
        ("export GPU memory to other processes", "CUDA_ERROR_NOT_SUPPORTED", True),
        ("export GPU memory to other processes", "CUDA_ERROR_OUT_OF_MEMORY", False),
        ("open the GPU memory that the owner of the weights exports", "CUDA_ERROR_INVALID_CONTEXT", True),
        ("open the GPU memory that the owner of the weights exports", "CUDA_ERROR_MAP_FAILED", True),
        ("use the GPU", "CUDA_ERROR_NO_DEVICE", False),
        ("copy weights to GPU 0", "CUDA_ERROR_INVALID_VALUE", False),
    ],
)
def test_what_ipc_refuses_is_told_from_what_no_strategy_could_do(what: str, name: str, refuses: bool) -> None:
    error = DeviceError(what, name, "it says")
    assert str(error) == f"cannot {what}: it says ({name})"
    assert error.refuses_ipc == refuses
    assert error.blames_device == (name == "CUDA_ERROR_NO_DEVICE")
    assert pickle.loads(pickle.dumps(error)).args == error.args


def test_through_the_driver_another_process_opens_the_same_bytes(library: str, tmp_path: Path) -> None:
    data = _fill(tmp_path / "weights", 3 * ROW_BYTES + 24)
    memory = CUDAMemory(library)
    export = memory.upload(str(tmp_path / "weights"), len(data))
    assert (export.kind, len(export.handle), export.size) == ("cuda", 64, len(data))
    assert export.device == "GPU 0 (Paper GPU)"
    assert export.checksum == measure(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def read() -> bool:
        driver = GPU(library)
        driver.enter()
        address = driver.open_handle(export.handle)
        same = ctypes.string_at(address, len(data)) == data
        driver.call("close the weights", "cuIpcCloseMemHandle", ctypes.c_uint64(address))
        return same

    assert [_in_child(read) for _ in range(2)] == [0, 0]
    driver = GPU(library)
    driver.enter()
    with pytest.raises(DeviceError, match=r"cannot open the GPU memory .*: invalid device context \(CUDA_ERROR_"):
        driver.open_handle(export.handle)  # by the owner itself
    memory.free()
    memory.free()  # nothing is left to do

    def find_it_gone() -> bool:
        driver = GPU(library)
        driver.enter()
        try:
            driver.open_handle(export.handle)
        except DeviceError as error:
            return error.refuses_ipc and error.name == "CUDA_ERROR_INVALID_VALUE"
        return False

    assert _in_child(find_it_gone) == 0


@pytest.mark.parametrize(
    ("variable", "value", "message", "refuses"),
    [
        (
            "FAIL",
            "cuInit:100",
            r"cannot use the GPU: no CUDA-capable device is detected \(CUDA_ERROR_NO_DEVICE\)",
            False,
        ),
        ("FAIL", "cuMemAlloc_v2:2", r"cannot take 0.00 GB of GPU 0 \(Paper GPU\): out of memory", False),
        ("FAIL", "cuIpcGetMemHandle:801", r"cannot export GPU memory to other processes: operation not supp", True),
        ("FAIL", "cuIpcGetMemHandle:4711", r"cannot export GPU memory to other processes: error 4711", False),
        ("NO_IPC", "1", r"cannot export .*: GPU 0 \(Paper GPU\) does not have CUDA IPC", True),
        ("EXCLUSIVE", "1", r"cannot export .*: GPU 0 \(Paper GPU\) is in exclusive mode, for one process", True),
    ],
)
def test_what_the_driver_refuses_is_said_with_its_reason(
    library: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    message: str,
    refuses: bool,
) -> None:
    _fill(tmp_path / "weights", 64)
    monkeypatch.setenv(variable, value)
    with pytest.raises(DeviceError, match=message) as caught:
        CUDAMemory(library).upload(str(tmp_path / "weights"), 64)
    assert caught.value.refuses_ipc == refuses


def test_under_nvidias_mps_an_exclusive_gpu_exports_its_memory(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path / "weights", 64)
    monkeypatch.setenv("EXCLUSIVE", "1")
    monkeypatch.setenv("MPS", "1")
    memory = CUDAMemory(library)
    assert memory.upload(str(tmp_path / "weights"), 64).kind == "cuda"
    monkeypatch.setenv("FAIL", "cuCtxSynchronize:719")
    with pytest.raises(DeviceError, match="cannot free the weights: "):  # it waits for what was launched before it ends
        memory.free()


def test_a_machine_without_the_driver_is_told_so() -> None:
    with pytest.raises(DeviceError, match=r"cannot use the GPU: there is no NVIDIA driver on this machine \(.*libno"):
        CUDAMemory("libnothing.so.1")


def test_a_driver_that_lacks_a_call_is_too_old(library: str) -> None:
    with pytest.raises(DeviceError, match="cannot dance: this NVIDIA driver is too old: it has no cuDance"):
        GPU(library).call("dance", "cuDance")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_a_reader_without_a_gpu_is_told_so_by_torch(library: str) -> None:
    export = Export("cuda", bytes(64), 64, Checksum(0, 0), "GPU 0")
    with pytest.raises(DeviceError, match="cannot use the GPU: "):
        CUDAMemory(library).open(export)
