"""Many machines, or what stands for them here: processes that join a scheduler. What comes out is what one makes."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("distributed", reason="needs the extra cluster")
pytest.importorskip("cryptography", reason="needs the extra cluster")

from prefork.memory.memlog import read_log
from tests.conftest import SCRIPT_ENGINE
from tests.prefork.command import PREFORK, find_children, read_outputs, run, wait_until_gone, write_script, write_wav
from tests.prefork.data_sets import write_rows

pytestmark = [pytest.mark.usefixtures("script_engine"), pytest.mark.timeout(300)]
SCRIPT = ["--engine", "script", "--format", "json", "--workers", "1"]


class Lab:
    """A scheduler, and machines that have joined it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.tls = folder / "tls"
        self.processes: list[subprocess.Popen[str]] = []
        assert run("cluster", "init", self.tls).returncode == 0
        self.scheduler = self._start("cluster", "start", self.file, "--tls", self.tls, "--host", "127.0.0.1")
        wait_for(self.file.exists)

    def _start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PREFORK, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        self.processes.append(process)
        return process

    def join(self, name: str, *options: str, **environment: str) -> subprocess.Popen[str]:
        machine = self._start("join", self.file, "--name", name, *options, **environment)
        assert machine.stdout is not None
        assert "has joined" in machine.stdout.readline()
        return machine

    def join_blind(self, name: str, hidden: Path, more: str = "") -> None:
        """One that does not see a folder. more: what is done for it before, in its shell."""
        script = f'mount -t tmpfs none {hidden} && {more} exec "$@"'
        joining = [sys.executable, "-m", "prefork", "join", str(self.file), "--name", name]
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *joining]
        machine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.processes.append(machine)
        assert machine.stdout is not None and "has joined" in machine.stdout.readline()

    def begin(self, source: Path, target: Path, *options: str) -> subprocess.Popen[str]:
        return self._start("align", source, target, *SCRIPT, "--json", "--cluster", self.file, *options)

    def run(self, source: Path, target: Path, *options: str) -> list[dict[str, Any]]:
        """The events that it prints."""
        return read_events(self.begin(source, target, *options))

    def close(self) -> None:
        family = [child.pid for p in self.processes for child in list_family(p.pid)]
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.communicate(timeout=40)
        assert not wait_until_gone(family, 10)
        assert not self.file.exists()


