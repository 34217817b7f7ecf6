"""The load of GPUs, from a library that is not there, has no driver, loses a GPU, or answers."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from prefork.platform_matrix.nvml import Load, LoadMeter, list_watched


class NVMLError(Exception):
    """As pynvml's."""


class Library(ModuleType):
    """A stand-in for pynvml with so many GPUs: each index in `lost` fails, as does what is named in `failing`."""

    NVMLError = NVMLError

    def __init__(self, gpus: int) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        self.lost: set[int] = set()
        self.failing = ""
        self.calls: list[str] = []

    def _answer(self, name: str, index: int | None = None) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise NVMLError("Driver Not Loaded")
        if index in self.lost:
            raise NVMLError("GPU is lost")

    def nvmlInit(self) -> None:
        self._answer("nvmlInit")

    def nvmlDeviceGetCount(self) -> int:
        self._answer("nvmlDeviceGetCount")
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._answer("nvmlDeviceGetHandleByIndex", index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        self._answer("nvmlDeviceGetHandleByUUID")
        if uuid not in ("GPU-a", "GPU-b"):
            raise NVMLError("Not Found")
        return ("GPU-a", "GPU-b").index(uuid)

    def nvmlDeviceGetMemoryInfo(self, index: int) -> SimpleNamespace:
        self._answer("nvmlDeviceGetMemoryInfo", index)
        return SimpleNamespace(total=80 << 30, free=1, used=(index + 1) << 30)

    def nvmlDeviceGetUtilizationRates(self, index: int) -> SimpleNamespace:
        self._answer("nvmlDeviceGetUtilizationRates", index)
        return SimpleNamespace(gpu=10 * (index + 1), memory=99)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library(2)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_two_gpus_are_read_in_the_drivers_order(library: Library) -> None:
    meter = LoadMeter()
    assert meter.read() == meter.read() == [Load(10.0, 1 << 30), Load(20.0, 2 << 30)]
    assert meter.missing == ""
    assert library.calls.count("nvmlInit") == 1


def test_a_driver_without_gpus_has_no_load(library: Library) -> None:
    library.gpus = 0
    assert LoadMeter().read() == []


def test_without_the_package_nothing_is_read_and_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = LoadMeter()
    assert meter.read() == []
    assert 'pip install "nvidia-ml-py' in meter.missing


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_without_a_driver_nothing_is_asked_again_and_the_reason_is_kept(library: Library, failing: str) -> None:
    library.failing = failing
    meter = LoadMeter()
    asked = list(library.calls)
    assert (meter.read(), meter.missing) == ([], "NVML: Driver Not Loaded")
    assert library.calls == asked


@pytest.mark.parametrize("failing", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates"])
def test_what_a_gpu_does_not_tell_is_missing_with_the_reason(library: Library, failing: str) -> None:
    library.failing = failing  # as the utilisation of a GPU that is divided into instances
    meter = LoadMeter()
    assert (meter.read(), meter.missing) == ([], "NVML: Driver Not Loaded")


def test_a_gpu_that_is_lost_while_it_runs_ends_the_readings_with_the_reason(library: Library) -> None:
    meter = LoadMeter()
    assert len(meter.read()) == 2
    library.lost = {1}
    assert (meter.read(), meter.missing) == ([], "NVML: GPU is lost")
    assert meter.read() == []


@pytest.mark.parametrize(
    ("names", "loads"),
    [
        (("GPU-b",), [Load(20.0, 2 << 30)]),
        (("GPU-b", "MIG-c", "GPU-a"), [Load(20.0, 2 << 30), Load(10.0, 1 << 30)]),
        (("MIG-c",), []),  # of an instance, the driver counts no utilisation
    ],
)
@pytest.mark.usefixtures("library")
def test_only_the_gpus_that_compute_are_read_in_their_order(names: tuple[str, ...], loads: list[Load]) -> None:
    meter = LoadMeter(names)
    assert (meter.read(), meter.missing) == (loads, "")
    assert len(list_watched(names)) == len(loads)


def test_a_number_of_cudas_stands_for_the_only_gpu_and_is_no_number_of_nvmls(library: Library) -> None:
    unclear = LoadMeter(("0",))
    assert (unclear.read(), unclear.missing) == ([], "NVML: which of 2 GPUs is number 0 of CUDA is not known")
    library.gpus = 1
    assert LoadMeter(("0",)).read() == [Load(10.0, 1 << 30)]


@pytest.mark.usefixtures("library")
def test_a_gpu_that_nvml_does_not_know_has_no_load() -> None:
    meter = LoadMeter(("GPU-z",))
    assert (meter.read(), meter.missing) == ([], "NVML: Not Found")


def test_a_driver_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose GPU hangs; and it may come back."""
    library, answers = Library(1), threading.Event()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr("prefork.platform_matrix.nvml._PATIENCE", 0.2)
    meter = LoadMeter()
    usual = library.nvmlDeviceGetMemoryInfo

    def hang(index: int) -> SimpleNamespace:
        assert answers.wait(20)
        return usual(index)

    monkeypatch.setattr(library, "nvmlDeviceGetMemoryInfo", hang)
    started = time.monotonic()
    assert [meter.read(), meter.read(), meter.read()] == [[], [], []]
    assert time.monotonic() - started < 2.0
    assert meter.missing == "NVML has not answered within 0.2 s"
    answers.set()
    until = time.monotonic() + 10
    while not (loads := meter.read()) and time.monotonic() < until:
        time.sleep(0.01)
    assert loads == [Load(10.0, 1 << 30)]


def test_a_driver_that_does_not_even_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a GPU was given up, when the others are watched anew."""
    library, answers = Library(1), threading.Event()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr("prefork.platform_matrix.nvml._OPENING_SECONDS", 0.2)
    monkeypatch.setattr(library, "nvmlInit", lambda: answers.wait(20))
    started = time.monotonic()
    meter = LoadMeter()
    assert (meter.read(), meter.missing) == ([], "NVML has not answered within 0.2 s")
    assert time.monotonic() - started < 2.0
    answers.set()
    until = time.monotonic() + 10
    while not (loads := meter.read()) and time.monotonic() < until:
        time.sleep(0.01)
    assert loads == [Load(10.0, 1 << 30)]
