"""Memory while a run lasts: who may start, who has to go, and what becomes of what did not fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork import Job, Runtime
from prefork.errors import OutOfMemory
from prefork.memory.memlog import read_log
from tests.limits import MemoryGroup, NotAllowed
from tests.prefork.command import PREFORK, read_outputs, run, run_apart, write_script

MB = 1_000_000
pytestmark = [
    pytest.mark.usefixtures("script_engine"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]


def measures(test: Any) -> Any:
    """Its processes have in memory what a user's have, and no other test's are beside them."""
    return pytest.mark.exec(pytest.mark.alone(test))


def _write(path: Path, *lines: str) -> Job:
    path.write_text("\n".join(lines))
    return Job(path.name, path, seconds=float(len(lines)))


def _align(source: Path, target: Path, *options: object, group: MemoryGroup) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the events of a run in a control group."""
    command = [*PREFORK, "align", str(source), str(target), "--engine", "script", "--json", *map(str, options)]
    done = subprocess.run(group.wrap(command), stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@measures
@pytest.mark.slow
def test_what_the_kernel_ends_for_want_of_memory_runs_again_alone_and_is_then_set_aside(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "greedy", "say a", "take 3000", "say b")
    for number in range(4):  # still there when it dies for the first time, however busy the machine is
        write_script(tmp_path / "in", f"modest{number}", "say a", "take 20", "pause")
    try:
        group = MemoryGroup(1500 * MB)
    except NotAllowed as error:
        pytest.skip(str(error))
    with group:
        code, events = _align(tmp_path / "in", tmp_path / "out", "--workers", 3, group=group)
        kills = group.count_kills()
    *_, summary = events
    assert (code, summary["done"], list(summary["failed"])) == (1, 4, ["greedy.txt"])
    assert 1 <= kills <= summary["deaths"] == 2  # the first may be ended by the supervisor, which looks now and then
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any("greedy.txt: worker" in text and "retrying it with no other task running" in text for text in notes)
    reason = summary["failed"]["greedy.txt"]
    assert "was killed by the kernel: out of memory, with no other task running" in reason
    assert "predicted at its peak" in reason and "of 1.50 GB, of which 0.15 GB are kept back" in reason


@measures
def test_a_limit_of_the_users_is_kept_although_nobody_knew_what_the_jobs_would_take(tmp_path: Path) -> None:
    run_apart(_keep_a_limit, tmp_path)


def _keep_a_limit(tmp_path: Path) -> None:
    jobs = [_write(tmp_path / f"job{number}", "say a", "take 600") for number in range(6)]
    log = tmp_path / "run.memory.jsonl"
    with Runtime("script", workers=4, memory_limit=1600 * MB, memory_log=log) as runtime:
        results = list(runtime.map(jobs))
        tally = runtime.supervisor.governor.tally
    assert [result.error for result in results] == [None] * 6
    assert tally.kills > 0  # the first ones were not known to be that large
    events = read_log(log).events
    assert {"start", "admit", "complete", "fail", "throttle", "sample", "end"} <= {event.event for event in events}
    peaks = [event.peak or 0 for event in events if event.event == "complete" and event.task == "run"]
    assert len(peaks) == 6 and all(600 * MB < peak < 700 * MB for peak in peaks)


@measures
@pytest.mark.slow
def test_the_next_run_knows_what_the_jobs_take_and_starts_no_more_than_fit(tmp_path: Path) -> None:
    run_apart(_learn_from_a_run, tmp_path)


def _learn_from_a_run(tmp_path: Path) -> None:
    jobs = [_write(tmp_path / f"job{number}", "take 400") for number in range(4)]
    logs = [tmp_path / f"{number}.memory.jsonl" for number in (1, 2)]
    for log, workers in zip(logs, (1, 4), strict=True):
        with Runtime(
            "script", workers=workers, threads=1, memory_limit=1700 * MB, memory_log=log, command="t"
        ) as runtime:
            assert all(result.error is None for result in runtime.map(jobs))
    assert runtime.supervisor.governor.tally.kills == 0
    first, second = (
        [e.predicted or 0 for e in read_log(log).events if e.event == "admit" and e.task == "run"] for log in logs
    )
    assert first[0] < 200 * MB < 400 * MB < min(second) <= max(second) < 600 * MB
    assert runtime.plan.workers == 2  # as many as fit with what is known now


@measures
@pytest.mark.slow
def test_a_job_that_does_not_fit_is_tried_alone_and_set_aside_with_the_figures(tmp_path: Path) -> None:
    run_apart(_try_what_does_not_fit, tmp_path)


def _try_what_does_not_fit(tmp_path: Path) -> None:
    jobs = [_write(tmp_path / "large", "take 900"), _write(tmp_path / "small", "say a")]
    with Runtime("script", workers=1, threads=1, command="hopeless") as runtime:
        assert all(result.error is None for result in runtime.map(jobs))
    with Runtime("script", workers=1, threads=1, command="hopeless", memory_limit=1100 * MB) as runtime:
        errors = {result.job.id: result.error for result in runtime.map(jobs)}
    assert errors["small"] is None
    assert isinstance(errors["large"], OutOfMemory)
    assert "was stopped, because memory was too short" in str(errors["large"])
    assert "with no other task running; 0.9" in str(errors["large"])
    assert runtime.supervisor.deaths == 1


@measures
@pytest.mark.slow
def test_an_allocation_that_is_refused_is_want_of_memory_and_costs_no_worker(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from prefork import Job, Runtime\n"
        "if __name__ == '__main__':\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)\n"
        "    jobs = [Job(name, Path(sys.argv[1]) / name, seconds=1.0) for name in ('large', 'small')]\n"
        "    with Runtime('script', workers=2) as runtime:\n"
        "        for result in runtime.map(jobs): print(result.job.id, type(result.error).__name__, result.error)\n"
        "    print(runtime.supervisor.deaths)\n"
    )
    (script := tmp_path / "run.py").write_text(code)
    _write(tmp_path / "large", "take 60000")
    _write(tmp_path / "small", "take 10")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(40 << 30)], capture_output=True, text=True, timeout=90, check=False
    )
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines()[:2])
    assert lines["small"] == "NoneType None", done.stderr
    assert lines["large"].startswith("OutOfMemory worker") and "can't allocate memory" in lines["large"]
    assert done.stdout.splitlines()[2] == "0"


