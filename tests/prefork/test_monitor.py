"""The memory monitor: its lines, its cleanups, its alarms, and what becomes of real memory."""

from __future__ import annotations

import gc
import logging
import mmap
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prefork.memory.monitor import (
    Alarm,
    Cleanups,
    DeviceMeter,
    HostMeter,
    MemoryMonitor,
    MemoryRecovery,
    Meter,
    Reading,
    measure_recovery,
)
from prefork.memory.monitored_stages import CHECKPOINTS, MonitoredStage
from prefork.platform_matrix.memory import read_memory
from tests.prefork.command import run_apart

pytestmark = [pytest.mark.exec, pytest.mark.alone]

GB = 1 << 30
MB = 1 << 20
NAMES = """\
Pipeline Initialization
Before Audio Preprocessing
After Audio Preprocessing
Before Transcription
Before Whisper Cleanup
After Whisper Cleanup
After Transcription (post-cleanup)
Before Diarization
Before Waveform Cleanup
After Waveform Cleanup
Before Diarization Model Cleanup
After Diarization Model Cleanup
After Diarization (post-cleanup)
Before Speaker Alignment
Before Alignment Tensors Cleanup
After Alignment Tensors Cleanup
After Speaker Alignment (post-cleanup)
Before Final Cleanup
After Final Cleanup""".splitlines()


