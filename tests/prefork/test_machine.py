"""The commands `matrix` and `plan`: what they say of this machine, and of others that a file describes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefork.check.machine_report import write_report
from prefork.check.steps import Finding
from prefork.cli.machine import show_plan
from prefork.engines.batching import Batching
from prefork.engines.registry import list_obstacles
from prefork.memory.governor import Governor
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.run.planning import describe_batches
from tests.prefork.command import SAMPLES, copy_sample, run

GB = 1_000_000_000
MAC: dict[str, Any] = {
    "system": "darwin",
    "release": "25.1",
    "machine": "arm64",
    "python": "3.12.1",
    "start_methods": ["spawn", "fork", "forkserver"],
    "cores": 10,
    "installed_cores": 10,
    "memory": 16 * GB,
    "installed_memory": 16 * GB,
    "available": 9 * GB,
    "devices": {
        "torch": "2.11.0",
        "built": ["mps"],
        "present": [{"kind": "mps", "name": "Apple GPU", "memory": 12 * GB, "free": 12 * GB}],
    },
}


H200 = {"kind": "cuda", "name": "NVIDIA H200", "memory": 150 * GB, "free": 140 * GB, "capability": "9.0"}
BOX: dict[str, Any] = {
    **MAC,
    "system": "linux",
    "machine": "x86_64",
    "start_methods": ["fork", "spawn", "forkserver"],
    "devices": {
        "torch": "2.11.0+cu130",
        "built": ["cuda"],
        "present": [{**H200, "uuid": "4b-1"}, {**H200, "uuid": "4b-2", "mig": True, "free": 9 * GB}],
    },
}


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps({**MAC, **changes}))
    return path


def _flatten(text: str) -> str:
    return " ".join(text.split())


def test_the_matrix_has_every_row_marks_this_machines_and_gives_its_sources() -> None:
    done = run("matrix", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    marked = [line for line in done.stdout.splitlines() if line.startswith(">")]
    assert len(marked) == 1 and "CPU" in marked[0]
    for title in ("Linux, NVIDIA GPU", "Linux, AMD GPU", "macOS, CPU only", "macOS, MPS", "Windows, CPU", "WSL2, CPU"):
        assert title in done.stdout
    assert "https://github.com/skyfielders/python-skyfield/issues/1024" in done.stdout


def test_no_torch_is_imported_once_the_devices_are_known() -> None:
    code = (
        "import sys, contextlib; from prefork.cli.app import app\n"
        "with contextlib.suppress(SystemExit): app(['matrix'])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_file_describes_another_machine_and_json_writes_one(tmp_path: Path) -> None:
    facts = _write(tmp_path)
    marked = [line for line in run("matrix", "--facts", facts).stdout.splitlines() if line.startswith(">")]
    assert "macOS, MPS" in marked[0]
    forced = run("--force-cpu", "matrix", "--facts", facts).stdout
    assert any("macOS, CPU only" in line for line in forced.splitlines() if line.startswith(">"))
    hidden = run("matrix", "--facts", facts, PREFORK_NO_MPS="1").stdout
    assert any("macOS, CPU only" in line for line in hidden.splitlines() if line.startswith(">"))
    (tmp_path / "this.json").write_text(run("matrix", "--json").stdout)
    assert run("matrix", "--facts", tmp_path / "this.json").returncode == 0


@pytest.mark.slow
def test_a_plan_says_what_would_happen_and_why(tmp_path: Path) -> None:
    options = ("--workers", 2, "--dtype", "float32")
    done = run("plan", "align", SAMPLES, *options, COLUMNS="200", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines() if line}
    assert rows["engine"] == "ctc-recovery -> ctc, 39 MB of weights"
    assert rows["files"] == "4"
    assert rows["strategy"] == "fork: one copy of the weights for all workers"
    assert rows["workers"].startswith("2, with ")
    assert rows["memory"].startswith("weights 0.04 GB + libraries 0.75 GB + 2 x (0.08 GB own) = 0.96 GB of ")
    assert not (tmp_path / "aligned").exists()


def test_a_plan_says_what_weights_are_held_in_if_nobody_has_chosen_it(tmp_path: Path) -> None:
    facts = _write(tmp_path, instructions=["avx512_vnni"])
    done = run("plan", "align", SAMPLES, "--facts", facts, "--force-cpu", COLUMNS="200", XDG_CACHE_HOME=str(tmp_path))
    assert (
        "17 MB of weights in int8, which this processor multiplies (avx512_vnni); --dtype float32 changes"
        in done.stdout
    )


@pytest.mark.slow
def test_the_plan_for_a_mac_shows_how_many_copies_fit(tmp_path: Path) -> None:
    done = run("plan", "align", SAMPLES, "--facts", _write(tmp_path, available=4 * GB), "--json")
    plan = json.loads(done.stdout)
    assert (plan["strategy"], plan["shared"], plan["workers"]) == ("spawn", False, 2)
    texts = [reason["text"] for reason in plan["reasons"]]
    assert any("2 fit" in text and "10 x (weights 0.04 GB + libraries 0.75 GB + 0.08 GB own)" in text for text in texts)
    forced = run("plan", "align", SAMPLES, "--facts", _write(tmp_path), "--json", "--force-cpu")
    assert json.loads(forced.stdout)["strategy"] == "fork"


def _show_mac(request: Request, **changes: Any) -> tuple[Plan, dict[str, str], str]:
    """What `prefork plan` would show of a Mac."""
    plan = decide(Facts.from_json(json.dumps({**MAC, **changes})), replace(request, engines=("ctc",)))
    console = Console(file=io.StringIO(), width=300)
    show_plan(console, plan)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return plan, _read_rows(text), text


@pytest.mark.parametrize(("weights", "mps", "cpu"), [(GB // 10, "slower", "faster"), (GB, "faster", "slower")])
def test_the_plan_for_a_mac_says_which_way_is_likely_faster_and_what_each_takes(
    weights: int, mps: str, cpu: str
) -> None:
    plan, rows, _ = _show_mac(Request(weights=weights))
    assert plan.device == "mps" and "hidden" not in rows
    assert rows["instead"].startswith(f"--force-cpu: likely {cpu}, with {weights / GB:.2f} GB of weights; ")
    assert "workers (fork): weights" in rows["instead"] and "GB available" in rows["instead"]
    for hiding in ({"force_cpu": True}, {"no_mps": True}, {"devices": ("cpu",)}):
        plan, rows, text = _show_mac(replace(Request(weights=weights), **hiding))
        assert (plan.device, rows["hidden"]) == ("cpu", "mps from the models")
        assert rows["instead"].startswith(f"MPS (without --force-cpu and --no-mps): likely {mps}, with ")
        assert "(spawn): " in rows["instead"] and "on Apple GPU" in rows["instead"]
        assert "must be hidden" not in text and "cuda" not in text and "rocm" not in text


def test_a_report_says_what_each_worker_may_take_of_the_gpu(tmp_path: Path) -> None:
    plan, _, _ = _show_mac(Request(weights=GB // 10, workers=2))
    write_report(tmp_path / "report.json", plan, (), Finding.SAFE)
    sent = json.loads((tmp_path / "report.json").read_text())["plan"]
    assert plan.video is not None and sent["allowance"] == plan.video.room // plan.workers > 0
    assert "on Apple GPU" in sent["video"]


def test_where_there_is_no_choice_none_is_offered() -> None:
    nothing = {"torch": "2.11.0", "built": ["mps"], "present": []}
    _, rows, text = _show_mac(Request(weights=GB), devices=nothing)
    assert "instead" not in rows and "hidden" not in rows and "hide" not in text
    _, rows, _ = _show_mac(Request(weights=GB, cannot=(("ctc", "int8 weights"),), force_cpu=True))
    assert "instead" not in rows
    _, rows, _ = _show_mac(Request(weights=14 * GB), available=6 * GB)
    assert rows["instead"].startswith("--force-cpu cannot be: not enough memory for one worker")


@pytest.mark.parametrize("system", ["darwin", "windows", "linux"])
def test_the_history_of_this_machine_says_nothing_of_another(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    start = {"darwin": ["spawn", "fork"], "windows": ["spawn"], "linux": ["fork", "spawn"]}[system]
    content = {**MAC, "system": system, "start_methods": start, "devices": {"torch": "2.11.0"}}
    other = decide(Facts.from_json(json.dumps(content)), Request(("ctc",)))
    here = decide(replace(other.facts, installed_memory=24 * GB), Request(("ctc",)))
    for plan in (here, other):
        governor = Governor(command="align", engines={"ctc": {}})
        assert governor.recall(plan).request.libraries is None
        if plan is here:
            governor.begin(plan, 0)
            governor.note_loaded(3 * GB, GB, forks=True, shared=True)
            governor.end()
    assert Governor(command="align", engines={"ctc": {}}).recall(here).request.libraries == 2 * GB


def _show(batching: Batching | None = None, request: Request | None = None, **changes: Any) -> tuple[Plan, str]:
    """What `prefork plan` would show of the machine with two GPUs."""
    facts = Facts.from_json(json.dumps({**BOX, **changes}))
    plan = decide(facts, replace(request or Request(), engines=("ctc",), weights=GB, private=GB // 10))
    console = Console(file=io.StringIO(), width=300)
    show_plan(console, plan, [], describe_batches(batching or Batching(), plan))
    return plan, console.file.getvalue()  # type: ignore[attr-defined]


def _read_rows(text: str) -> dict[str, str]:
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.split()}


def test_the_plan_for_a_gpu_says_which_one_which_strategy_and_where_its_memory_goes() -> None:
    plan, text = _show()
    rows = _read_rows(text)
    assert rows["devices"] == "cuda:0 (NVIDIA H200, GPU-4b-1)"
    cores = plan.facts.cores
    workers = f"one copy of the weights for all workers, in a process of its own with {cores} threads"
    assert rows["strategy"] == f"server: {workers}"
    assert rows["gpus"].count("compute capability 9.0") == 2
    assert rows["vram"] == (
        "weights 1.00 GB + 1 context 0.70 GB + batches 124.30 GB = 126.00 GB of 126.00 GB on cuda:0 "
        "(140.00 GB free, less a reserve of 14.00 GB)"
    )
    assert rows["batches"].startswith(
        "LENGTH, as many segments as the engine estimates for 124.30 GB, and then measures,"
    )
    assert "server comes before ipc: one CUDA context" in text
    assert "--devices cuda takes all of them" in text
    assert plan.batch_memory == 124_300_000_000


def test_the_plan_for_several_gpus_has_a_copy_on_each_and_says_what_mig_means() -> None:
    request = Request(devices=("MIG-4b-2", "cuda:0"), strategy=Strategy.IPC, workers=2)
    _, text = _show(Batching(batch_size=4), request)
    rows = _read_rows(text)
    assert rows["devices"] == "cuda:1 (NVIDIA H200, MIG-4b-2), cuda:0 (NVIDIA H200, GPU-4b-1)"
    assert rows["strategy"] == "ipc: one copy of the weights on each of 2 GPUs"
    assert "2 contexts 1.40 GB" in rows["vram"] and "on cuda:1 (9.00 GB free" in rows["vram"]
    assert rows["batches"] == "STATIC, 4 segments each"
    assert "CUDA IPC does not reach across them" in text


def test_under_wsl_ipc_gives_way_to_the_server_with_the_reason() -> None:
    _, text = _show(request=Request(strategy=Strategy.IPC), wsl=True)
    assert _read_rows(text)["strategy"].startswith("server: one copy of the weights for all workers, ")
    assert "cannot share the weights by CUDA IPC here: CUDA IPC is documented for WSL2" in text


def test_a_plan_for_the_cpu_with_a_server_counts_the_libraries_twice_and_the_weights_once() -> None:
    batching = Batching(max_num_elements=4_160_000, max_bucket_size=16, max_audio_len=2_080_000)
    _, text = _show(batching, Request(devices=("cpu",), strategy=Strategy.SERVER, workers=2))
    rows = _read_rows(text)
    assert rows["memory"].startswith(
        "libraries 0.75 GB + server (libraries 0.75 GB + weights 1.00 GB + a batch 0.10 GB) + 2 x (0.10 GB own) = 2.80"
    )
    assert "vram" not in rows and "devices" not in rows
    assert rows["batches"] == (
        "LENGTH, up to 4,160,000 elements (260 s of audio) and 16 segments, above 8 segments in multiples of 8, "
        "none longer than 130 s"
    )
    usual = _read_rows(_show(request=Request(devices=("cpu",)))[1])["batches"]
    assert usual.startswith("one segment at a time on the CPU, unless the engine takes more at once; --batch-size or ")


def test_a_gpu_that_was_asked_for_and_cannot_be_had_refuses_the_plan_of_a_command(tmp_path: Path) -> None:
    old = {"torch": "2.11.0", "built": ["cuda"], "error": "The NVIDIA driver on your system is too old (found 11040)."}
    facts = _write(tmp_path, **{**BOX, "devices": old})
    done = run("plan", "align", SAMPLES, "--facts", facts, "--devices", "cuda", COLUMNS="300")
    assert done.returncode == 2
    assert (
        "refused: --devices cuda: the GPUs could not be asked: The NVIDIA driver on your system is too old "
        "(found 11040); update NVIDIA's driver, or take --devices cpu"
    ) in done.stdout


def test_int8_weights_are_an_obstacle_to_gpus() -> None:
    assert list_obstacles({"ctc": {"dtype": "int8"}, "whisper": {"dtype": "bfloat16"}, "match": {}}) == (
        ("ctc", "int8 weights are multiplied by the CPU; take another --dtype"),
    )


@pytest.mark.slow
def test_a_plan_that_is_refused_says_so_with_the_arithmetic(tmp_path: Path) -> None:
    small = _write(tmp_path, memory=GB, available=GB // 2)
    done = run("plan", "align", SAMPLES, "--facts", small)
    assert done.returncode == 2
    assert "refused: not enough memory for one worker: 1 x (weights 0.04 GB" in done.stdout
    fork = run("plan", "align", SAMPLES, "--facts", _write(tmp_path), "--strategy", "fork")
    assert fork.returncode == 2
    assert "take --strategy spawn or --force-cpu" in fork.stdout


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"available": -1}, "available is -1"),
        ({"cores": 0}, "cores is 0"),
        ({"memory": "much"}, "memory is 'much', not a whole number"),
        ({"system": "amiga"}, "amiga"),
        ({"colour": "grey"}, "colour is not a field"),
    ],
)
def test_facts_that_cannot_be_are_refused_by_their_field(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    done = run("matrix", "--facts", _write(tmp_path, **changes))
    assert done.returncode == 2
    assert done.stderr.startswith(f"prefork: {tmp_path / 'facts.json'}: ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_bad_files_and_options_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"system": ')
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    copy_sample(tmp_path / "in", "child15")
    for arguments, reason in (
        (("matrix", "--facts", tmp_path / "no.json"), "No such file"),
        (("matrix", "--facts", tmp_path), "directory"),
        (("matrix", "--facts", tmp_path / "torn.json"), "torn.json"),
        (("matrix", "--facts", tmp_path / "latin.json"), "UTF-8"),
        (("plan", "align", tmp_path / "no"), "no such file or folder"),
        (("plan", "align", tmp_path / "in", "--engine", "whispre"), "no engine named 'whispre'"),
        (("plan", "align", tmp_path / "in", "--strategy", "magic"), "--strategy takes auto, fork, ipc, server, spawn"),
        (("align", tmp_path / "in", tmp_path / "out", "--strategy", "magic"), "not 'magic'"),
        (("align", tmp_path / "in", tmp_path / "out", "--strategy", "ipc"), "strategy ipc on Linux, CPU: CUDA IPC"),
        (("plan", "align", tmp_path / "in", "--devices", "gpu0"), "--devices: devices are cpu, cuda"),
        (("align", tmp_path / "in", tmp_path / "out", "--devices", "cuda:0", "--force-cpu"), "cannot go together"),
        (("check", "ctc", "--device", "cuda:77"), "--device cuda:77: "),
        (("plan", "align", tmp_path / "in", "--model", tmp_path / "in"), "config.json"),
    ):
        done = run(*arguments)
        said = _flatten((done.stdout + done.stderr).replace("│", " "))
        assert done.returncode == 2, said
        assert reason in said, said
        assert "Traceback" not in said
