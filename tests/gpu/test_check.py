"""`prefork check --device cuda`, and the fork that it is there to keep people from."""

from __future__ import annotations

import subprocess
import sys

from prefork.check.device_check import DEVICE_STEPS
from tests.gpu.machine import needs_cuda
from tests.prefork.command import run

pytestmark = needs_cuda
_NAIVE = (
    "import os, torch\n"
    "model = torch.nn.Linear(4, 4).cuda()\n"
    "if os.fork() == 0:\n"
    "    try: print('computed', model(torch.ones(1, 4, device='cuda')).sum().item(), flush=True)\n"
    "    except Exception as error: print(type(error).__name__, error, flush=True)\n"
    "    os._exit(0)\n"
    "os.wait()\n"
    "print('parent', model(torch.ones(1, 4, device='cuda')).shape)\n"
)


def test_the_embedded_engine_is_safe_on_a_gpu() -> None:
    done = run("check", "ctc", "--device", "cuda:0", timeout=150)
    print(f"\n{done.stdout}{done.stderr}")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2] != " "]
    assert names == list(DEVICE_STEPS)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    done = run("check", "ctc", "--device", "cuda:77", "--json")
    print(f"\n{done.stderr}")
    assert done.returncode == 2
    assert "--device cuda:77: there is no such GPU; there " in done.stderr


def test_a_fork_after_cuda_was_used_fails_in_the_child_and_not_in_the_parent() -> None:
    done = subprocess.run([sys.executable, "-c", _NAIVE], capture_output=True, text=True, timeout=60, check=False)
    print(f"\n{done.stdout}{done.stderr}")
    assert "re-initialize CUDA in forked subprocess" in done.stdout
    assert "parent torch.Size([1, 4])" in done.stdout