def list_family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *find_children(pid, recursive=True)]
    return []


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_events(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = process.communicate(timeout=120)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, output
    return [json.loads(line) for line in lines]


def wait_for_event(process: subprocess.Popen[str], event: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if f'"event": "{event}"' in line:
            return
    raise AssertionError(f"it ended without {event!r}")


def list_notes(events: list[dict[str, Any]]) -> str:
    return "\n".join(event["text"] for event in events if event["event"] == "note")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number in range(8):
        write_script(tmp_path / "in", f"job{number}", *["sleep"] * (number + 6), f"say {'x' * number}")
    return tmp_path / "in"


def test_machines_make_what_one_makes_and_their_logs_are_gathered(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    """With an input that fails, a recording so long that all share it, and one machine that has its own options."""
    write_script(corpus, "bad", "raise")
    write_wav(write_script(corpus, "long", *["sleep"] * 100).with_suffix(".wav"), 700)
    one, out = tmp_path / "one", tmp_path / "out"
    assert run("align", corpus, one, *SCRIPT, "--workers", "2").returncode == 1
    lab.join("first")
    lab.join("second", "--workers", "2")
    process = lab.begin(corpus, out)
    events = read_events(process)
    assert process.returncode == 1
    summary = events[-1]
    assert (summary["done"], list(summary["failed"])) == (9, ["bad.txt"])
    assert read_outputs(out) == read_outputs(one)
    machines = {machine["name"]: machine for machine in summary["machines"]}
    assert {name: machine["workers"] for name, machine in machines.items()} == {"first": 1, "second": 2}
    assert all(machine["files"] for machine in machines.values())
    logs = [json.loads(path.read_text()) for path in (out / "performance_logs").glob("*.performance.json")]
    assert {log["machine"]: log["workers"] for log in logs} == {"first": 1, "second": 2}
    for path in (out / "performance_logs").glob("*.memory.jsonl"):
        assert any(event.event == "complete" and event.file == "long.txt" for event in read_log(path).events)
    assert len(list((out / "performance_logs").glob("*.memory.jsonl"))) == 2
    again = lab.run(corpus, out)[-1]
    assert (again["done"], again["skipped"]) == (0, 9)
    shown = run("status", out, "--json")
    assert json.loads(shown.stdout)["done"] == 9
    planned = json.loads(run("plan", "align", corpus, "--engine", "script", "--cluster", lab.file, "--json").stdout)
    assert {name: plan["workers"] for name, plan in planned.items()} == {"first": os.cpu_count(), "second": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_scheduler_may_have_more_connections_than_a_shell_s_limit(tmp_path: Path) -> None:
    file, hard = tmp_path / "scheduler.json", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", *PREFORK, "cluster", "start", str(file)]
    scheduler = subprocess.Popen([*command, "--host", "127.0.0.1"])
    try:
        wait_for(file.exists)
        limits = Path(f"/proc/{scheduler.pid}/limits").read_text()
        assert int(re.search(r"Max open files\s+(\d+)", limits)[1]) == min(hard, 65_536)  # type: ignore[index]
    finally:
        scheduler.terminate()
        scheduler.wait()


def test_a_lost_machine_costs_nothing_and_another_joins_in_the_middle(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    write_script(corpus, "last", *["sleep"] * 60)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    victim = lab.join("victim", TMPDIR=str(temporary))
    process = lab.begin(corpus, tmp_path / "out")
    wait_for_event(process, "done")
    family = list_family(victim.pid)
    left = list(temporary.glob("prefork-machine-*"))
    assert len(left) == 1
    victim.kill()
    victim.wait()
    lab.join("heir", TMPDIR=str(temporary))
    events = read_events(process)
    assert not wait_until_gone([member.pid for member in family], 10)
    assert not left[0].exists()
    assert events[-1]["failed"] == {} and events[-1]["unfinished"] == 0
    assert "machine victim was lost" in list_notes(events)
    assert len(read_outputs(tmp_path / "out")) == 9


def test_a_machine_that_is_told_to_leave_is_no_loss(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    leaver = lab.join("leaver")
    process = lab.begin(corpus, tmp_path / "out")
    wait_for_event(process, "done")
    lab.join("stayer")
    leaver.terminate()
    events = read_events(process)
    assert leaver.wait(20) == 0
    assert events[-1]["failed"] == {} and events[-1]["unfinished"] == 0
    assert "machine leaver has left" in list_notes(events)


def test_a_job_that_ends_every_machine_is_set_aside_after_two(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    write_script(corpus, "poison", *["sleep"] * 20, "fell")
    for number in range(3):
        lab.join(f"machine{number}")
    events = lab.run(corpus, tmp_path / "out")
    assert list(events[-1]["failed"]) == ["poison.txt"]
    assert "were lost while they had it" in events[-1]["failed"]["poison.txt"]
    assert events[-1]["done"] == 8
    assert list_notes(events).count("was lost") == 2


def test_a_killed_driver_leaves_the_machines_free_and_the_command_goes_on(
    lab: Lab, corpus: Path, tmp_path: Path
) -> None:
    write_script(corpus, "last", *["sleep"] * 400)
    machine = lab.join("machine")
    process = lab.begin(corpus, tmp_path / "out")
    wait_for_event(process, "done")
    refused = run("align", corpus, tmp_path / "other", *SCRIPT, "--cluster", lab.file)
    assert refused.returncode == 2 and "has the machines of this cluster" in refused.stderr, refused.stderr
    busy = [child.pid for child in list_family(machine.pid)[1:]]
    assert busy
    process.kill()
    assert not wait_until_gone(busy, 20)
    done = len(read_outputs(tmp_path / "out"))
    rest = lab.run(corpus, tmp_path / "out")[-1]
    assert rest["unfinished"] == 0 and rest["skipped"] in (done, done - 1)
    assert len(read_outputs(tmp_path / "out")) == 9


def test_ctrl_c_ends_in_order(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    write_script(corpus, "last", *["sleep"] * 400)
    lab.join("machine")
    process = lab.begin(corpus, tmp_path / "out")
    wait_for_event(process, "done")
    process.send_signal(signal.SIGINT)
    events = read_events(process)
    assert process.returncode == 130
    assert events[-1]["unfinished"] and not events[-1]["failed"]


def test_where_the_scheduler_is_lost_the_run_ends_with_the_remedy_and_nothing_else(
    lab: Lab, corpus: Path, tmp_path: Path
) -> None:
    write_script(corpus, "last", *["sleep"] * 400)
    lab.join("machine", "--wait", "0")
    process = lab.begin(corpus, tmp_path / "out")
    wait_for_event(process, "done")
    lab.scheduler.kill()
    lab.file.unlink()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the scheduler of the cluster cannot be reached any more; start it" in output
    assert "distributed" not in output


def test_a_machine_with_another_version_is_refused_with_the_difference(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(SCRIPT_ENGINE, other)
    (metadata,) = other.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    version = next(line for line in text.splitlines() if line.startswith("Version: "))
    metadata.write_text(text.replace(version, "Version: 77.7"))
    path = os.environ["PYTHONPATH"].replace(str(SCRIPT_ENGINE), str(other))
    lab.join("stranger", PYTHONPATH=path)
    lab.join("fellow")
    events = lab.run(corpus, tmp_path / "out")
    assert "machine stranger does not take part" in list_notes(events)
    assert f"was {version.split()[1]} and is 77.7" in list_notes(events)
    assert [m["files"] for m in events[-1]["machines"]] == [8, 0]


def test_where_every_machine_is_refused_the_run_ends_with_the_reasons(lab: Lab, corpus: Path, tmp_path: Path) -> None:
    lab.join("machine", "--strategy", "ipc")
    process = lab.begin(corpus, tmp_path / "out")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "no machine of the cluster can take part (machine " in output and "ipc" in output


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root: hides a folder from a process")
def test_recordings_are_sent_to_a_machine_that_does_not_see_them_and_a_full_disk_costs_none(
    lab: Lab, corpus: Path, tmp_path: Path
) -> None:
    """Of two such machines one has no room for what is sent."""
    one, full = tmp_path / "one", tmp_path / "full"
    full.mkdir()
    assert run("align", corpus, one, *SCRIPT).returncode == 0
    lab.join_blind("full", corpus, f"mount -t tmpfs -o size=4k none {full} && export TMPDIR={full} &&")
    lab.join_blind("blind", corpus)
    events = lab.run(corpus, tmp_path / "out")
    assert events[-1]["done"] == 8, events
    assert read_outputs(tmp_path / "out") == read_outputs(one)
    assert {machine["name"]: machine["files"] for machine in events[-1]["machines"]} == {"blind": 8, "full": 0}
    assert "machine full does not take part" in list_notes(events)


def test_an_input_that_is_gone_meanwhile_costs_itself_alone_and_no_machine_counts_as_blind(
    lab: Lab, corpus: Path, tmp_path: Path
) -> None:
    """A long recording's tasks could go to no machine that does not see the files."""
    write_wav(write_script(corpus, "long", *["sleep"] * 100).with_suffix(".wav"), 601)
    process = lab.begin(corpus, tmp_path / "out")
    wait_for((tmp_path / "out/.prefork/status.json").exists)
    (corpus / "job7.txt").unlink()
    lab.join("machine")
    events = read_events(process)
    assert list(events[-1]["failed"]) == ["job7.txt"]
    assert "has changed since this run began" in events[-1]["failed"]["job7.txt"]
    assert events[-1]["done"] == 8
    assert "does not see" not in list_notes(events)


def test_a_data_set_is_computed_by_machines_and_written_by_the_driver(lab: Lab, tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.parquet", [f"say {'x' * n}" for n in range(1, 9)])
    write_rows(tmp_path / "in/b.parquet", [f"say {'y' * n}" for n in range(1, 5)])
    options = ["--engine", "script", "--workers", "1", "--format", "parquet", "--json"]
    assert run("align", tmp_path / "in", tmp_path / "one", *options).returncode == 0
    lab.join("first")
    lab.join("second")
    done = run("align", tmp_path / "in", tmp_path / "out", *options, "--cluster", lab.file)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["done"] == 12
    assert read_outputs(tmp_path / "out") == read_outputs(tmp_path / "one")


@pytest.mark.exec
def test_two_machines_worth_of_this_one(corpus: Path, tmp_path: Path) -> None:
    done = run("align", corpus, tmp_path / "out", *SCRIPT, "--json", "--cluster", "local:2")
    assert done.returncode == 0, done.stdout + done.stderr
    machines = json.loads(done.stdout.splitlines()[-1])["machines"]
    assert [machine["name"] for machine in machines] == ["local1", "local2"]
    assert sum(machine["files"] for machine in machines) == 8


@pytest.mark.exec
@pytest.mark.skipif(os.name == "nt", reason="needs process groups of POSIX")
def test_a_terminal_s_ctrl_c_reaches_local_machines_through_the_driver_alone(corpus: Path, tmp_path: Path) -> None:
    """What they have begun they may end, and they leave nothing."""
    write_script(corpus, "last", *["sleep"] * 400)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = ["align", corpus, tmp_path / "out", *SCRIPT, "--json", "--cluster", "local:1"]
    process = subprocess.Popen(
        [*PREFORK, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    wait_for_event(process, "done")
    os.killpg(process.pid, signal.SIGINT)
    events = read_events(process)
    assert process.returncode == 130
    assert "has left" not in list_notes(events)
    assert not list(temporary.glob("prefork-*"))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("local:0", "takes a number of machines from 1 to 64"),
        ("local:x", "takes a number of machines from 1 to 64"),
        ("nowhere.json", "no such file; start a scheduler"),
        ("tcp://10.0.0.1:8786", "has no TLS; start it with certificates"),
        ("tls://127.0.0.1:1", "asks for certificates"),
        ("http://127.0.0.1:1", "is no address of a scheduler"),
        ("tcp://127.0.0.1:1", "the scheduler does not answer"),
    ],
)
def test_what_is_no_cluster_is_refused_with_the_remedy(corpus: Path, tmp_path: Path, place: str, reason: str) -> None:
    done = run("align", corpus, tmp_path / "out", *SCRIPT, "--cluster", place)
    assert done.returncode == 2 and reason in done.stderr, done.stderr


def test_a_service_and_shards_are_refused_with_a_cluster(corpus: Path, tmp_path: Path) -> None:
    done = run("align", corpus, tmp_path / "out", *SCRIPT, "--cluster", "local:2", "--shard", "1/2")
    assert done.returncode == 2 and "leave out --cluster or --shard" in done.stderr
