"""A model of transformers, which asks CUDA something in every forward pass, under every strategy; and on the CPU of a
machine that has a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefork import Runtime
from tests.gpu import models
from tests.gpu.machine import DEVICES, STRATEGIES

_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_wav2vec2(tmp_path_factory.mktemp("wav2vec2") / "model", _SIZES)


def _run(folder: Path, strategy: str | None, devices: tuple[str, ...]) -> tuple[str, dict[str, list[str]], list[str]]:
    """The strategy that it came to, what its processes have open of the GPU's driver, and what was said."""
    notices: list[str] = []
    options = {"model": str(folder), "dtype": "float32"}
    with Runtime(
        "ctc", options=options, workers=2, strategy=strategy, devices=devices, notice=notices.append
    ) as runtime:
        results = list(runtime.map(models.make_jobs(folder.parent / "audio", 4, 5.0)))
        assert [result.error for result in results] == [None] * 4
        found = {name: _list_open(pid) for name, pid in runtime.supervisor.list_pids().items()}
        return runtime.plan.strategy, found, notices


def _list_open(pid: int) -> list[str]:
    links = (str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return sorted({link for link in links if "nvidia" in link})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_shared_as_was_asked_for(strategy: str, wav2vec2: Path) -> None:
    came_to, found, notices = _run(wav2vec2, strategy, DEVICES)
    print(f"\n{strategy}: {found}; {'; '.join(notices)}")
    assert came_to == strategy, notices
    assert found.get("zygote", []) == []  # what forks has nothing of the driver


def test_on_the_cpu_workers_are_forked_whatever_the_driver_leaves_open(wav2vec2: Path) -> None:
    came_to, found, notices = _run(wav2vec2, None, ("cpu",))
    print(f"\n--devices cpu: {found}; {'; '.join(notices)}")
    assert came_to == "fork", notices