@measures
def test_a_worker_that_has_grown_is_replaced_by_a_fresh_one(tmp_path: Path) -> None:
    jobs = [_write(tmp_path / f"job{number}", "keep 60", "say a") for number in range(8)]
    notices: list[str] = []
    with Runtime("script", workers=1, notice=notices.append) as runtime:
        results = list(runtime.map(jobs))
    assert all(result.error is None for result in results)
    assert any("MB while idle; replaced" in notice for notice in notices)
    assert runtime.supervisor.deaths == 0


@measures
@pytest.mark.slow
def test_a_guarded_run_stops_in_order_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for number in range(4):
        write_script(tmp_path / "in", f"job{number}", "take 500")
    options = ("--engine", "script", "--workers", 3, "--memory-limit", "1.1GB", "--json")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run("align", tmp_path / "in", tmp_path / "out", *options, "--mem-guard", timeout=120, **cache)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, summary["failed"]) == (3, {}), done.stdout
    assert summary["unfinished"] > 0
    assert "(--mem-guard)" in done.stdout
    done = run("align", tmp_path / "in", tmp_path / "out", *options, timeout=120, **cache)
    assert done.returncode == 0, done.stdout
    assert len(read_outputs(tmp_path / "out")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"run|defa', None])
def test_a_history_that_cannot_be_used_is_as_good_as_none(content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "prefork"
    folder.mkdir(parents=True)
    if content is None:  # not writable, whoever we are
        (folder / "memory").write_text("in the way")
    else:
        (folder / "memory").mkdir()
        (folder / "memory" / "align-script.json").write_text(content)
    write_script(tmp_path / "in", "job", "say a")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["3 apples", "-1GB", "0", "101%", "GB", "5iB", "nan"])
def test_a_size_that_is_none_is_refused(size: str, tmp_path: Path) -> None:
    done = run("align", tmp_path, tmp_path / "out", "--memory-limit", size)
    assert done.returncode == 2
    assert "--memory-limit takes a size such as 3GB, 512MiB or 50%" in " ".join(done.stderr.replace("│", " ").split())


@measures
def test_a_limit_below_one_copy_and_one_worker_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "job", "say a")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--memory-limit", "300MB")
    assert done.returncode == 2
    assert "prefork: not enough memory for one worker: weights 0.00 GB + libraries" in done.stderr
    assert "of 0.27 GB (0.30 GB available less a reserve of 0.03 GB)" in done.stderr
    assert "raise --memory-limit" in done.stderr


def test_checkpoints_of_the_workers_go_to_the_log_in_their_exact_form(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "job", "say a")
    done = run("align", tmp_path / "in", tmp_path / "out", "--engine", "script", "--memory-checkpoints")
    assert done.returncode == 0, done.stdout + done.stderr
    figure = r"\d+\.\d\dgb"
    share = rf"{figure} \(\d+\.\d%\)"
    line = rf"\[Host Memory\] ([A-Za-z ]+): PSS: {share} \| USS: {share} \| Available: {figure} \| Total: {figure}"
    found = re.findall(line, (tmp_path / "out" / ".prefork" / "log.txt").read_text())
    assert found == [
        "Pipeline Initialization",
        "Before Audio Preprocessing",
        "After Audio Preprocessing",
        "Before Final Cleanup",
        "After Final Cleanup",
    ]
