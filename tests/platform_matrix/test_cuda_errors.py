"""CUDA's errors by their code, and by their words where there is no code; no GPU is needed to read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefork.platform_matrix import device_kinds
from prefork.platform_matrix.cuda_errors import blames_device
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.failures import Failure
from prefork.work.staging import judge

MEMORY, CONTEXT, DEVICE = Failure.MEMORY, Failure.CONTEXT, Failure.DEVICE


def _raise(code: int, text: str = "CUDA error: the words may be any") -> torch.AcceleratorError:
    error: Any = torch.AcceleratorError(text)
    error.error_code = code
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (_raise(2), MEMORY),
        (_raise(214), DEVICE),  # ECC
        (_raise(220), DEVICE),
        (_raise(209), DEVICE),  # no kernel image
        (_raise(999), DEVICE),  # fallen off the bus
        (_raise(46), DEVICE),
        (_raise(810), DEVICE),  # of NVIDIA's MPS
        (_raise(700), CONTEXT),  # illegal access
        (_raise(710), CONTEXT),  # an assertion of a kernel
        (_raise(719), CONTEXT),
        (_raise(4711), CONTEXT),
        (_raise(700, "CUDA error: out of memory is what it does not say"), MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MEMORY),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), MEMORY),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), DEVICE),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), DEVICE),
        (RuntimeError("No CUDA GPUs are available"), DEVICE),
        (RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."), DEVICE),
        (RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"), DEVICE),
        (RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"), DEVICE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), CONTEXT),
        (RuntimeError("CUDA error: device-side assert triggered"), CONTEXT),
        (RuntimeError("the expanded size of the tensor must match; an unknown error of the user's"), None),
        (ValueError("CUDA error: uncorrectable ECC error encountered"), None),  # what a model says, CUDA has not
    ],
)
def test_an_error_is_known_by_its_code_or_else_by_its_words(error: BaseException, failure: Failure | None) -> None:
    assert find_kind("cuda").classify(error, f"{type(error).__name__}: {error}") is failure
    assert device_kinds.is_out_of_memory(error, f"{type(error).__name__}: {error}") is (failure is MEMORY)


@pytest.mark.parametrize(
    ("error", "probe", "failure"),
    [
        (KeyError("a bug"), None, None),
        (KeyError("a bug"), _raise(719), CONTEXT),  # of something that was launched before
        (KeyError("a bug"), _raise(214), DEVICE),
        (_raise(9), None, None),  # an invalid configuration: the context lives
        (_raise(700), _raise(700), CONTEXT),
        (_raise(700), _raise(2), None),  # it computes, if there is memory
        (_raise(214), None, DEVICE),  # nothing is tried on it
        (_raise(2), _raise(719), MEMORY),
    ],
)
def test_whether_a_context_lives_is_tried(
    error: BaseException, probe: BaseException | None, failure: Failure | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(_: str) -> None:
        if probe is not None:
            raise probe

    monkeypatch.setattr(type(find_kind("cuda")), "probe", lambda _, device: compute(device))
    assert judge(error, "cuda") is failure


def test_the_drivers_own_names_are_known() -> None:
    assert blames_device("CUDA_ERROR_NO_DEVICE") and blames_device("CUDA_ERROR_ECC_UNCORRECTABLE")
    assert not blames_device("CUDA_ERROR_OUT_OF_MEMORY") and not blames_device("")


def test_the_cpu_and_mps_are_not_tried() -> None:
    assert judge(RuntimeError("CUDA error: uncorrectable ECC error encountered"), "cpu") is None
