"""The matrix: a verdict, a strategy and every reason for each kind of machine, none of which is this one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import (
    HOST,
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
    "cuda": Device("cuda", "NVIDIA H200", 140 * GB, 130 * GB, "9.0", "4b-1"),
    "rocm": Device("rocm", "AMD Instinct MI300X", 192 * GB, 190 * GB, "gfx942"),
    "mps": Device("mps", "Apple GPU (arm64)", 12 * GB, 12 * GB),
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
    ("linux", "cuda"): (_describe("linux", "cuda"), Verdict.REFUSED, Strategy.SERVER),
    ("linux", "rocm"): (_describe("linux", "rocm"), Verdict.REFUSED, Strategy.SPAWN),
    ("darwin", "cpu"): (_describe("darwin"), Verdict.CAVEATS, Strategy.FORK),
    ("darwin", "mps"): (_describe("darwin", "mps"), Verdict.REFUSED, Strategy.SPAWN),
    ("windows", "cpu"): (_describe("windows"), Verdict.REFUSED, Strategy.SPAWN),
    ("windows", "cuda"): (_describe("windows", "cuda"), Verdict.REFUSED, Strategy.SPAWN),
    ("wsl", "cpu"): (_describe("linux", wsl=True), Verdict.SAFE, Strategy.FORK),
    ("wsl", "cuda"): (_describe("linux", "cuda", wsl=True), Verdict.REFUSED, Strategy.SERVER),
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
    assert Strategy.SPAWN in row.strategies


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_what_is_decided_is_what_the_row_prefers_of_what_there_is(system: str, device: str) -> None:
    facts, _, strategy = MACHINES[system, device]
    plan = decide(facts, Request(engines=("ctc",)))
    assert not plan.refusal
    if plan.row.device == device:
        assert plan.strategy is strategy
    else:  # nobody could try that GPU
        assert plan.row.device == "cpu" and find_row(facts, device).engines == ()
        assert any(f"{device} is hidden" in reason.text for reason in plan.reasons)
    assert set(plan.row.claims) <= set(plan.reasons)
    assert plan.shared is (plan.device == "cpu" or plan.strategy is Strategy.SERVER)
    assert (plan.video is not None) is (plan.device != "cpu")
    assert bool(plan.devices) is (plan.device == "cuda")


@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_what_is_loaded_by_a_function_does_not_get_to_see_a_gpu_and_the_plan_says_so(kind: str) -> None:
    plan = decide(_describe("linux", kind), Request())
    assert (plan.row.device, plan.strategy) == ("cpu", Strategy.FORK)
    assert kind in plan.hidden
    (reason,) = plan.unused
    assert reason.text.startswith(f"{kind} is hidden from the models: whatever is loaded computes on the CPU ")


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_fork_is_refused_wherever_the_row_does_not_hold_it_and_the_remedy_is_named(system: str, device: str) -> None:
    facts, _, _ = MACHINES[system, device]
    plan = decide(facts, Request(engines=("ctc",), strategy=Strategy.FORK))
    if Strategy.FORK in plan.row.strategies:
        assert not plan.refusal and plan.strategy is Strategy.FORK
    else:
        other = "server" if Strategy.SERVER in plan.row.strategies else "spawn"
        assert plan.refusal.startswith(f"cannot fork on {plan.row.title}: ")
        assert f"; take --strategy {other}" in plan.refusal


@pytest.mark.parametrize("option", ["force_cpu", "no_mps"])
def test_hiding_mps_opens_the_fork_row_of_a_mac(option: str) -> None:
    facts = _describe("darwin", "mps")
    assert decide(facts, Request()).strategy is Strategy.SPAWN
    hidden: dict[str, Any] = {option: True}
    plan = decide(facts, replace(Request(), **hidden))
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


@pytest.mark.parametrize(
    ("facts", "request_", "reason"),
    [
        (_describe("linux"), Request(("ctc",)), "torch 2.11.0 is built without CUDA"),
        (_describe("linux", "cuda"), Request(("ctc",), force_cpu=True), "all are hidden from the models here"),
        (_describe("linux", "cuda"), Request(("ctc",), devices=("cpu",)), "all are hidden from the models here"),
        (replace(_describe("linux"), devices=Devices("2.11.0", ("cuda",))), Request(("ctc",)), "finds no GPU"),
    ],
)
def test_ipc_without_cuda_is_refused_with_the_reason_and_what_to_take(
    facts: Facts, request_: Request, reason: str
) -> None:
    plan = decide(facts, replace(request_, strategy=Strategy.IPC))
    assert plan.refusal.startswith("cannot use strategy ipc on Linux, CPU: CUDA IPC shares the memory of NVIDIA GPUs")
    assert reason in plan.refusal and plan.refusal.endswith("; take --strategy fork")


def test_a_function_computes_in_the_worker_so_that_no_server_can_have_its_model() -> None:
    assert "this needs an engine" in decide(_describe("linux"), Request(strategy=Strategy.SERVER)).refusal
    assert decide(_describe("linux", "cuda"), Request(devices=("cuda",))).strategy is Strategy.IPC


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


def test_workers_on_mps_share_what_metal_recommends_however_much_memory_the_machine_has() -> None:
    """Each may else take 1.7 times all of it."""
    gpu = Device("mps", "Apple GPU (arm64)", 12 * GB, 12 * GB)
    facts = replace(_describe("darwin", "mps", cores=10, available=60 * GB), devices=Devices("2", ("mps",), (gpu,)))
    plan = decide(replace(facts, memory=64 * GB, installed_memory=64 * GB), Request(weights=3 * GB))
    assert plan.workers == 2 and "10.80 GB on Apple GPU (arm64)" in plan.capped
    assert plan.video is not None and plan.allowance == plan.video.room // 2
    assert plan.batch_memory is None and not plan.devices
    assert decide(facts, Request(weights=3 * GB, force_cpu=True)).allowance is None
    small = decide(facts, Request(weights=14 * GB, workers=1))
    assert "not enough memory on a GPU" in small.refusal


@pytest.mark.parametrize(("system", "device"), MACHINES)
def test_a_machine_too_small_for_one_copy_is_refused_with_the_arithmetic(system: str, device: str) -> None:
    facts, _, _ = MACHINES[system, device]
    plan = decide(replace(facts, memory=4 * GB, available=3 * GB), Request(weights=5 * GB))
    assert plan.refusal.startswith("not enough memory for one worker: ")
    assert "of 2.60 GB (3.00 GB available less a reserve of 0.40 GB)" in plan.refusal
    assert "take a smaller model or make room" in plan.refusal
    assert plan.workers == 1


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


def test_where_python_cannot_fork_or_must_not_every_worker_of_a_gpu_has_its_own_copy() -> None:
    facts = replace(_describe("linux", "cuda"), start_methods=("spawn",))
    plan = decide(facts, Request(("ctc",)))
    assert (plan.strategy, plan.shared, plan.refusal) == (Strategy.SPAWN, False, "")
    later = decide(_describe("linux", "cuda"), Request(("ctc",))).learn(unsafe="thread x is running")
    assert (later.strategy, later.devices) == (Strategy.SPAWN, ("GPU-4b-1",))
    for strategy in (Strategy.IPC, Strategy.SERVER):
        assert "take --strategy spawn" in decide(facts, Request(("ctc",), strategy=strategy)).refusal


@pytest.mark.parametrize(
    ("facts", "news", "why"),
    [
        (_describe("linux", "cuda"), {"no_ipc": "cuIpcGetMemHandle: CUDA_ERROR_NOT_SUPPORTED"}, "NOT_SUPPORTED"),
        (_describe("linux", "cuda", wsl=True), {}, "reported not to work there"),
    ],
    ids=["found out", "WSL"],
)
def test_ipc_that_does_not_work_falls_back_to_the_server_and_says_why(
    facts: Facts, news: dict[str, str], why: str
) -> None:
    plan = decide(facts, Request(("ctc",), strategy=Strategy.IPC)).learn(**news)  # type: ignore[arg-type]
    assert (plan.strategy, plan.refusal) == (Strategy.SERVER, "")
    assert why in plan.fallback and plan.fallback.endswith("; going on with server")
    assert plan.fallback in [reason.text for reason in plan.reasons]


def test_ipc_is_what_it_was_asked_for_and_costs_a_context_for_each_worker() -> None:
    plan = decide(_describe("linux", "cuda"), Request(("ctc",), strategy=Strategy.IPC, weights=GB, workers=4))
    assert (plan.strategy, plan.workers, plan.fallback) == (Strategy.IPC, 4, "")
    assert plan.video is not None
    assert plan.video.describe(4) == (
        "weights 1.00 GB + 5 contexts 3.50 GB + batches 112.50 GB = 117.00 GB of 117.00 GB on cuda:0 "
        "(130.00 GB free, less a reserve of 13.00 GB)"
    )
    assert plan.batch_memory == 112_500_000_000 // 4


def test_a_server_on_the_cpu_has_the_model_once_and_its_workers_none() -> None:
    needs = Request(("ctc",), strategy=Strategy.SERVER, weights=3 * GB, private=GB, libraries=GB)
    plan = decide(_describe("linux", available=9 * GB), needs)
    assert plan.budget.once == 2 * GB + 3 * GB + GB and plan.budget.each == HOST
    assert plan.workers == 8 and plan.shared and not plan.refusal
    assert plan.learn(host=2 * HOST).budget.each == 2 * HOST
    assert plan.budget.describe(8).startswith(
        "libraries 1.00 GB + server (libraries 1.00 GB + weights 3.00 GB + a batch 1.00 GB) + 8 x (0.10 GB own) = "
    )


def test_each_gpu_has_a_server_and_each_server_has_the_libraries() -> None:
    two = replace(_describe("linux"), devices=Devices("2", ("cuda",), (GPU["cuda"], replace(GPU["cuda"], uuid="4b-2"))))
    plan = decide(two, Request(("ctc",), devices=("cuda",), weights=3 * GB, libraries=GB, workers=2))
    assert (plan.strategy, plan.servers, plan.server_threads) == (Strategy.SERVER, 2, 8)
    assert plan.budget.once == GB + 2 * (GB + 3 * GB)
    assert "libraries 1.00 GB + 2 x server (libraries 1.00 GB + weights 3.00 GB) + 2 x " in plan.budget.describe(2)
    assert decide(two, Request(("ctc",), devices=("cuda",), strategy=Strategy.SPAWN)).servers == 0


def test_copies_on_a_gpu_are_capped_by_its_memory_and_the_arithmetic_is_shown() -> None:
    gpu = Device("cuda", "Tesla T4", 16 * GB, 15 * GB, "7.5", "t4")
    facts = replace(_describe("linux"), devices=Devices("2.11.0", ("cuda",), (gpu,)))
    plan = decide(facts, Request(("ctc",), strategy=Strategy.SPAWN, weights=3 * GB))
    assert plan.workers == 3  # of 13.5 GB: 4.1 GB each
    assert plan.capped.endswith("; 3 fit") and "8 x weights 3.00 GB + 8 contexts 4.00 GB" in plan.capped
    two = replace(facts, devices=Devices("2.11.0", ("cuda",), (gpu, replace(gpu, uuid="t5"))))
    both = decide(two, Request(("ctc",), strategy=Strategy.SPAWN, weights=3 * GB, devices=("cuda",)))
    assert (both.workers, both.devices) == (6, ("GPU-t4", "GPU-t5"))


def test_memory_of_a_gpu_that_nobody_has_asked_is_all_but_a_tenth() -> None:
    gpu = Device("cuda", "Tesla T4", 16 * GB, 0, "7.5", "t4")
    plan = decide(replace(_describe("linux"), devices=Devices("2", ("cuda",), (gpu,))), Request(("ctc",)))
    assert plan.video is not None and plan.video.free == 14_400_000_000
    assert "(14.40 GB in all less a tenth, less a reserve of 1.44 GB)" in plan.video.describe(1)


def test_weights_that_do_not_fit_on_the_gpu_are_refused_and_a_gpu_that_others_use_is_called_busy() -> None:
    gpu = Device("cuda", "Tesla T4", 16 * GB, 15 * GB, "7.5", "t4")
    facts = replace(_describe("linux", available=30 * GB), devices=Devices("2", ("cuda",), (gpu,)))
    small = decide(facts, Request(("ctc",), weights=20 * GB))
    assert small.refusal.startswith(
        "not enough memory on a GPU: weights 20.00 GB + 1 context 0.50 GB + batches 0.60 GB"
    )
    assert small.refusal.endswith("; take a smaller model, --dtype bfloat16 or --devices cpu")
    taken = replace(facts, devices=Devices("2", ("cuda",), (replace(gpu, free=2 * GB),)))
    busy = decide(taken, Request(("ctc",), weights=3 * GB, devices=("cuda:0",)))
    assert busy.refusal.startswith("cuda:0 is busy: weights 3.00 GB") and "(2.00 GB free" in busy.refusal


def test_a_gpu_for_one_process_alone_has_a_server_and_no_second_context() -> None:
    gpu = replace(GPU["cuda"], mode="exclusive")
    facts = replace(_describe("linux"), devices=Devices("2", ("cuda",), (gpu,)))
    assert decide(facts, Request(("ctc",))).strategy is Strategy.SERVER
    ipc = decide(facts, Request(("ctc",), strategy=Strategy.IPC))
    assert ipc.strategy is Strategy.SERVER and "only one process may compute on cuda:0" in ipc.fallback
    copies = decide(facts, Request(("ctc",), strategy=Strategy.SPAWN))
    assert copies.workers == 1 and "exclusive process" in copies.capped


def test_a_gpu_that_another_process_has_for_itself_is_refused_if_it_was_named_and_else_left_out() -> None:
    gpu = replace(GPU["cuda"], mode="exclusive", free=0, busy="another process has it for itself")
    facts = replace(_describe("linux"), devices=Devices("2", ("cuda",), (gpu,)))
    named = decide(facts, Request(("ctc",), devices=("cuda:0",)))
    assert named.refusal.startswith("--devices cuda:0: cuda:0 (NVIDIA H200) cannot be used: another process has it")
    plan = decide(facts, Request(("ctc",)))
    assert (plan.device, plan.strategy, plan.refusal) == ("cpu", Strategy.FORK, "")
    assert plan.fallback.startswith("no GPU can be used: ") and plan.fallback.endswith("; going on on the CPU")


def test_an_engine_that_cannot_compute_on_a_gpu_hides_it_and_is_refused_if_one_was_named() -> None:
    cannot = (("ctc", "int8 weights"),)
    plan = decide(_describe("linux", "cuda"), Request(("ctc",), cannot=cannot))
    assert plan.device == "cpu" and "ctc computes on the CPU alone (int8 weights)" in plan.unused[0].text
    named = decide(_describe("linux", "cuda"), Request(("ctc",), cannot=cannot, devices=("cuda",)))
    assert named.refusal == "--devices cuda: ctc computes on the CPU alone (int8 weights); take --devices cpu"


@pytest.mark.parametrize(
    ("facts", "request_", "refusal"),
    [
        (_describe("linux", "cuda"), Request(devices=("cuda:0",), force_cpu=True), "--devices cuda:0 and --force-cpu"),
        (_describe("darwin", "mps"), Request(devices=("mps",), no_mps=True), "--devices mps and --no-mps"),
        (_describe("linux", "rocm"), Request(devices=("cuda",)), "are AMD's"),
        (_describe("windows", "cuda"), Request(devices=("cuda",)), "nobody could try Windows, NVIDIA GPU"),
        (_describe("linux", "cuda"), Request(devices=("mps",)), "no Apple GPU"),
    ],
)
def test_devices_that_were_named_are_never_quietly_replaced_by_the_cpu(
    facts: Facts, request_: Request, refusal: str
) -> None:
    plan = decide(facts, replace(request_, engines=("ctc",)))
    assert refusal in plan.refusal
    assert not plan.devices


def test_mps_can_be_named_and_the_cpu_too() -> None:
    assert decide(_describe("darwin", "mps"), Request(("ctc",), devices=("mps",))).row.device == "mps"
    plan = decide(_describe("linux", "cuda"), Request(("ctc",), devices=("cpu",)))
    assert (plan.device, plan.hidden) == ("cpu", ("cuda", "rocm", "mps"))
    assert "all GPUs are hidden from the models (--devices cpu)" in [reason.text for reason in plan.reasons]


_CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


def _describe_gpus(*gpus: Device, **news: Any) -> Facts:
    devices = Devices("2.14.1+cu130", ("cuda",), gpus, architectures=_CU130)
    return replace(_describe("linux"), devices=replace(devices, **news))


def test_a_card_that_torch_has_no_code_for_is_not_computed_on_and_the_plan_says_so() -> None:
    old = Device("cuda", "Tesla V100", 16 * GB, 15 * GB, "7.0", "1")
    plan = decide(_describe_gpus(old), Request(engines=("ctc",)))
    assert (plan.device, plan.refusal) == ("cpu", "")
    assert "torch 2.14.1+cu130 has no code for its compute capability 7.0" in plan.fallback
    assert plan.fallback.endswith("going on on the CPU")
    asked = decide(_describe_gpus(old), Request(engines=("ctc",), devices=("cuda:0",)))
    assert "cuda:0 (Tesla V100) cannot be used: torch 2.14.1+cu130 has no code" in asked.refusal
    both = decide(_describe_gpus(old, GPU["cuda"]), Request(engines=("ctc",)))
    assert both.labels == ("cuda:1",)


def test_a_driver_that_is_too_old_is_said_to_be_so_where_a_gpu_could_be_expected() -> None:
    error = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)"
    plan = decide(_describe_gpus(error=error), Request(engines=("ctc",)))
    assert (plan.device, plan.refusal) == ("cpu", "")
    assert error in plan.fallback and "update NVIDIA's driver" in plan.fallback


@pytest.mark.parametrize("strategy", [Strategy.IPC, Strategy.SPAWN])
def test_under_nvidias_mps_several_processes_compute_on_an_exclusive_gpu(strategy: Strategy) -> None:
    alone = replace(GPU["cuda"], mode="exclusive")
    served = replace(alone, multi_process_service=True)
    request = Request(engines=("ctc",), strategy=strategy, workers=4)
    plan = decide(_describe_gpus(served), request)
    assert (plan.strategy, plan.workers, plan.fallback) == (strategy, 4, "")
    assert any("NVIDIA's MPS" in reason.text for reason in plan.reasons)
    other = decide(_describe_gpus(alone), request)
    assert other.strategy is Strategy.SERVER or other.workers == 1


@pytest.mark.parametrize(("capability", "context"), [("8.9", "0.50"), ("9.0", "0.70"), ("12.0", "0.70"), ("", "0.50")])
def test_a_context_is_planned_with_more_from_hopper_on(capability: str, context: str) -> None:
    gpu = replace(GPU["cuda"], capability=capability)
    plan = decide(_describe_gpus(gpu), Request(engines=("ctc",), weights=GB, strategy=Strategy.SPAWN, workers=2))
    assert plan.video is not None
    assert f"2 contexts {2 * float(context):.2f} GB" in plan.video.describe(2)
    one = decide(_describe_gpus(gpu), Request(engines=("ctc",), weights=GB))
    assert one.video is not None and f"1 context {context} GB" in one.video.describe(1)