class Device:
    """A GPU of 100 GB that says what it is told. glanced: set by whatever the thread reads."""

    def __init__(self, percent: float = 10) -> None:
        self.percent = percent
        self.releases = 0
        self.failure: Exception | None = None
        self.glanced = threading.Event()

    def read(self) -> Reading:
        if self.failure is not None:
            raise self.failure
        allocated = int(self.percent * GB)
        return Reading("GPU", allocated, allocated, 100 * GB - allocated, 100 * GB)

    def glance(self) -> Reading:
        if threading.current_thread() is not threading.main_thread():
            self.glanced.set()
        return self.read()

    def release(self) -> None:
        self.releases += 1

    def set(self, percent: float) -> None:
        self.percent = percent

    def wait_for_glance(self) -> None:
        """One that began after now."""
        for _ in range(2):
            self.glanced.clear()
            assert self.glanced.wait(10)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> Iterator[None]:
    """As in a process that has loaded its models: the collector, which runs at every cleanup, has little to look at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _log_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prefork.memory")


def _names(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [match[1] for line in caplog.messages if (match := re.match(r"\[\w+ Memory\] (.*?): ", line))]


def _of_level(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def _uss(caplog: pytest.LogCaptureFixture, name: str) -> float:
    """gb, in the latest line of that checkpoint."""
    lines = [line for line in caplog.messages if line.startswith(f"[Host Memory] {name}: ")]
    match = re.search(r"USS: ([0-9.]+)gb", lines[-1])
    assert match is not None
    return float(match[1])


def _fill(megabytes: int = 200) -> torch.Tensor:
    return torch.ones(megabytes * MB // 4)


def test_a_checkpoint_on_a_gpu_has_exactly_this_form() -> None:
    reading = Reading("GPU", allocated=3 * GB // 2, held=2 * GB, free=13 * GB + GB // 2, total=16 * GB)
    assert reading.describe("Before Transcription") == (
        "[GPU Memory] Before Transcription: "
        "Allocated: 1.50gb (9.4%) | Reserved: 2.00gb (12.5%) | Free: 13.50gb | Total: 16.00gb"
    )


def test_a_checkpoint_on_the_host_has_exactly_this_form() -> None:
    reading = Reading("Host", allocated=3 * GB // 2, held=2 * GB, free=13 * GB + GB // 2, total=16 * GB)
    assert reading.describe("After Final Cleanup") == (
        "[Host Memory] After Final Cleanup: "
        "PSS: 2.00gb (12.5%) | USS: 1.50gb (9.4%) | Available: 13.50gb | Total: 16.00gb"
    )


def test_elevated_and_critical_usage_is_warned_of_at_the_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    monitor = MemoryMonitor(device)
    for name, percent in {"a": 70, "b": 70.5, "c": 85, "d": 85.25}.items():
        device.set(percent)
        monitor.checkpoint(name)
    elevated = "NOTICE: GPU memory usage is elevated (%s%%). Monitor for potential OOM conditions."
    assert _names(caplog) == ["a", "b", "c", "d"]
    assert _of_level(caplog, logging.WARNING) == [
        elevated % "70.5",
        elevated % "85.0",
        "WARNING: GPU memory usage is critically high (85.2%). Consider reducing batch size or using a smaller model.",
    ]
    assert "NOTICE: Host memory usage is elevated (75.0%)" in Reading("Host", 3 * GB, 3 * GB, GB, 4 * GB).find_warning()


def _run_pipeline(monitor: MemoryMonitor) -> None:
    """As a transcription does it, with tensors for models."""
    with monitor.stage(MonitoredStage.PIPELINE):
        with monitor.stage(MonitoredStage.AUDIO_PREPROCESSING):
            waveform = {"samples": torch.zeros(1000)}
        with monitor.stage(MonitoredStage.TRANSCRIPTION) as stage:
            outputs = [_fill(64)]
            stage.defer("Whisper", outputs.clear)
        with monitor.stage(MonitoredStage.DIARIZATION) as stage:
            stage.defer("Diarization Model")
            waveform["features"] = _fill(64)
            stage.defer("Waveform", waveform.clear)
        with monitor.stage(MonitoredStage.SPEAKER_ALIGNMENT) as stage:
            tensors = [_fill(64)]
            stage.defer("Alignment Tensors", tensors.clear)


def test_a_whole_pipeline_passes_all_checkpoints_in_order_and_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    monitor = MemoryMonitor(HostMeter())
    before = monitor.settle()
    for _ in range(2):
        caplog.clear()
        _run_pipeline(monitor)
        assert _names(caplog) == list(CHECKPOINTS) == NAMES
        assert monitor.settle() - before == pytest.approx(0, abs=10 * MB)


def test_a_large_tensor_that_the_cleanup_drops_is_seen_to_be_free_again(caplog: pytest.LogCaptureFixture) -> None:
    tensors: dict[str, object] = {}

    def align() -> None:
        cycle: list[object] = [_fill()]
        cycle.append(cycle)  # as models are: nobody refers to it any more, and only the collector finds that out
        tensors["emissions"] = cycle

    with MemoryMonitor(HostMeter()).stage(MonitoredStage.SPEAKER_ALIGNMENT) as stage:
        align()
        stage.defer("Alignment Tensors", tensors.clear)
    before, after = _uss(caplog, "Before Alignment Tensors Cleanup"), _uss(caplog, "After Alignment Tensors Cleanup")
    assert before - after == pytest.approx(0.195, abs=0.02)
    recovered = next(match for line in caplog.messages if (match := re.match(r"Memory recovered: ([0-9.]+)%", line)))
    assert float(recovered[1]) >= 95
    assert recovered.string.endswith(" of the 0.20gb that Speaker Alignment had added")
    assert len(caplog.records) == 5  # four checkpoints and that; nothing to warn of


def test_what_a_variable_of_the_body_keeps_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with MemoryMonitor(HostMeter()).stage(MonitoredStage.TRANSCRIPTION) as stage:
        models = {"whisper": _fill()}
        whisper = models["whisper"]
        stage.defer("Whisper", models.clear)
    assert whisper.numel()
    (error,) = _of_level(caplog, logging.ERROR)
    assert re.match(r"ERROR: 0\.(19|20)gb \(\d+\.\d%\) stays allocated after Transcription\. Look for what", error)


@pytest.mark.parametrize(
    ("end", "warnings", "errors"),
    [(10.5, [], []), (10.75, ["WARNING: 0.75gb"], []), (11, ["WARNING: 1.00gb"], []), (11.25, [], ["ERROR: 1.25gb"])],
)
def test_five_percent_that_stay_are_tolerated_and_more_than_ten_are_an_error(
    end: float, warnings: list[str], errors: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(10)
    with MemoryMonitor(device).stage(MonitoredStage.TRANSCRIPTION) as stage:
        device.set(20)
        stage.defer("Whisper", lambda: device.set(end))
    assert [line[: len("WARNING: 0.75gb")].strip() for line in _of_level(caplog, logging.WARNING)] == warnings
    assert [line[: len("ERROR: 1.25gb")] for line in _of_level(caplog, logging.ERROR)] == errors
    assert f"Memory recovered: {100 - 10 * (end - 10):.1f}% of the 10.00gb that Transcription had added" in caplog.text


def test_a_stage_is_judged_by_all_its_cleanups_together(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(10)
    with MemoryMonitor(device).stage(MonitoredStage.DIARIZATION) as stage:
        device.set(30)
        stage.defer("Diarization Model", lambda: device.set(10))
        stage.defer("Waveform", lambda: device.set(25))
    assert [line for line in caplog.messages if not line.startswith("[")] == [
        "Memory recovered: 100.0% of the 20.00gb that Diarization had added"
    ]
    assert device.releases == 2


def test_what_is_recovered_is_of_what_was_added() -> None:
    assert measure_recovery(1 * GB, 5 * GB, 2 * GB) == MemoryRecovery(added=4 * GB, left=GB)
    assert measure_recovery(4 * GB, 5 * GB, 1 * GB) == MemoryRecovery(added=GB, left=0)
    assert measure_recovery(1 * GB, 2 * GB, 3 * GB) == MemoryRecovery(added=GB, left=GB)
    assert measure_recovery(1 * GB, 1 * GB + 20 * MB, 1 * GB + 20 * MB) is None


def test_a_stage_that_raises_is_cleaned_up_and_its_error_holds_no_tensor(caplog: pytest.LogCaptureFixture) -> None:
    def multiply() -> None:
        product = _fill()
        raise RuntimeError(f"no kernel for {len(product)}")

    def infer() -> None:
        try:
            multiply()
        except RuntimeError as error:
            activations = _fill()
            raise ValueError(f"cannot infer {len(activations)}") from error

    features = [_fill()]
    meter = HostMeter()
    before = meter.glance().allocated
    with (
        pytest.raises(ValueError, match="cannot infer") as raised,
        MemoryMonitor(meter).stage(MonitoredStage.DIARIZATION) as stage,
    ):
        stage.defer("Waveform", features.clear)
        infer()
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert before - meter.glance().allocated == pytest.approx(200 * MB, abs=10 * MB)  # the waveform was there before
    diarization = [
        "Before Diarization",
        "Before Waveform Cleanup",
        "After Waveform Cleanup",
        "After Diarization (post-cleanup)",
    ]
    assert _names(caplog) == diarization  # no model was loaded, so none is cleaned up


def _fail() -> None:
    raise OSError("no such tensor")


def test_a_cleanup_that_raises_hides_neither_the_bodys_error_nor_the_other_cleanups(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []
    with pytest.raises(KeyError, match="body"), MemoryMonitor(Device()).stage(MonitoredStage.DIARIZATION) as stage:
        stage.defer("Diarization Model", lambda: done.append("model"))
        stage.defer("Waveform", _fail, lambda: done.append("waveform"))
        raise KeyError("body")
    assert done == ["waveform", "model"]
    assert _names(caplog) == list(MonitoredStage.DIARIZATION.checkpoints)
    assert _of_level(caplog, logging.ERROR) == ["ERROR: Waveform Cleanup failed: OSError: no such tensor"]


def test_a_cleanup_that_raises_is_raised_once_all_is_done_if_the_body_went_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []
    with (
        pytest.raises(OSError, match="no such tensor"),
        MemoryMonitor(Device()).stage(MonitoredStage.DIARIZATION) as stage,
    ):
        stage.defer("Waveform", _fail)
        stage.defer("Diarization Model", lambda: done.append("model"))
    assert done == ["model"]
    assert _names(caplog)[-1] == "After Diarization (post-cleanup)"


def test_a_device_that_answers_no_more_hides_neither_the_bodys_error_nor_the_cleanups() -> None:
    done: list[str] = []
    device = Device()
    with pytest.raises(KeyError, match="body"), MemoryMonitor(device).stage(MonitoredStage.DIARIZATION) as stage:
        stage.defer("Waveform", lambda: done.append("waveform"))
        stage.defer("Diarization Model", lambda: done.append("model"))
        device.failure = RuntimeError("CUDA error: device-side assert triggered")
        raise KeyError("body")
    assert done == ["waveform", "model"]


def test_a_cleanup_that_the_stage_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Diarization has no cleanup 'Whisper'; it has: Waveform, Diarization Model$"):
        Cleanups(MonitoredStage.DIARIZATION).defer("Whisper")
    with pytest.raises(ValueError, match=r"Audio Preprocessing has no cleanup 'Waveform'; it has: none$"):
        Cleanups(MonitoredStage.AUDIO_PREPROCESSING).defer("Waveform")


def test_an_alarm_goes_off_after_thirty_seconds_and_once_until_usage_has_fallen() -> None:
    alarm = Alarm()
    readings = [(0, 71), (20, 70), (21, 71), (50, 90), (51, 71), (52, 71), (99, 99), (100, 60), (101, 80), (131, 80)]
    assert [now for now, percent in readings if alarm.update(percent, now)] == [51, 131]


def test_usage_that_stays_elevated_is_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    monitor = MemoryMonitor(Device(80), clock=lambda: now)
    for now in (0.0, 10.0, 29.0, 30.0, 31.0):
        monitor.sample()
        assert len(caplog.messages) == (now >= 30)
    assert _of_level(caplog, logging.WARNING) == [
        "ALERT: GPU memory usage has been above 70% for 30 s, now 80.0%. "
        "Reduce batch size, use a smaller model, or unload models with --residency stage."
    ]


def _watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefork-memory"]


def test_a_thread_watches_while_a_stage_runs_and_is_gone_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    device = Device(80)
    monitor = MemoryMonitor(device, clock=lambda: now, interval=0.001)
    for now in (100.0, 200.0):  # noqa: B007  the clock reads it
        with (
            pytest.raises(KeyError),
            monitor.stage(MonitoredStage.PIPELINE),
            monitor.stage(MonitoredStage.TRANSCRIPTION),
        ):
            (thread,) = _watchers()
            assert thread.daemon
            device.wait_for_glance()
            raise KeyError
        assert not _watchers()
    assert [line[:5] for line in caplog.messages].count("ALERT") == 1


def test_a_thread_that_cannot_read_says_so_and_the_stage_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    device = Device()
    with MemoryMonitor(device, interval=0.001).stage(MonitoredStage.AUDIO_PREPROCESSING):
        (thread,) = _watchers()
        device.failure = RuntimeError("the driver is shutting down")
        thread.join(10)
        device.failure = None
        assert not thread.is_alive()
    expected = "ERROR: Memory is no longer monitored: RuntimeError: the driver is shutting down"
    assert _of_level(caplog, logging.ERROR) == [expected]
    assert _names(caplog) == ["Before Audio Preprocessing", "After Audio Preprocessing"]


def test_the_host_meter_sees_what_this_process_allocates_and_what_the_machine_has(tmp_path: Path) -> None:
    run_apart(_allocate_and_look, tmp_path)


def _allocate_and_look(_: Path) -> None:
    meter = HostMeter()
    before = meter.read()  # just now made, so a glance starts from there
    tensor = _fill()
    glance, after = meter.glance(), meter.read()
    assert after.allocated - before.allocated > 150 * MB
    assert glance.allocated - before.allocated == pytest.approx(200 * MB, rel=0.05)
    assert after.held >= after.allocated > tensor.nbytes
    assert after.total == read_memory().limit >= after.free > 0


# Maps a file, looks at every page of it, and stays until it is told to go.
MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
    print(sum(pages[::4096]), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells cheaply what a process has allocated")
def test_a_glance_does_not_take_for_allocated_what_another_process_no_longer_shares(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(bytes(64 * MB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert sum(pages[::4096]) == 0
        command = [sys.executable, "-c", MAP, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline() == b"0\n"
            meter = HostMeter()
            exact, glance = meter.read().allocated, meter.glance().allocated
            other.communicate()
        assert meter.read().allocated - exact > 50 * MB
        assert meter.glance().allocated - glance < 5 * MB


def test_the_gpu_meter_sees_what_torch_allocates_and_gives_back_what_it_reserves() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: CUDA is not available on this machine")
    meter: Meter = DeviceMeter("cuda:0")
    meter.release()
    before = meter.read()
    tensor = torch.ones(200 * MB // 4, device="cuda:0")
    during = meter.read()
    assert during.allocated - before.allocated == tensor.nbytes
    assert during.held >= during.allocated
    assert during.total == torch.cuda.get_device_properties(0).total_memory
    del tensor
    assert meter.glance().held == during.held
    meter.release()
    assert meter.read().held == before.held


def test_importing_the_monitor_imports_no_torch() -> None:
    code = "import sys, prefork.memory.monitor; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
