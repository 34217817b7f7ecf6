"""`prefork check --device`: what is examined on a GPU, with the host's memory in place of a GPU's.

What only a GPU shows has its tests in tests/gpu.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from prefork.check import device_check
from prefork.check.device_check import DEVICE_STEPS, examine, find_obstacle, judge, part
from prefork.check.device_children import infer_on_cpu
from prefork.check.device_examination import judge_naive
from prefork.check.difference import Unlike, find_dtype, find_tolerance, flatten, measure_difference
from prefork.check.report import check
from prefork.check.steps import Finding, Step, conclude
from prefork.check.targets import Reference, Target
from prefork.cli.app import app
from prefork.platform_matrix.canary import Fate, Outcome
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.pool.requests import make_plan
from prefork.work.comparison import NotComparable
from prefork.work.loaded import Loaded

MODELS = Path(__file__).resolve().parents[1] / "data" / "models_to_check.py"
GIGABYTE = 1 << 30


@pytest.fixture
def _host_ipc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's memory can be shared as a GPU's is."""

    def find(plan: Plan, strategy: Strategy) -> str:
        return "" if strategy is Strategy.IPC else find_obstacle(plan, strategy)

    monkeypatch.setattr(device_check, "find_obstacle", find)


def _examine(target: Target) -> dict[str, Step]:
    engines = (target.engine,) if target.engine else ()
    steps = list(examine(target, make_plan(Request(engines, devices=("cpu",))), 20.0))
    assert [step.name for step in steps] == list(DEVICE_STEPS)
    return {step.name: step for step in steps}


@pytest.mark.slow
@pytest.mark.usefixtures("script_engine", "_host_ipc")
def test_an_engine_computes_in_children_on_shared_weights_and_by_a_server() -> None:
    target = Target("ready", "ready")
    steps = _examine(target)
    assert steps["naive"].finding is Finding.SKIPPED and steps["naive"].text
    rest = {name: step.finding for name, step in steps.items() if name != "naive"}
    assert rest == {name: Finding.SAFE for name in DEVICE_STEPS if name != "naive"}, steps
    assert "the largest difference is 0.0e+00" in steps["close"].text
    assert "nothing computed with them is kept" in steps["written"].details[0]
    assert re.search(r"10 segments in batches of [1-4] to 4", steps["server"].text)  # as they came
    assert conclude(target, list(steps.values())) is Finding.SAFE


@pytest.mark.slow
@pytest.mark.usefixtures("script_engine")
def test_a_result_that_depends_on_who_shares_the_batch_is_unsafe() -> None:
    steps = _examine(Target("crowded", "crowded"))
    assert steps["ipc"].finding is Finding.SKIPPED and "CUDA IPC" in steps["ipc"].text
    assert steps["written"].finding is Finding.SKIPPED and steps["written"].text
    assert steps["server"].finding is Finding.UNSAFE
    assert "; for float32, 1.6e-02 is allowed" in steps["server"].text


@pytest.mark.slow
@pytest.mark.usefixtures("_host_ipc")
def test_functions_of_the_users_are_examined_without_a_server() -> None:
    functions = (Reference.parse(f"{MODELS}:load_model"), Reference.parse(f"{MODELS}:infer"))
    steps = _examine(Target("mine", load=functions[0], infer=functions[1]))
    assert steps["ipc"].finding is Finding.SAFE and steps["written"].finding is Finding.SAFE
    assert steps["server"].finding is Finding.SKIPPED
    assert "this needs an engine" in steps["server"].text


@pytest.mark.slow
@pytest.mark.usefixtures("_host_ipc")
def test_a_model_that_does_not_survive_in_a_child_is_unsafe_there() -> None:
    functions = (Reference.parse(f"{MODELS}:load_model"), Reference.parse(f"{MODELS}:infer_only_in_the_parent"))
    steps = _examine(Target("mine", load=functions[0], infer=functions[1]))
    assert steps["child"].finding is Finding.UNSAFE and "ConnectionError" in steps["child"].text
    assert {steps[name].finding for name in ("ipc", "written", "server")} == {Finding.SKIPPED}


