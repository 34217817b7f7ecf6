"""CUDA's runtime keeps the first answer that it gets, across forks too: a process that forks workers for a GPU, and
sees none itself, must not have asked.

The driver is one that notes which GPUs whoever asks it sees, and says that there are none. It leaves its log open, as
CUDA's may leave its device open.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefork.platform_matrix.devices import ask_devices
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Request, decide
from tests.stand_in_driver import build_driver

pytestmark = [
    pytest.mark.usefixtures("script_engine"),
    pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a torch that is built for CUDA"),  # type: ignore[no-untyped-call]
]
ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuInit(unsigned flags) {
  FILE *log = fopen(getenv("ASKED"), "a");
  fprintf(log, "%s\\n", getenv("CUDA_VISIBLE_DEVICES"));
  fflush(log);
  return 100;
}
int cuDriverGetVersion(int *version) { char *v = getenv("DRIVER_VERSION"); *version = v ? atoi(v) : 99000; return 0; }
int cuDeviceGetCount(int *count) { return 3; }
static int none(void) { return 100; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, int *status) {
  *function = !strcmp(name, "cuInit") ? (void *)cuInit : !strcmp(name, "cuDriverGetVersion") ? cuDriverGetVersion
    : !strcmp(name, "cuDeviceGetCount") ? cuDeviceGetCount
    : !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : none;
  if (status) *status = 0;
  return 0;
}
int cuGetProcAddress(const char *name, void **function, int version, unsigned long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""
# What a zygote does: loads, looks itself over, forks. The child does what a worker does before all else.
CODE = """
import os, sys
from prefork.check.device_children import initialise
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix import hazards
from prefork.platform_matrix.matrix import Request, Strategy, decide
from prefork.wire.specification import Specification
from prefork.work import loading
gpu = Device("cuda", "NVIDIA H200", 10**11, 10**11, "9.0", "7")
devices = Devices("2", ("cuda",), (gpu,)) if sys.argv[1] != "fork" else Devices()
plan = decide(read_facts(devices), Request(("tracing",), Strategy(sys.argv[1]), 1))
assert not plan.refusal, plan.refusal
loading.load(Specification({"tracing": {}}, None, plan, remote=sys.argv[1] == "server"))
hazards._CUDA_MEMORY = os.environ["ASKED"]
print(*[hazard.severity for hazard in hazards.find_hazards() if hazard.name == "cuda"], flush=True)
if os.fork() == 0:
    try: initialise("GPU-7", None)
    except RuntimeError: os._exit(0)
    os._exit(1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    build_driver(folder, DRIVER)
    return folder


def _fork(driver: Path, log: Path, strategy: str) -> tuple[list[str], list[str]]:
    """Severities of what was found of CUDA in the process that forks, and which GPUs whoever asked saw."""
    environment = {
        **os.environ,
        "ASKED": str(log),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "LD_LIBRARY_PATH": str(driver),
    }
    command = [sys.executable, "-c", CODE, strategy]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), log.read_text().splitlines()


@pytest.mark.parametrize("strategy", ["ipc", "server"])
def test_what_a_gpus_workers_are_forked_from_has_asked_for_no_gpu(strategy: str, driver: Path, tmp_path: Path) -> None:
    assert _fork(driver, tmp_path / "asked", strategy) == ([], ["GPU-7"])


def test_a_model_that_asks_on_the_cpu_may_be_forked_and_no_child_of_it_sees_a_gpu(driver: Path, tmp_path: Path) -> None:
    """As with --devices cpu on a machine with a GPU. This is what the other strategies are kept from."""
    assert _fork(driver, tmp_path / "asked", "fork") == ([], ["", ""])  # by the model, and before the fork


@pytest.mark.exec
def test_a_driver_that_is_too_old_for_this_torch_is_named_and_the_cpu_computes(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("DRIVER_VERSION", "1000")
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices = ask_devices(refresh=True)
    assert "driver on your system is too old (found version 1000)" in devices.error
    plan = decide(read_facts(devices), Request(("ctc",)))
    assert (plan.device, plan.refusal) == ("cpu", "")
    assert "update NVIDIA's driver" in plan.fallback


def test_a_gpu_that_was_lost_before_a_process_starts_again_is_to_blame_and_not_the_models(
    driver: Path, tmp_path: Path
) -> None:
    """As one that has fallen off the bus: torch finds none, and says so without a code."""
    code = (
        "import torch\n"
        "from prefork.platform_matrix.device_kinds import find_kind\n"
        "try: torch.ones(1, device='cuda')\n"
        "except Exception as error: print(find_kind('cuda').classify(error, f'{type(error).__name__}: {error}'))\n"
    )
    lost = {"CUDA_VISIBLE_DEVICES": "GPU-7", "LD_LIBRARY_PATH": str(driver), "ASKED": str(tmp_path / "asked")}
    command = [sys.executable, "-c", code]
    environment = {**os.environ, **lost}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "device\n", done.stderr
