"""What asks a network for something does so in a process of its own where a fork would suffer from it (macOS)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from prefork.engines.checkpoints.fetching import FetchError, fetch_apart
from prefork.engines.checkpoints.hub import NotAvailable, fetch
from prefork.platform_matrix.systems import SYSTEM, choose


def _name_process() -> str:
    return str(os.getpid())


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SYSTEM, "network_spoils_forks", True)


@pytest.mark.usefixtures("apart")
def test_it_is_another_process_that_asks() -> None:
    assert fetch_apart(os.path.basename, "a/b") == "b"
    assert int(fetch_apart(_name_process)) != os.getpid()


@pytest.mark.usefixtures("apart")
def test_what_it_raises_or_ends_with_is_said() -> None:
    with pytest.raises(FetchError, match="No such file or directory"):
        fetch_apart(os.listdir, "/nowhere")  # type: ignore[arg-type]
    with pytest.raises(FetchError, match="the process that was to fetch it exited with status 3"):
        fetch_apart(os._exit, 3)


@pytest.mark.usefixtures("apart")
def test_a_hub_is_asked_from_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the cache, the token and the reasons that it has here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # nothing is asked from here
    with pytest.raises(NotAvailable, match="the hub cannot be reached"):
        fetch("somebody/something")
    snapshot = tmp_path / "models--somebody--something" / "snapshots" / ("0123abcd" * 5)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--somebody--something" / "refs").mkdir()
    (tmp_path / "models--somebody--something" / "refs" / "main").write_text("0123abcd" * 5)
    assert fetch("somebody/something") == snapshot
    assert fetch("somebody/something", file="config.json") == snapshot / "config.json"


def test_on_macos_it_is_always_another() -> None:
    assert choose("darwin").network_spoils_forks and not choose("linux").network_spoils_forks


@pytest.mark.skipif(SYSTEM.network_spoils_forks, reason="another process asks the hub, and finds nothing replaced")
def test_elsewhere_it_is_this_one() -> None:
    assert fetch_apart(os.getpid) == os.getpid()  # type: ignore[arg-type, comparison-overlap]