@pytest.mark.usefixtures("script_engine")
def test_without_an_example_there_is_nothing_to_examine() -> None:
    steps = _examine(Target("script", "script"))
    assert (steps["load"].finding, steps["load"].text) == (
        Finding.UNKNOWN,
        "the engine has no example to infer on",
    )
    assert {step.finding for name, step in steps.items() if name not in ("device", "load")} == {Finding.SKIPPED}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "cuda"], "--device cuda: CUDA_VISIBLE_DEVICES='' hides all GPUs"),
        (["--device", "cuda:7"], "--device cuda:7: CUDA_VISIBLE_DEVICES='' hides all GPUs"),
        (["--device", "graphics"], "--device: devices are cpu, cuda for all GPUs"),
        (["--device", "cuda", "--force-cpu"], "--device cuda and --force-cpu cannot go together"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_refused_in_one_line(options: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["check", "ctc", *options], env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    if "built without CUDA" in said:
        pytest.skip("this torch knows nothing of GPUs")
    assert reason in said
    assert "Traceback" not in said


def _plan(*devices: Device, system: str = "linux", asked: str = "cuda", **news: str) -> Plan:
    found = Devices("2.11.0", ("cuda",), devices)
    wsl, memory = system == "wsl", 64 << 30
    facts = Facts("linux", "1", "x", "3.11.7", ("fork", "spawn"), 8, 8, memory, memory, memory, wsl=wsl, devices=found)
    return decide(facts, Request(("ctc",), devices=(asked,), **news))  # type: ignore[arg-type]


def _gpu(number: int, **more: str) -> Device:
    return Device("cuda", f"GPU {number}", 80 * GIGABYTE, 79 * GIGABYTE, "9.0", f"0000000{number}", **more)  # type: ignore[arg-type]


def test_what_the_matrix_offers_on_a_gpu_is_said_with_what_it_does_not() -> None:
    step = judge(_plan(_gpu(0)))
    assert step.finding is Finding.SAFE and not step.details
    assert step.text == "Linux, NVIDIA GPU, GPU 0: server, ipc, spawn"
    step = judge(_plan(_gpu(0, mode="exclusive")))
    assert step.text.endswith(": server, spawn") and "exclusive process" in step.details[0]


def test_a_gpu_that_is_busy_tells_nothing() -> None:
    step = judge(_plan(_gpu(0, busy="all CUDA-capable devices are busy or unavailable", mode="exclusive")))
    assert step.finding is Finding.UNKNOWN and "are busy or unavailable" in step.text


def test_several_gpus_are_examined_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def examine_nothing(target: Target, plan: Plan, *_: object) -> Iterator[Step]:
        asked.append(plan.devices)
        yield Step("device", Finding.SAFE, "")

    monkeypatch.setattr(device_check, "examine", examine_nothing)
    plan = _plan(_gpu(0), _gpu(1))
    assert [one.labels for one in part(plan)] == [("cuda:0",), ("cuda:1",)]
    file = io.StringIO()
    examined = check([Target("ctc", "ctc")], plan, 2.0, Console(file=file, width=120), verbose=False)
    assert asked == [("GPU-00000000",), ("GPU-00000001",)]
    assert [one.name for one in examined] == ["ctc on cuda:0", "ctc on cuda:1"]
    assert "the platform matrix lets this machine compute there" in file.getvalue()


def test_a_fork_after_cuda_is_to_fail_and_in_the_way_that_is_known() -> None:
    words = (
        "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must ..."
    )
    raised = Outcome(Fate.RAISED, 0.1, None, f"raised {words}", (), f"Traceback\n{words}")
    assert judge_naive(raised)[0] is Finding.SAFE and words in judge_naive(raised)[1]
    assert judge_naive(Outcome(Fate.HUNG, 30.0, None, "hung: no result after 30 s"))[0] is Finding.SAFE
    assert judge_naive(Outcome(Fate.LIVED, 0.1, b"result"))[0] is Finding.UNKNOWN
    other = Outcome(Fate.RAISED, 0.1, None, "raised KeyError: 'x'", (), "KeyError: 'x'")
    assert judge_naive(other)[0] is Finding.UNKNOWN


def test_a_difference_is_the_worst_of_all_parts() -> None:
    reference = {"a": torch.tensor([3.0, 4.0, -torch.inf]), "b": [torch.tensor([1, 2]), 10.0]}
    found = {"a": torch.tensor([3.0, 4.5, -torch.inf]), "b": [torch.tensor([1, 2]), 10.0]}
    difference = measure_difference(flatten(found), flatten(reference))
    assert difference.where == "a"
    np.testing.assert_allclose((difference.largest, difference.relative), (0.5, 0.1))
    broken = {"a": torch.tensor([3.0, torch.nan, -torch.inf]), "b": [torch.tensor([1, 2]), 10.0]}
    assert measure_difference(flatten(broken), flatten(reference)).relative == np.inf


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"a": torch.zeros(3)}, r"the shape \(3,\), not \(2,\)"),
        ({"b": torch.zeros(2)}, "its parts are different: a, b"),
        ({"a": torch.zeros(2), "b": 1}, "its parts are different: b"),
    ],
)
def test_what_no_number_can_compare_is_said(found: object, reason: str) -> None:
    with pytest.raises(Unlike, match=reason):
        measure_difference(flatten(found), flatten({"a": torch.zeros(2)}))


def test_other_decisions_are_no_small_difference() -> None:
    with pytest.raises(Unlike, match="1 of 2 whole numbers in tokens differ"):
        measure_difference(flatten({"tokens": torch.tensor([1, 2])}), flatten({"tokens": torch.tensor([1, 3])}))
    with pytest.raises(NotComparable, match="without numbers"):
        flatten({"text": "one"})


def test_what_may_differ_depends_on_the_type_of_the_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16())
    assert find_dtype({"model": model}) == "bfloat16"
    assert find_dtype({"model": object()}) == "float32"
    assert find_tolerance("float32") < find_tolerance("bfloat16")


class _Half(torch.nn.Module):
    """Says in what it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_beside_a_gpu_in_half_precision_the_cpu_computes_in_float32(dtype: torch.dtype) -> None:
    """In half precision a large model's example takes a minute and a half on one thread."""
    engines: dict[str, Any] = {"some": None}
    loaded = Loaded(engines, {"some": _Half().to(dtype), "function": _Half().to(dtype)}, None, "cpu")
    seen: list[torch.dtype] = []

    def infer(given: Loaded) -> torch.Tensor:
        seen.extend(model.weight.dtype for model in given.models.values())
        return torch.zeros(1)

    infer_on_cpu(infer, loaded)
    assert seen == [torch.float32, dtype]  # the user's function may make inputs in half precision
