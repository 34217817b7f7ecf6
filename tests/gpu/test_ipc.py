"""CUDA IPC: one copy of the weights in GPU memory, read by processes that were forked without CUDA."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from prefork.weights.arena import Arena
from prefork.weights.device_memory import DeviceError, Guard, WeightsChanged, attach, make_memory
from prefork.wire.child import ChildProcess
from prefork.wire.exports import Export
from prefork.wire.memory_file import MemoryFile
from prefork.wire.owner_messages import UploadWeights, WeightsExported
from tests.gpu.forked import Worker, do
from tests.gpu.machine import needs_cuda

pytestmark = needs_cuda
_KIND = "cuda"
_DEVICE = "cuda"
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Shared:
    """A model in its arena on the CPU, and an owner that has it on the GPU."""

    model: torch.nn.Module
    arena: Arena
    owner: ChildProcess
    export: Export
    seconds: float  # of the upload

    def attach(self) -> Guard:
        return attach(self.arena, {"model": self.model}, make_memory(_KIND), self.export)

    def compute(self) -> torch.Tensor:
        """What the model says, computed on the GPU, after the weights were found intact before and after."""
        guard = self.attach()
        output = _run(self.model, _DEVICE)
        guard.check()
        return output


@contextmanager
def _share(width: int) -> Iterator[Shared]:
    """The model has about 16 * width * width bytes."""
    model, file = _make_model(width), MemoryFile()
    arena = Arena.pack({"model": model}, file.path)
    arena.seal()
    owner = ChildProcess("work.owner", {})
    try:
        owner.channel.post(UploadWeights(file.path, arena.size, _KIND))
        answer = owner.receive(_SECONDS)
        assert isinstance(answer, WeightsExported), answer
        yield Shared(model, arena, owner, answer.export, answer.seconds)
    finally:
        owner.end(10)
        file.close()


def _make_model(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(torch.nn.Linear(width, width) for _ in range(4)),
        torch.nn.BatchNorm1d(width),
    )
    tied: Any = torch.nn.Linear(width, width)
    tied.weight = model[0].weight
    model.tied = tied
    return model.eval()


def _run(model: torch.nn.Module, device: str) -> torch.Tensor:
    """(4, width) float32, on the CPU."""
    tied: Any = model.tied
    width = tied.in_features
    inputs = torch.linspace(-1, 1, 4 * width).view(4, width).to(device)
    with torch.inference_mode():
        return (model(inputs) + tied(inputs)).cpu()  # type: ignore[no-any-return]


def _count_used() -> float:
    """Bytes of GPU memory that are taken, by whomever; the context of the process that asks, always alike, included."""

    def ask() -> float:
        free, total = torch.cuda.mem_get_info()
        return float(total - free)

    used = do(ask)
    assert isinstance(used, float), used
    return used


def _use_gpu() -> bool:
    """As much of CUDA as a worker uses, without weights."""
    _run(_make_model(64).to(_DEVICE), _DEVICE)
    torch.ones(64, dtype=torch.int64, device=_DEVICE).sum().item()
    torch.cuda.empty_cache()
    return True


def test_two_workers_compute_the_same_on_one_copy_of_the_weights() -> None:
    nothing = _count_used()
    bare = Worker(_use_gpu)
    assert bare.result is True, bare.result
    context = _count_used() - nothing
    bare.end()
    with _share(8192) as shared:
        size = shared.arena.size
        owned = _count_used() - nothing
        workers = [Worker(shared.compute) for _ in range(2)]
        used = _count_used() - nothing
        for worker in workers:
            worker.end()
        outputs: list[Any] = [worker.result for worker in workers]
        assert all(isinstance(output, torch.Tensor) for output in outputs), outputs
        expected = _run(shared.model, "cpu")
        beyond = used - owned - 2 * context
        print(
            f"\nweights {size / 1e9:.3f} GB, uploaded at {size / 1e9 / shared.seconds:.1f} GB/s; GPU memory: owner "
            f"{owned / 1e9:.3f} GB with the weights, context of a worker {context / 1e9:.3f} GB, two workers "
            f"{(used - owned) / 1e9:.3f} GB, {beyond / 1e9:+.3f} GB beyond their contexts; largest difference to the "
            f"CPU {(outputs[0] - expected).abs().max():.2e}"
        )
        assert torch.equal(*outputs)
        torch.testing.assert_close(outputs[0], expected, rtol=1e-3, atol=1e-3)
        assert owned >= size
        assert beyond < size / 2  # two copies would be twice the size
    assert _count_used() - nothing < size / 2  # given back


def test_a_look_at_all_the_weights_takes_milliseconds() -> None:
    with _share(4096) as shared:

        def look() -> float:
            guard = shared.attach()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(20):
                guard.check()
            return (time.perf_counter() - started) / 20

        seconds = do(look)
        assert isinstance(seconds, float), seconds
        print(f"\nchecksum: {1e3 * seconds / (shared.arena.size / 1e9):.2f} ms/GB")
        assert seconds < 0.1


def test_a_worker_sees_that_another_one_has_written_to_the_weights() -> None:
    with _share(256) as shared:

        def write() -> bool:
            shared.attach().view.tensor[12_345] ^= 1
            torch.cuda.synchronize()
            return True

        def look(guards: list[Guard]) -> bool:
            guards.append(shared.attach())
            return True

        assert do(lambda: look([])) is True
        assert do(write) is True
        changed = do(shared.compute)
        assert isinstance(changed, WeightsChanged), changed
        assert shared.export.device in str(changed)
        print(f"\n{changed}")


def test_the_handle_of_freed_memory_is_refused() -> None:
    with _share(256) as shared:
        assert isinstance(do(shared.compute), torch.Tensor)
        assert shared.owner.end(10) == 0
        refused = do(shared.compute)
        assert isinstance(refused, DeviceError), refused
        print(f"\n{refused}; refuses IPC: {refused.refuses_ipc}")


def test_nobody_opens_what_a_killed_owner_had() -> None:
    with _share(256) as shared:
        reader = Worker(lambda: shared.attach() is not None)
        assert reader.result is True, reader.result
        os.kill(shared.owner.pid, signal.SIGKILL)
        assert shared.owner.end(10) == -signal.SIGKILL
        refused = do(shared.compute)
        reader.end()
        assert isinstance(refused, DeviceError), refused
        print(f"\n{refused}; refuses IPC: {refused.refuses_ipc}")


@pytest.mark.parametrize("setting", ["expandable_segments:True", "backend:cudaMallocAsync"])
def test_how_torch_allocates_does_not_matter(setting: str) -> None:
    with _share(256) as shared:
        expected = do(shared.compute)
        assert isinstance(expected, torch.Tensor), expected
        code = "from tests.gpu.test_ipc import read_alone; read_alone()"
        done = subprocess.run(
            [sys.executable, "-c", code, base64.b64encode(pickle.dumps(shared.export))],
            env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting, "PYTORCH_ALLOC_CONF": setting},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert torch.equal(pickle.loads(base64.b64decode(done.stdout.splitlines()[-1])), expected)


def read_alone() -> None:
    """In a fresh process, whose allocator reads its settings when torch is imported: the same model, from the seed."""
    export: Export = pickle.loads(base64.b64decode(sys.argv[1]))
    model = _make_model(256)
    arena = Arena.pack({"model": model})
    guard = attach(arena, {"model": model}, make_memory(_KIND), export)
    output = _run(model, _DEVICE)
    guard.check()
    print(base64.b64encode(pickle.dumps(output)).decode())


def test_a_process_that_was_forked_after_cuda_was_used_is_told_so() -> None:
    code = (
        "import os, torch; from prefork.wire.exports import Checksum\n"
        "from prefork.weights.device_memory import CUDAMemory, DeviceError, Export\n"
        "torch.ones(1, device='cuda')\n"
        "if os.fork() == 0:\n"
        "    try: CUDAMemory().open(Export('cuda', bytes(64), 64, Checksum(0, 0), 'GPU 0'))\n"
        "    except DeviceError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    print(f"\n{done.stdout.strip()}")
    assert "cannot use the GPU: Cannot re-initialize CUDA in forked subprocess" in done.stdout, done.stderr
