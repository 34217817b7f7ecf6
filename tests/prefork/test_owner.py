"""The owner of a device's weights, as a process: it exports them, holds them, and lets go when it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from prefork.memory.probe import measure_memory
from prefork.weights.checksum import measure
from prefork.weights.device_memory import DeviceError, HostMemory
from prefork.wire.child import ChildProcess
from prefork.wire.messages import (
    IPCUnavailable,
    LoadFailed,
)
from prefork.wire.owner_messages import UploadWeights, WeightsExported
from tests.prefork.command import wait_until_gone
from tests.prefork.test_device_memory import compile_driver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is opened by way of /proc")

_SIZE = 96_000_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "arena"
    path.write_bytes(np.random.default_rng(0).bytes(_SIZE))
    return path


@pytest.fixture
def owners() -> Iterator[list[ChildProcess]]:
    started: list[ChildProcess] = []
    yield started
    for owner in started:
        owner.end(5)


def _start(owners: list[ChildProcess], weights: Path, kind: str, **environment: str) -> tuple[ChildProcess, Any]:
    owner = ChildProcess("work.owner", environment)
    owners.append(owner)
    owner.channel.post(UploadWeights(str(weights), _SIZE, kind))
    return owner, owner.receive(30)


def test_the_owner_exports_and_lets_go_when_its_channel_ends(owners: list[ChildProcess], weights: Path) -> None:
    owner, answer = _start(owners, weights, "host")
    assert isinstance(answer, WeightsExported) and 0 < answer.seconds < 30
    export = answer.export
    view = HostMemory().open(export)
    assert measure(view.tensor) == export.checksum
    assert view.tensor.numpy().tobytes() == weights.read_bytes()
    view.close()
    assert owner.end(5) == 0
    owners.remove(owner)
    with pytest.raises(DeviceError):
        HostMemory().open(export)


def test_the_owner_needs_no_torch_and_no_memory_of_the_host(owners: list[ChildProcess], weights: Path) -> None:
    owner, _ = _start(owners, weights, "host")
    memory = measure_memory(owner.pid)
    assert memory is not None
    print(f"PSS {memory.pss / 1e6:.1f} MB, own {memory.uss / 1e6:.1f} MB")
    assert memory.pss < _SIZE / 2
    assert "libtorch" not in Path(f"/proc/{owner.pid}/maps").read_text()


def test_a_gpu_that_has_no_ipc_is_refused_and_one_that_is_full_fails(
    owners: list[ChildProcess], weights: Path, tmp_path: Path
) -> None:
    folder = str(Path(compile_driver(tmp_path)).parent)
    _, answer = _start(owners, weights, "cuda", LD_LIBRARY_PATH=folder, FAIL="cuIpcGetMemHandle:801")
    assert answer == IPCUnavailable(
        "cannot export GPU memory to other processes: operation not supported (CUDA_ERROR_NOT_SUPPORTED)"
    )
    _, answer = _start(owners, weights, "cuda", LD_LIBRARY_PATH=folder, FAIL="cuMemAlloc_v2:2")
    assert answer == LoadFailed("cannot take 0.10 GB of GPU 0 (Paper GPU): out of memory (CUDA_ERROR_OUT_OF_MEMORY)")


def test_the_owner_of_gpu_memory_holds_it_until_its_channel_ends(
    owners: list[ChildProcess], weights: Path, tmp_path: Path
) -> None:
    folder = str(Path(compile_driver(tmp_path)).parent)
    owner, answer = _start(owners, weights, "cuda", LD_LIBRARY_PATH=folder, CUDA_VISIBLE_DEVICES="GPU-7")
    assert isinstance(answer, WeightsExported)
    assert (answer.export.kind, answer.export.device) == ("cuda", "GPU-7 (Paper GPU)")
    assert owner.poll() is None
    assert owner.end(5) == 0
    owners.remove(owner)


def test_weights_that_cannot_be_read_fail_in_words(owners: list[ChildProcess], tmp_path: Path) -> None:
    _, answer = _start(owners, tmp_path / "nowhere", "host")
    assert isinstance(answer, LoadFailed) and answer.reason.startswith("cannot read the weights: ")


def test_the_owner_ends_with_the_process_that_started_it(weights: Path) -> None:
    script = (
        "import sys, time; from prefork.wire.child import ChildProcess\n"
        "from prefork.wire.owner_messages import UploadWeights\n"
        "owner = ChildProcess('work.owner', {})\n"
        "owner.channel.post(UploadWeights(sys.argv[1], int(sys.argv[2]), 'host'))\n"
        "owner.receive(30); print(owner.pid, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(weights), str(_SIZE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(parent.pid, signal.SIGKILL)
    assert not wait_until_gone([pid], 5)
