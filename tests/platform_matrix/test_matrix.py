"""The matrix: a verdict, a strategy and every reason for each kind of machine, none of which is this one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from platform_matrix.devices import Device, Devices
from platform_matrix.facts import Facts
from platform_matrix.matrix import (
    BUILT,
    LIBRARIES,
    PRIVATE,
    ROWS,
    Request,
    Strategy,
    Verdict,
    decide,
    find_row,
)

GB = 1_000_000_000
GPU = {
    "cuda": Device("cuda", "NVIDIA H200", 140 * GB, 139 * GB, "9.0"),
    "rocm": Device("rocm", "AMD Instinct MI300X", 192 * GB, 190 * GB, "gfx942"),
    "mps": Device("mps", "Apple GPU (arm64)", 16 * GB, 9 * GB),
}


def _describe(system: str, *devices: str, cores: int = 8, available: int = 24 * GB, wsl: bool = False) -> Facts:
    methods = {
        "linux": ("fork", "spawn", "forkserver"),
        "darwin": ("spawn", "fork", "forkserver"),
        "windows": ("spawn",),
    }
    present = tuple(GPU[kind] for kind in devices)
    return Facts(
        system=system,
        release="1",
        machine="x86_64",
        python="3.11.7",
        start_methods=methods[system],
        cores=cores,
        installed_cores=16,
        memory=32 * GB,
        installed_memory=32 * GB,
        available=available,
        wsl=wsl,
        devices=Devices("2.11.0", devices, present),
    )


MACHINES = {
    ("linux", "cpu"): (_describe("linux"), Verdict.SAFE, Strategy.FORK),
    ("linux", "cuda"): (_describe("linux", "cuda"), Verdict.REFUSED, Strategy.SPAWN),
    ("linux", "rocm"): (_describe("linux", "rocm"), Verdict.REFUSED, Strategy.SPAWN),
    ("darwin", "cpu"): (_describe("darwin"), Verdict.CAVEATS, Strategy.FORK),
    ("darwin", "mps"): (_describe("darwin", "mps"), Verdict.REFUSED, Strategy.SPAWN),
    ("windows", "cpu"): (_describe("windows"), Verdict.REFUSED, Strategy.SPAWN),
    ("windows", "cuda"): (_describe("windows", "cuda"), Verdict.REFUSED, Strategy.SPAWN),
    ("wsl", "cpu"): (_describe("linux", wsl=True), Verdict.SAFE, Strategy.FORK),
    ("wsl", "cuda"): (_describe("linux", "cuda", wsl=True), Verdict.REFUSED, Strategy.SPAWN),
}


def test_every_row_is_tested_here() -> None:
    assert {(row.system, row.device) for row in ROWS} == set(MACHINES)


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_a_machine_has_its_row_and_the_row_its_verdict(system: str, device: str) -> None:
    facts, verdict, _ = MACHINES[system, device]
    row = find_row(facts, device)
    assert (row.system, row.device, row.verdict) == (system, device, verdict)
    assert row.claims and all(claim.source.startswith("https://") for claim in row.claims)
    assert (Strategy.FORK in row.strategies) is (verdict is not Verdict.REFUSED)
    assert any(strategy in BUILT for strategy in row.strategies)


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_what_is_decided_is_what_the_row_prefers_of_what_there_is(system: str, device: str) -> None:
    facts, _, strategy = MACHINES[system, device]
    plan = decide(facts, Request(engines=("ctc",)))
    assert not plan.refusal
    if plan.row.device == device:
        assert plan.strategy is strategy
    else:  # no engine of this version computes on that GPU
        assert plan.row.device == "cpu" and find_row(facts, device).engines == ()
        assert any(f"{device} is hidden" in reason.text for reason in plan.reasons)
    assert set(plan.row.claims) <= set(plan.reasons)
    assert plan.shared is (plan.device == "cpu")


@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_what_is_loaded_by_a_function_does_not_get_to_see_a_gpu_and_the_plan_says_so(kind: str) -> None:
    plan = decide(_describe("linux", kind), Request())
    assert (plan.row.device, plan.strategy) == ("cpu", Strategy.FORK)
    assert kind in plan.hidden
    assert [reason.text for reason in plan.unused] == [
        f"{kind} is hidden from the models: whatever is loaded computes on the CPU in this version"
    ]


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_fork_is_refused_wherever_the_row_does_not_hold_it_and_the_remedy_is_named(system: str, device: str) -> None:
    facts, _, _ = MACHINES[system, device]
    plan = decide(facts, Request(engines=("ctc",), strategy=Strategy.FORK))
    if Strategy.FORK in plan.row.strategies:
        assert not plan.refusal and plan.strategy is Strategy.FORK
    else:
        assert plan.refusal.startswith(f"cannot fork on {plan.row.title}: ") and "--strategy spawn" in plan.refusal


@pytest.mark.parametrize("option", ["force_cpu", "no_mps"])
def test_hiding_mps_opens_the_fork_row_of_a_mac(option: str) -> None:
    facts = _describe("darwin", "mps")
    assert decide(facts, Request()).strategy is Strategy.SPAWN
    plan = decide(facts, replace(Request(), **{option: True}))
    assert (plan.row.device, plan.strategy) == ("cpu", Strategy.FORK)
    assert "mps" in plan.hidden


def test_the_cpu_row_hides_every_gpu_and_the_mps_row_does_not_hide_its_own() -> None:
    assert decide(_describe("linux", "cuda"), Request(force_cpu=True)).hidden == ("cuda", "rocm", "mps")
    assert "mps" not in decide(_describe("darwin", "mps"), Request()).hidden


def test_devices_that_cannot_be_asked_are_hidden() -> None:
    facts = replace(_describe("darwin"), devices=Devices("2.11.0", ("mps",), (), "torch gave no answer within 60 s"))
    plan = decide(facts, Request())
    assert plan.hidden == ("cuda", "rocm", "mps")
    assert any("torch gave no answer" in reason.text for reason in plan.reasons)


@pytest.mark.parametrize("strategy", [Strategy.IPC, Strategy.SERVER])
def test_a_strategy_that_this_version_lacks_is_refused(strategy: Strategy) -> None:
    plan = decide(_describe("linux"), Request(strategy=strategy))
    assert f"strategy {strategy} is not part of this version; take --strategy fork" in plan.refusal


def test_a_system_that_nobody_has_tried_forks_nothing() -> None:
    plan = decide(replace(_describe("linux"), system="sunos"), Request())
    assert (plan.strategy, plan.row.verdict) == (Strategy.SPAWN, Verdict.REFUSED)
    assert decide(replace(_describe("linux"), system="sunos"), Request(strategy=Strategy.FORK)).refusal


def test_a_python_that_cannot_fork_does_not() -> None:
    facts = replace(_describe("linux"), start_methods=("spawn",))
    assert decide(facts, Request()).strategy is Strategy.SPAWN
    assert "Python cannot fork here" in decide(facts, Request(strategy=Strategy.FORK)).refusal


def test_workers_take_the_cores_and_share_them_as_threads() -> None:
    facts = _describe("linux", cores=8)
    assert (decide(facts, Request()).workers, decide(facts, Request()).threads) == (8, 1)
    plan = decide(facts, Request(workers=3))
    assert (plan.workers, plan.threads) == (3, 2)
    assert decide(facts, Request(workers=3, threads=5)).threads == 5


def test_forked_workers_are_capped_by_their_own_memory() -> None:
    room = LIBRARIES + 2 * GB + 3 * PRIVATE
    facts = _describe("linux", cores=64, available=room + 3 * GB)
    facts = replace(facts, memory=30 * GB, available=room + 2 * 1024**3 + 10)  # the reserve is 2 GiB at most
    plan = decide(facts, Request(weights=2 * GB))
    assert plan.workers == 3
    assert any(reason.text.endswith("; 3 fit") for reason in plan.reasons)
    assert plan.budget.describe(3) == (
        "weights 2.00 GB + libraries 0.75 GB + 3 x (0.15 GB own) = 3.20 GB of 3.20 GB "
        "(5.35 GB available less a reserve of 2.15 GB)"
    )


def test_the_number_of_whole_copies_comes_from_memory_and_the_arithmetic_is_shown() -> None:
    facts = _describe("darwin", "mps", cores=10, available=11 * GB)
    plan = decide(facts, Request(weights=3 * GB))
    assert not plan.shared and plan.workers == 2
    assert "2 x (weights 3.00 GB + libraries 0.75 GB + 0.15 GB own) = 7.80 GB of 8.85 GB" in plan.budget.describe(2)
    mapped = decide(facts, Request(weights=3 * GB, strategy=Strategy.SPAWN, force_cpu=True))
    assert mapped.shared and mapped.workers == 3  # 2 x 3 GB while one starts, then 0.9 GB each


def test_more_workers_than_fit_are_capped_even_if_they_were_asked_for() -> None:
    plan = decide(_describe("darwin", "mps", available=11 * GB), Request(weights=3 * GB, workers=6))
    assert plan.workers == 2
    assert any(reason.text.startswith("6 workers would take 6 x (weights 3.00 GB") for reason in plan.reasons)


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_a_machine_too_small_for_one_copy_is_refused_with_the_arithmetic(system: str, device: str) -> None:
    facts, _, _ = MACHINES[system, device]
    plan = decide(replace(facts, memory=4 * GB, available=3 * GB), Request(weights=5 * GB))
    assert plan.refusal.startswith("not enough memory for one worker: ")
    assert "of 2.60 GB (3.00 GB available less a reserve of 0.40 GB)" in plan.refusal
    assert "take a smaller model or make room" in plan.refusal


def test_a_plan_can_be_made_again_when_the_weights_are_known() -> None:
    facts = _describe("linux", cores=64, available=8 * GB)
    plan = decide(facts, Request())
    assert any("how large the weights are shows" in reason.text for reason in plan.reasons)
    assert plan.learn(weights=5 * GB) == decide(facts, Request(weights=5 * GB))
    assert plan.learn(weights=5 * GB).workers < plan.workers


def test_a_process_that_must_not_fork_falls_back_unless_fork_was_asked_for() -> None:
    facts = _describe("linux")
    other = decide(facts, Request()).learn(unsafe="thread x is running").learn(weights=GB)
    assert other.strategy is Strategy.SPAWN and not other.refusal
    assert other.reasons[0].text == "cannot fork: thread x is running"
    insisted = decide(facts, Request(strategy=Strategy.FORK)).learn(unsafe="thread x is running")
    assert insisted.refusal == "cannot fork: thread x is running; take --strategy spawn"
