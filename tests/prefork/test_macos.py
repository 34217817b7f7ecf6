"""What macOS does otherwise than Linux, made of what Linux has: see tests.systems."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefork.memory import probe
from prefork.memory.memlog import read_log
from prefork.memory.observation import SUPERVISOR, Observation
from prefork.memory.probe import MemoryProbe
from prefork.platform_matrix.systems import SYSTEM as SYSTEM_HERE
from prefork.wire.messages import Memory
from tests.prefork.command import run, write_script
from tests.systems import SYSTEM
from tests.systems.macos import PRESSURE

pytestmark = [
    pytest.mark.usefixtures("script_engine"),
    pytest.mark.skipif(sys.platform != "linux", reason="another system is made of what Linux has"),
]
MB = 1_000_000


def _align(folder: Path, *options: object, **environment: Any) -> tuple[list[str], dict[str, Any]]:
    """What is noted, and the summary."""
    done = run(
        "align", folder / "in", folder / "out", "--engine", "script", "--force-cpu", "--json", *options, **environment
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events, done.stderr
    return [event["text"] for event in events if event["event"] == "note"], events[-1]


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_the_memory_of_all_processes_is_known_and_a_limit_is_kept(strategy: str, tmp_path: Path) -> None:
    for number in range(4):
        write_script(tmp_path / "in", f"job{number}", "say a", "take 600")
    options = ("--workers", 4, "--threads", 1, "--strategy", strategy, "--memory-limit", "1600MB")
    # Nothing is known of such tasks: they are begun together, and what they take is seen.
    unknown = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    notes, summary = _align(tmp_path, *options, **{SYSTEM: "darwin"}, **unknown)
    assert (summary["done"], summary["failed"], summary["strategy"]) == (4, {}, strategy)
    assert summary["total"] > 700 * MB and summary["private"] > 20 * MB
    if strategy == "fork":
        assert summary["throttles"] and any("memory is short" in note for note in notes)
        assert summary["private"] > 600 * MB
        (path,) = (tmp_path / "out" / "performance_logs").glob("*.memory.jsonl")
        done = [event for event in read_log(path).events if event.event == "complete" and event.task == "run"]
        assert len(done) == 4 and all(event.peak is not None and event.peak > 600 * MB for event in done)
    else:
        assert summary["workers"] == 1


@pytest.mark.parametrize("pressure", [1, 2, 4])
def test_how_short_memory_is_the_system_says_and_not_what_is_available(pressure: int, tmp_path: Path) -> None:
    """A fiftieth of it is, all the time. What is short for good does not keep the work from being done."""
    for number in range(3):
        write_script(tmp_path / "in", f"job{number}", "say a")
    notes, summary = _align(tmp_path, "--workers", 2, **{SYSTEM: "darwin", PRESSURE: str(pressure)})
    assert summary["done"] == 3
    assert bool(summary["throttles"]) is (pressure > 1)
    assert any("the system says that memory is" in note for note in notes) is (pressure > 1)


LONG = "say more than twenty letters"


@pytest.mark.parametrize("workers", [1, 2])
def test_forked_workers_that_crash_at_different_inputs_are_spawned_instead_and_no_job_is_lost(
    workers: int, tmp_path: Path
) -> None:
    """Whatever the canary did, and on Linux too."""
    for number in range(4):
        write_script(tmp_path / "in", f"job{number}", "say a", LONG)
    write_script(tmp_path / "in", "short", "say a")
    notes, summary = _align(tmp_path, "--engine", "brittle", "--workers", workers)
    assert (summary["done"], summary["failed"], summary["strategy"]) == (5, {}, "spawn")
    assert any(
        note.startswith("cannot fork: forked workers crash at different inputs: worker") and note.count("SIGSEGV") == 2
        for note in notes
    )
    (path,) = (tmp_path / "out" / "performance_logs").glob("*.memory.jsonl")
    events = [event.event for event in read_log(path).events]
    assert (events.count("start"), events.count("end"), events[-1]) == (2, 2, "end")  # of each way to run


@pytest.mark.parametrize("options", [(), ("--strategy", "fork")], ids=["one input", "fork was asked for"])
def test_an_input_that_crashes_any_worker_costs_only_itself(options: tuple[str, ...], tmp_path: Path) -> None:
    """And is tried last, when it would show that others crash too. Who asks for forked workers keeps them."""
    for number in range(3):
        write_script(tmp_path / "in", f"job{number}", "say a", *[LONG] * bool(options or number == 0))
    notes, summary = _align(tmp_path, "--engine", "brittle", "--workers", 1, *options)
    failed = ["job0.txt", *(["job1.txt", "job2.txt"] if options else [])]
    assert (sorted(summary["failed"]), summary["strategy"]) == (failed, "fork")
    assert all("was killed by SIGSEGV; its worker died twice" in reason for reason in summary["failed"].values())
    assert any("retrying it after all others" in note for note in notes) is not bool(options)


def test_a_canary_infers_the_longest_segments_where_a_fork_is_safe_with_caveats(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "job", LONG)
    notes, summary = _align(tmp_path, "--engine", "brittle", "--workers", 1, **{SYSTEM: "darwin"})
    assert (summary["done"], summary["deaths"], summary["strategy"]) == (1, 0, "spawn")
    assert any("cannot fork: a canary that was forked to try it was killed by SIGSEGV" in note for note in notes)


class Counter:
    """What macOS counts of processes, of which nobody else may look at the page tables."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted: dict[int, int] = {}
        monkeypatch.setattr(SYSTEM_HERE, "count_own", self.counted.get, raising=False)
        monkeypatch.setattr(probe, "measure_memory", self._measure)
        monkeypatch.setattr(SYSTEM_HERE, "hides_memory", True, raising=False)

    def _measure(self, pid: int) -> Memory | None:
        return Memory(self.counted[pid], self.counted[pid]) if pid in self.counted else None


