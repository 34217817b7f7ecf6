"""CUDA's driver, asked without torch: a library that answers as it does, in processes that really are started."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.driver import look_again
from prefork.platform_matrix.selection import select
from tests.stand_in_driver import build_driver

GB = 1_000_000_000
# Two GPUs, or whatever CUDA_VISIBLE_DEVICES names if that is a MIG instance; `unusable` fails as a GPU does that
# another process has for itself.
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int mig(void) { char *v = getenv("CUDA_VISIBLE_DEVICES"); return v && !strncmp(v, "MIG-", 4); }
static int known(void) { return !strcmp(getenv("CUDA_VISIBLE_DEVICES"), "MIG-77"); }
static int unusable(int d) { char *v = getenv("UNUSABLE"); return v && d == atoi(v); }
int cuInit(unsigned f) { char *v = getenv("NO_DRIVER"); return v ? 803 : 0; }
int cuDeviceGetCount(int *n) { *n = mig() ? known() : 2; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strcpy(s, mig() ? "NVIDIA H200 MIG 1g.18gb" : "NVIDIA H200"); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = 150000000000; return 0; }
int cuDeviceGetAttribute(int *n, int which, int d) {
    *n = which == 75 ? 9 : which == 76 ? 0 : which == 20 ? (unusable(d) || getenv("MPS") ? 3 : 0) : -1;
    if (which == 133) { if (!getenv("MPS")) return 1; *n = atoi(getenv("MPS")); }  /* 1: it is too old to know */
    return 0; }
int cuDeviceGetUuid_v2(char *u, int d) { memset(u, 0x10 + d, 16); return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { return unusable(d) ? 46 : 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxPushCurrent_v2(void *c) { return 0; }
int cuCtxPopCurrent_v2(void **c) { return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 90000000000; *t = 150000000000; return 0; }
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_OTHER"; return 0; }
"""
KNOWN = Devices(
    "2.11.0",
    ("cuda",),
    tuple(Device("cuda", "NVIDIA H200", 150 * GB, 0, "9.0", uuid) for uuid in ("torch-0", "torch-1")),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    build_driver(folder, SOURCE)
    return folder


@pytest.fixture
def _driver(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(library), os.environ.get("LD_LIBRARY_PATH", "")]
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join(filter(None, paths)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("_driver")
def test_what_is_free_is_asked_now_and_the_drivers_uuid_is_the_one_that_counts() -> None:
    first, second = look_again(KNOWN).present
    assert (first.free, first.mode, first.busy) == (90 * GB, "", "")
    assert (first.uuid, second.uuid) == ("10101010-1010-1010-1010-101010101010", "11111111-1111-1111-1111-111111111111")


@pytest.mark.usefixtures("_driver")
def test_a_gpu_that_another_process_has_for_itself_is_known_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNUSABLE", "1")
    first, second = look_again(KNOWN).present
    assert (first.free, first.busy) == (90 * GB, "")
    assert (second.free, second.mode, second.busy) == (0, "exclusive", "another process has it for itself")
    assert "cuda:1 (NVIDIA H200) cannot be used" in select(look_again(KNOWN), ("cuda:1",)).refusal


@pytest.mark.usefixtures("_driver")
def test_nvidias_mps_is_seen_and_is_then_the_one_process_of_an_exclusive_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not look_again(KNOWN).present[0].multi_process_service
    for served in (False, True):
        monkeypatch.setenv("MPS", str(int(served)))
        device = look_again(KNOWN).present[0]
        assert (device.mode, device.multi_process_service) == ("exclusive", served)
        assert device.is_exclusive is not served


@pytest.mark.usefixtures("_driver")
def test_a_driver_that_does_not_know_of_mps_is_helped_by_the_pipe_of_its_daemon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    os.mkfifo(tmp_path / "control")
    assert all(device.multi_process_service for device in look_again(KNOWN).present)


@pytest.mark.usefixtures("_driver")
def test_mig_instances_that_one_process_cannot_see_together_are_found_by_name() -> None:
    found = look_again(KNOWN, ("MIG-77", "MIG-88"))
    assert [device.name for device in found.present] == ["NVIDIA H200"] * 2 + ["NVIDIA H200 MIG 1g.18gb"]
    assert (found.present[2].mig, found.present[2].visible) == (True, "MIG-77")
    assert select(found, ("MIG-77", "cuda:0")).names == ("MIG-77", "GPU-10101010-1010-1010-1010-101010101010")
    assert "MIG-88: there is no such GPU" in select(found, ("MIG-77", "MIG-88")).refusal


@pytest.mark.usefixtures("_driver")
def test_what_the_environment_keeps_from_this_run_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-12")
    none = replace(KNOWN, present=())
    assert look_again(none, ("MIG-77",)) == none
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-12, MIG-77")
    assert [device.visible for device in look_again(none, ("MIG-77",)).present] == ["MIG-77"]


@pytest.mark.usefixtures("_driver")
def test_a_driver_that_does_not_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_DRIVER", "1")
    assert look_again(KNOWN, ("MIG-77",)) == KNOWN
    assert look_again(replace(KNOWN, present=KNOWN.present[:1])) == replace(KNOWN, present=KNOWN.present[:1])


def test_without_cuda_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere")
    for devices in (Devices(), Devices("2", ("mps",)), Devices("2", ("cuda",))):
        assert look_again(devices) is devices
