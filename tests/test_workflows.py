"""The workflows for other systems: what they call is there, and says what they look for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from prefork.check.fork_check import judge
from prefork.check.steps import Finding
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import Request, decide

ROOT = Path(__file__).parents[1]
JOBS: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / ".github" / "workflows" / "fork-safety.yml").read_text(encoding="utf-8")
)["jobs"]


def _list_commands(job: str) -> str:
    return "\n".join(step["run"] for step in JOBS[job]["steps"] if "run" in step)


@pytest.mark.parametrize("job", JOBS)
def test_what_a_job_calls_is_there(job: str) -> None:
    paths = re.findall(r"\b(?:tests|prefork)/[\w./]+", _list_commands(job))
    assert job == "linux" or paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_windows_and_macs_are_tried_from_virtual_environments() -> None:
    for job, folder in (("windows", ".venv/Scripts/"), ("macos", ".venv/bin/")):
        commands = _list_commands(job)
        assert "python -m venv .venv" in commands
        called = re.findall(r"(\S*)(?:prefork|python) (?:--|-m pytest|matrix|check|align|tests/)", commands)
        assert called and set(called) <= {folder}


@pytest.mark.parametrize(
    ("system", "kind", "verdict", "strategy"),
    [
        ("darwin", "", JOBS["macos"]["strategy"]["matrix"]["include"][0]["verdict"], "fork"),
        ("darwin", "mps", JOBS["macos"]["strategy"]["matrix"]["include"][1]["verdict"], "spawn"),
        ("windows", "", "fork is refused", "spawn"),
    ],
)
def test_the_verdict_that_a_job_looks_for_is_the_matrix_s(system: str, kind: str, verdict: str, strategy: str) -> None:
    methods = ("spawn",) if system == "windows" else ("spawn", "fork")
    present = (Device(kind, "a GPU", 16 << 30, 16 << 30),) if kind else ()
    devices = Devices("2.11.0", (kind,) if kind else (), present)
    plan = decide(
        Facts(system, "1", "arm64", "3.11.7", methods, 4, 4, 16 << 30, 16 << 30, 12 << 30, devices=devices),
        Request(engines=("ctc",)),
    )
    assert verdict in judge(plan).text and plan.strategy == strategy
    assert (judge(plan).finding is Finding.UNSAFE) is (strategy == "spawn")


def test_what_a_mac_of_github_cannot_do_is_said() -> None:
    steps = {step.get("name"): step for step in JOBS["macos"]["steps"]}
    assert steps["align the samples"]["if"] == "matrix.options || steps.mps.outputs.usable == 'yes'"
    assert steps["what was not tried here"]["if"] == "!matrix.options && steps.mps.outputs.usable != 'yes'"
    assert "GITHUB_STEP_SUMMARY" in steps["what was not tried here"]["run"]