def test_a_forked_worker_has_what_it_says_and_what_is_counted_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of shared pages it looks at, which are counted as its own, the figure is right after its first task."""
    counter = Counter(monkeypatch)
    counter.counted |= {1: 30 * MB, 2: 900 * MB, 3: 400 * MB}
    seen = Observation(shared=900 * MB)
    pids = {SUPERVISOR: 1, "zygote": 2, "worker 0": 3}
    seen.look(pids, exact=True)
    assert seen.total == (900 + 30) * MB
    counter.counted[3] += 50 * MB
    seen.look(pids, exact=True)
    assert seen.find("worker 0") == Memory(50 * MB, 50 * MB)
    seen.take("worker 0", 3, Memory(20 * MB, 20 * MB))
    counter.counted[3] += 70 * MB
    for exact in (False, True):
        seen.look(pids, exact)
        assert seen.find("worker 0") == Memory(90 * MB, 90 * MB)
        assert seen.measure("worker 0", 3) == Memory(90 * MB, 90 * MB)
    assert seen.total == (900 + 30 + 90) * MB


def test_what_a_worker_takes_before_it_is_first_looked_at_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are looked at every half a second; it says by itself that it is ready, and what it has after a task."""
    counter = Counter(monkeypatch)
    counter.counted |= {1: 30 * MB, 2: 900 * MB, 3: 400 * MB, 4: 500 * MB}
    seen = Observation(shared=900 * MB)
    seen.look({SUPERVISOR: 1, "zygote": 2}, exact=True)
    seen.take("worker 0", 3, Memory(0, 0))
    seen.take("worker 1", 4, Memory(20 * MB, 20 * MB))
    counter.counted[3] += 600 * MB
    counter.counted[4] += 50 * MB
    pids = {SUPERVISOR: 1, "zygote": 2, "worker 0": 3, "worker 1": 4}
    seen.look(pids, exact=False)
    assert (seen.find("worker 0"), seen.find("worker 1")) == (Memory(600 * MB, 600 * MB), Memory(70 * MB, 70 * MB))
    counter.counted[5] = 450 * MB  # another in the place of the first
    seen.take("worker 0", 5, Memory(0, 0))
    counter.counted[5] += 10 * MB
    seen.look(pids | {"worker 0": 5}, exact=False)
    assert seen.find("worker 0") == Memory(10 * MB, 10 * MB)


def test_spawned_workers_have_what_is_counted_and_the_weights_that_they_map_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = Counter(monkeypatch)
    counter.counted |= {1: 30 * MB, 3: 400 * MB, 4: 450 * MB}
    seen = Observation(mapped=200 * MB)
    seen.look({SUPERVISOR: 1, "worker 0": 3, "worker 1": 4}, exact=True)
    seen.take("worker 0", 3, Memory(1, 1))
    assert seen.total == (30 + 400 + 450 + 200) * MB


def test_what_cannot_be_measured_is_taken_for_what_the_system_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", deny)
    monkeypatch.setattr(SYSTEM_HERE, "count_own", lambda _: 7 * MB)
    assert MemoryProbe(1).read() == probe.measure_memory(1) == Memory(7 * MB, 7 * MB)
