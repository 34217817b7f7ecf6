"""The pytest plugin, in a project that is not this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import decide
from prefork.pytest_plugin import require_fork_safe

MODELS = Path(__file__).resolve().parents[1] / "data" / "models_to_check.py"
TESTS = """
import sys

import pytest

import models
from models import infer, infer_and_exit, load_model


def load_here():
    return load_model()


def infer_here(model):
    return infer(model)


@pytest.mark.fork_safe(load=load_here, infer=infer_here, force_cpu=True)
def test_marked_and_safe():
    assert "prefork.pytest_plugin" in sys.modules


@pytest.mark.fork_safe(load_model, infer_and_exit, deadline=5)
def test_marked_and_unsafe():
    raise AssertionError("the test itself must not run")


def test_fixture(fork_safe):
    fork_safe(load_model, infer)


def test_fixture_of_an_unsafe_model(fork_safe):
    fork_safe(models.load_training, infer)


def test_fixture_of_what_cannot_be_found(fork_safe):
    fork_safe(lambda: load_model(), infer)


def test_fixture_of_what_cannot_be_loaded(fork_safe):
    fork_safe(models.load_nothing, infer)
"""


@pytest.mark.dependencies
@pytest.mark.slow
def test_the_marker_and_the_fixture_examine_a_tests_model(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS.read_text())
    (tmp_path / "test_models.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    lines = done.stdout
    assert "4 failed, 2 passed" in lines, lines
    assert "the test itself must not run" not in lines
    assert "the child exited with status 0 before it had a result" in lines
    assert "wrote to shared weights (1." in lines
    assert "<lambda> cannot be found by another process; use a top-level function" in lines
    assert "returned nothing; it must return the model" in lines


MAC = Facts(
    system="darwin",
    release="1",
    machine="arm64",
    python="3.11.7",
    start_methods=("spawn", "fork"),
    cores=8,
    installed_cores=8,
    memory=16 << 30,
    installed_memory=16 << 30,
    available=1 << 20,
    devices=Devices("2.11.0", ("mps",), (Device("mps", "Apple GPU", 16 << 30, 9 << 30),)),
)


def load_model() -> None:
    raise AssertionError("nothing may be loaded")


def infer(model: object) -> None:
    raise AssertionError("nothing may be loaded")


def test_where_nothing_forks_it_skips_and_where_memory_is_short_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU of this Mac is what forbids to fork; without it, there is not enough memory."""
    monkeypatch.setattr("prefork.pool.requests.make_plan", lambda request: decide(MAC, request))
    with pytest.raises(pytest.skip.Exception, match="macOS, MPS: fork is refused"):
        require_fork_safe(load_model, infer)
    with pytest.raises(pytest.fail.Exception, match=r"cannot tell .*not enough memory for one worker"):
        require_fork_safe(load_model, infer, force_cpu=True)
