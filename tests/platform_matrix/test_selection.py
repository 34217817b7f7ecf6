"""Which GPUs compute: what users type, what there is, and one clear line for everything that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.selection import has_code, parse_devices, select

GB = 1_000_000_000
FIRST = Device("cuda", "NVIDIA H200", 150 * GB, 20 * GB, "9.0", "aaaa0000-1")
SECOND = Device("cuda", "NVIDIA H200", 150 * GB, 149 * GB, "9.0", "aaaa0000-2")
THIRD = Device("cuda", "NVIDIA H200 MIG 1g.18gb", 18 * GB, 17 * GB, "9.0", "bbbb0000-3", mig=True)
ALL = Devices("2.11.0+cu130", ("cuda",), (FIRST, SECOND, THIRD))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cpu", ("cpu",)),
        ("CUDA", ("cuda",)),
        (" cuda:0 , cuda:01 ", ("cuda:0", "cuda:1")),
        ("GPU-8932f937-d72c-4106", ("GPU-8932f937-d72c-4106",)),
        ("MIG-c6d4f1ef,cuda:0", ("MIG-c6d4f1ef", "cuda:0")),
        ("MIG-GPU-8932f937/1/0", ("MIG-GPU-8932f937/1/0",)),
    ],
)
def test_a_list_of_devices_is_read(text: str, names: tuple[str, ...]) -> None:
    assert parse_devices(text) == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not ''"),
        ("0", "not '0'"),
        ("gpu0", "not 'gpu0'"),
        ("cuda:-1", "not 'cuda:-1'"),
        ("cuda:0,", "not ''"),
        ("cuda:0;rm", "not 'cuda:0;rm'"),
        ("MIG-x\n", "not 'MIG-x'"),
        ("cuda:0,cuda:00", "cuda:0 is named twice"),
        ("cuda,cuda:0", "cuda cannot go together with others"),
        ("cuda:0,cpu", "cpu cannot go together with others"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_with_the_rule(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="device") as caught:
        parse_devices(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_gpu_with_the_most_free_memory_is_taken_and_it_is_said_how_to_have_them_all() -> None:
    found = select(ALL)
    assert (found.labels, found.names, found.devices) == (("cuda:1",), ("GPU-aaaa0000-2",), (SECOND,))
    assert found.note == "cuda:1 has the most free memory of 3 GPUs; --devices cuda takes all of them"
    assert select(Devices("2", ("cuda",), (FIRST,))).note == ""


def test_where_nobody_has_asked_what_is_free_the_first_of_equals_is_taken() -> None:
    unknown = tuple(replace(device, free=0) for device in (FIRST, SECOND))
    assert select(Devices("2", ("cuda",), unknown)).labels == ("cuda:0",)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (("cuda",), ("GPU-aaaa0000-1", "GPU-aaaa0000-2", "MIG-bbbb0000-3")),
        (("cuda:2", "cuda:0"), ("MIG-bbbb0000-3", "GPU-aaaa0000-1")),
        (("GPU-aaaa0000-2",), ("GPU-aaaa0000-2",)),
        (("gpu-AAAA0000-2",), ("GPU-aaaa0000-2",)),
        (("MIG-bbbb",), ("MIG-bbbb0000-3",)),
    ],
)
def test_devices_are_found_by_number_and_by_uuid_in_the_order_given(
    asked: tuple[str, ...], names: tuple[str, ...]
) -> None:
    assert select(ALL, asked).names == names


def test_what_torch_could_not_name_is_called_as_the_environment_has_it() -> None:
    second = replace(FIRST, uuid="", visible="3")
    assert select(Devices("2", ("cuda",), (replace(FIRST, uuid=""), second)), ("cuda",)).names == ("0", "3")


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        (("cuda:3",), "--devices cuda:3: there is no such GPU; there are cuda:0 (NVIDIA H200), cuda:1 (NVIDIA H200), "),
        (("cuda:0", "cuda:3"), "--devices cuda:0,cuda:3: cuda:3: there is no such GPU"),
        (("GPU-aaaa0000",), "--devices GPU-aaaa0000: stands for cuda:0 and cuda:1"),
        (("GPU-cccc",), "--devices GPU-cccc: there is no such GPU"),
        (("cuda:0", "GPU-aaaa0000-1"), "GPU-aaaa0000-1 is cuda:0, which is named twice"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(asked: tuple[str, ...], refusal: str) -> None:
    found = select(ALL, asked)
    assert refusal in found.refusal
    assert not found.names


@pytest.mark.parametrize(
    ("devices", "refusal"),
    [
        (Devices(), "torch is not installed"),
        (
            Devices("2", ("cuda",), error="CUDA initialization: The NVIDIA driver on your system is too old"),
            "--devices cuda: the GPUs could not be asked: CUDA initialization: The NVIDIA driver on your system is too "
            "old; update NVIDIA's driver, or take --devices cpu",
        ),
        (Devices("2.11.0+cpu"), "torch 2.11.0+cpu is built without CUDA; install one that is built with it"),
        (Devices("2", ("rocm",)), "are AMD's"),
        (
            Devices("2", ("cuda",), limited="CUDA_VISIBLE_DEVICES=''"),
            "CUDA_VISIBLE_DEVICES='' hides all GPUs; unset it",
        ),
        (Devices("2", ("cuda",)), "torch finds no GPU of NVIDIA's here"),
    ],
    ids=["no torch", "driver too old", "no CUDA", "AMD", "hidden", "none"],
)
def test_without_a_gpu_the_reason_is_named_and_what_to_do(devices: Devices, refusal: str) -> None:
    assert refusal in select(devices, ("cuda",)).refusal


def test_what_the_environment_hides_is_not_there_and_it_is_said_why() -> None:
    devices = Devices("2", ("cuda",), (FIRST,), limited="CUDA_VISIBLE_DEVICES='2'")
    found = select(devices, ("cuda:1",)).refusal
    assert found.endswith("there is cuda:0 (NVIDIA H200), and CUDA_VISIBLE_DEVICES='2' hides others")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"busy": "another process has it for itself", "mode": "exclusive"},
            "and its compute mode is `exclusive process`",
        ),
        ({"busy": "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY"}, "CUDA_ERROR_OUT_OF_MEMORY; take another"),
        ({"mode": "prohibited"}, "its compute mode is `prohibited`; take another"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_by_name_and_passed_over_if_nobody_named_it(
    changes: dict[str, str], reason: str
) -> None:
    devices = Devices("2", ("cuda",), (FIRST, replace(SECOND, **changes)))  # type: ignore[arg-type]
    named = select(devices, ("cuda:0", "cuda:1")).refusal
    assert "cuda:1 (NVIDIA H200) cannot be used: " in named and reason in named
    assert select(devices).labels == ("cuda:0",)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("7.0", ("sm_75", "sm_80", "sm_90"), False),  # a V100, and torch for CUDA 13
        ("7.5", ("sm_75", "sm_80"), True),
        ("8.0", ("sm_86",), False),
        ("8.9", ("sm_80",), True),
        ("9.0", ("sm_80", "sm_86"), False),
        ("12.1", ("sm_90", "compute_120"), True),
        ("13.0", ("sm_120", "compute_120"), True),
        ("13.0", ("sm_120",), False),
        ("9.0", ("sm_90a",), True),
        ("10.3", ("sm_100a",), False),
        ("10.3", ("sm_100f", "compute_80"), True),
        ("12.0", ("sm_100f", "compute_100f"), False),
        ("12.0", ("compute_90a",), False),
        ("7.0", (), True),  # nobody has said
        ("", ("sm_75",), True),
        ("7.0", ("nonsense",), True),
    ],
)
def test_code_runs_where_cuda_says_that_it_does(capability: str, architectures: tuple[str, ...], runs: bool) -> None:
    assert has_code(capability, architectures) is runs
