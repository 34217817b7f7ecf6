"""The pytest plugin, in a project that is not this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.fork_safe(load=load_here, infer=infer_here)
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
