"""The performance log: what it says of a run, as JSON that anybody can read, and a disk that does not take it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

from prefork.cli.report import tabulate
from prefork.memory.tally import Tally
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import Request, Strategy, decide
from prefork.run import performance
from prefork.run.summary import GPULoad, Summary
from prefork.wire.specification import Inventory

FULL = Path("/dev/full")
NAMES = {"command": "align", "engine": "ctc", "model": "größer \ud800", "dtype": "float32"}
FACTS = Facts(
    system="linux",
    release="6.8.0",
    machine="x86_64",
    python="3.12.3",
    start_methods=("fork", "spawn", "forkserver"),
    cores=4,
    installed_cores=4,
    memory=16 << 30,
    installed_memory=16 << 30,
    available=10 << 30,
    devices=Devices(),
)
GPU = Device("cuda", "NVIDIA H200", 139_800_000_000, 130_000_000_000, "9.0", "1")
SUMMARY = Summary(
    done=3,
    skipped=2,
    failed={"a.cha": "it is broken", "b.cha": "so is this"},
    unfinished=1,
    notices={},
    warnings={},
    audio_seconds=120.0,
    utterances=0,
    words=0,
    wall_seconds=8.0,
    load_seconds=3.0,
    strategy="fork",
    workers=4,
    threads=1,
    shared=True,
    weights=36_000_000,
    private=50_000_000,
    total=900_000_000,
    measured=10,
    close=9,
    throttles=1,
    throttled=2.5,
    shrinks=0,
    starved=0,
    deaths=0,
    target="aligned",
)


def _describe(
    tally: Tally | None = None, steps: Mapping[tuple[str, str], float] | None = None, tf32: bool | None = None
) -> dict[str, Any]:
    inventory = Inventory(weights=36_000_000, seconds=3.25, fingerprints={"ctc": {}}, tf32=tf32)
    plan = decide(FACTS, Request(engines=("ctc",)))
    return performance.describe(NAMES, SUMMARY, tally or Tally(), steps or {}, plan, inventory)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _write_and_read(path: Path, content: Mapping[str, Any]) -> Any:
    notices: list[str] = []
    performance.write(path, content, notices.append)
    assert notices == []
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def test_a_run_is_described_by_its_stages_with_their_steps_and_peaks(tmp_path: Path) -> None:
    tally = Tally(loaded=700, peaks={("ctc", "split"): 20, ("ctc", "run"): 300, ("", "call"): 5}, most=900, lowest=4000)
    steps = {"split": 0.5, "prepare": 1.0, "infer": 6.0, "finish": 0.25, "join": 0.125, "write": 0.25, "other": 9.0}
    content = _describe(tally, {("ctc", step): seconds for step, seconds in steps.items()} | {("rev", "split"): 5.0})
    assert content["stages"] == [
        {"stage": "load", "seconds": 3.25, "peak": 700},
        {"engine": "ctc", "stage": "split", "seconds": 0.5, "steps": {"split": 0.5}, "peak": 20},
        {
            "engine": "ctc",
            "stage": "run",
            "seconds": 7.25,
            "steps": {"prepare": 1.0, "infer": 6.0, "finish": 0.25},
            "peak": 300,
        },
        {"engine": "ctc", "stage": "join", "seconds": 0.375, "steps": {"join": 0.125, "write": 0.25}, "peak": None},
    ]
    assert (content["memory"]["lowest"], content["memory"]["most"]) == (4000, 900)
    assert _write_and_read(tmp_path / "run.performance.json", content) == content


def test_a_run_is_described_by_what_it_was_told_and_what_became_of_it() -> None:
    content = _describe()
    assert {name: content[name] for name in NAMES} == NAMES
    assert content["files"] == {"done": 3, "skipped": 2, "failed": 2}
    assert (content["audio_seconds"], content["wall_seconds"], content["audio_seconds_per_second"]) == (120, 8, 15)
    assert (content["device"], content["strategy"], content["workers"], content["threads"]) == ("cpu", "fork", 4, 1)
    assert content["weights"] == 36_000_000


def test_a_run_that_measured_nothing_is_described_with_nulls_and_no_infinity(tmp_path: Path) -> None:
    content = _write_and_read(tmp_path / "run.performance.json", _describe())
    assert content["memory"]["lowest"] is content["gpu"] is content["tf32"] is None
    assert [stage["peak"] for stage in content["stages"]] == [0, None, None, None]
    assert [stage["seconds"] for stage in content["stages"]] == [3.25, 0, 0, 0]


def test_what_gpus_did_is_there_for_each_of_them() -> None:
    content = _describe(Tally(busy=[50.0, 12.5], used=[7, 9]), tf32=False)
    assert content["gpu"] == {"busy": [50.0, 12.5], "used": [7, 9]}
    assert content["tf32"] is False


def test_the_gpus_of_a_plan_are_named_with_what_they_did_and_mig_instances_left_out() -> None:
    instance = replace(GPU, name="NVIDIA H200 MIG 1g.18gb", uuid="3", mig=True)
    facts = replace(FACTS, devices=Devices("2", ("cuda",), (instance, GPU, replace(GPU, uuid="2"))))
    plan = decide(facts, Request(engines=("ctc",), devices=("cuda",)))
    assert plan.devices == ("MIG-3", "GPU-1", "GPU-2")
    gpus = performance.list_gpus(plan, Tally(busy=[71.4, 3.0], used=[12_300_000_000, 5]))
    assert gpus == [
        GPULoad("NVIDIA H200", 71.4, 12_300_000_000, GPU.memory),
        GPULoad("NVIDIA H200", 3.0, 5, GPU.memory),
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(tabulate(replace(SUMMARY, gpus=gpus)))
    assert "NVIDIA H200: busy 71 %, at most 12.3 GB of 139.8 GB used" in console.file.getvalue()  # type: ignore[attr-defined]
    assert performance.list_gpus(plan, Tally()) == []
    assert performance.list_gpus(decide(FACTS, Request(engines=("ctc",))), Tally()) == []


def test_the_summary_of_a_run_with_servers_says_who_has_the_model_and_who_died() -> None:
    def say(**changes: Any) -> str:
        console = Console(file=io.StringIO(), width=200)
        console.print(tabulate(replace(SUMMARY, strategy="server", server_threads=2, **changes)))
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    assert "4, forked, with 1 thread each; a server with 2 threads holds the model " in say(servers=1)
    assert "; 2 servers with 2 threads each hold the model; 1 process died and was replaced" in say(servers=2, deaths=1)
    assert "36 MB, one copy for each server" in say(servers=2)
    plan = decide(FACTS, Request(engines=("ctc",), strategy=Strategy.SERVER, workers=2))
    content = performance.describe(NAMES, SUMMARY, Tally(), {}, plan, Inventory(1, 1.0, {"ctc": {}}))
    assert (content["threads"], content["servers"]) == (2, {"number": 1, "threads": 4})
    assert _describe()["servers"] is None


def test_steps_that_were_never_reached_are_not_added_to_what_counts_them() -> None:
    steps = Counter({("ctc", "split"): 1.23456})
    assert _describe(steps=steps)["stages"][1]["seconds"] == 1.235
    assert dict(steps) == {("ctc", "split"): 1.23456}


def test_the_tally_goes_on_after_it_was_described() -> None:
    tally = Tally(peaks={("ctc", "run"): 5})
    content = _describe(tally)
    tally.peaks["ctc", "run"] = 6
    assert content["memory"]["peaks"] == {"ctc run": 5}


def test_the_folder_is_made_and_a_log_of_the_same_name_replaced(tmp_path: Path) -> None:
    path = tmp_path / "performance_logs" / f"now{performance.SUFFIX}"
    assert _write_and_read(path, {"long": "x" * 1000})
    assert _write_and_read(path, {"short": 1}) == {"short": 1}


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_costs_the_log_and_says_which_and_why() -> None:
    notices: list[str] = []
    performance.write(FULL, _describe(), notices.append)
    (notice,) = notices
    assert notice.startswith("/dev/full: No space left on device; the run has no performance log")


def test_a_folder_that_cannot_be_made_costs_the_log_and_says_which_and_why(tmp_path: Path) -> None:
    (tmp_path / "performance_logs").write_text("in the way")
    notices: list[str] = []
    performance.write(tmp_path / "performance_logs" / "now.performance.json", _describe(), notices.append)
    (notice,) = notices
    assert "now.performance.json: " in notice and "None" not in notice
    assert (tmp_path / "performance_logs").read_text() == "in the way"
