"""Spawned workers: fresh processes that share the weights all the same, through the same supervisor."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import prefork.pool.requests
from prefork import LoadError, Runtime, WorkerDied
from prefork.platform_matrix.devices import Devices
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.platform_matrix.systems import SYSTEM
from tests.prefork.command import PREFORK, copy_sample, find_children, read_outputs, run, wait_until_gone, write_script

pytestmark = pytest.mark.usefixtures("script_engine")
needs_fork = pytest.mark.skipif(not SYSTEM.can_fork, reason="needs a system that can fork")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped, and names a fault")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac with MPS nothing is forked, and those that GitHub lends cannot allocate there."""
    original = prefork.pool.requests.make_plan
    monkeypatch.setattr(prefork.pool.requests, "make_plan", lambda request: original(replace(request, force_cpu=True)))
    monkeypatch.setenv("PREFORK_FORCE_CPU", "1")


@needs_linux
def test_spawned_workers_map_one_sealed_copy_of_the_weights() -> None:
    import script_functions as functions

    expected = functions.score(functions.load_linear(), 2.0)
    with Runtime(load=functions.load_linear, workers=3, strategy="spawn") as runtime:
        assert runtime.plan.strategy is Strategy.SPAWN and runtime.plan.shared
        assert runtime.submit(functions.score, 2.0).result() == expected
        _wait_for_workers(runtime, 3)
        found = [runtime.submit(functions.find_mapping) for _ in range(3)]
        places = dict(future.result() for future in found)
        assert len(places) == 3
        assert all(" r--s " in line and "memfd:prefork-arena" in line for line in places.values())
        assert len({line.split()[4] for line in places.values()}) == 1  # one inode
        assert runtime.supervisor.zygote_pid() is None


def _wait_for_workers(runtime: Runtime, count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_linux
@pytest.mark.slow
def test_a_spawned_worker_that_dies_is_replaced_and_a_write_to_a_weight_names_it(tmp_path: Path) -> None:
    import script_functions as functions

    with Runtime(load=functions.load_linear, workers=2, strategy="spawn") as runtime:
        before = runtime.submit(functions.score, 1.0).result()
        pid = runtime.submit(functions.describe, 0.0).result()["pid"]
        assert runtime.submit(functions.die_once, str(tmp_path / "marker")).result() != pid
        with pytest.raises(WorkerDied, match=r"the model wrote to shared weights \(weight\)"):
            runtime.submit(functions.train).result()
        os.kill(runtime.supervisor.status()[0].pid, signal.SIGKILL)
        assert [runtime.submit(functions.score, 1.0).result() for _ in range(4)] == [before] * 4


@needs_fork
@pytest.mark.slow
def test_the_outputs_are_those_of_forked_workers(tmp_path: Path) -> None:
    copy_sample(tmp_path / "in", "child15")
    copy_sample(tmp_path / "in", "adult07")
    for strategy in ("fork", "spawn"):
        done = run("align", tmp_path / "in", tmp_path / strategy, "--strategy", strategy, "--utr", "off", "--json")
        assert done.returncode == 0, done.stderr
        assert f'"strategy": "{strategy}"' in done.stdout
    assert read_outputs(tmp_path / "fork") == read_outputs(tmp_path / "spawn") != {}


@pytest.mark.slow
def test_jobs_of_spawned_workers_survive_their_deaths_and_bad_input_costs_only_itself(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "dies", "say a", f"kill {tmp_path / 'marker'}", "say b")
    write_script(tmp_path / "in", "bad", "raise")
    write_script(tmp_path / "in", "good", *["say x"] * 30)
    options = ("--engine", "script", "--format", "json", "--workers", 2, "--strategy", "spawn")
    done = run("align", tmp_path / "in", tmp_path / "out", *options)
    assert done.returncode == 1
    assert "bad.txt: script: this line cannot be processed" in done.stdout
    assert set(read_outputs(tmp_path / "out")) == {"dies.json", "good.json"}


@pytest.mark.slow
@pytest.mark.exec  # they are what each process draws at random
def test_weights_that_differ_from_process_to_process_are_refused() -> None:
    import script_functions as functions

    with (
        pytest.raises(LoadError, match=r"tensor (weight|bias) is not what it was .*; seed what is random"),
        Runtime(load=functions.load_at_random, workers=2, strategy="spawn") as runtime,
    ):
        runtime.supervisor.join(60)  # it ends when the second one has loaded
        runtime.submit(functions.add, 1, 1).result()


def test_a_model_that_cannot_be_loaded_ends_the_run() -> None:
    import script_functions as functions

    with (
        pytest.raises(LoadError, match="the disk with the weights is gone"),
        Runtime(load=functions.load_nothing_good, strategy="spawn"),
    ):
        pytest.fail("the block must not begin")


@needs_fork
@pytest.mark.slow
def test_a_process_that_must_not_fork_spawns_instead_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    import script_functions as functions

    with caplog.at_level(logging.WARNING, "prefork"), Runtime(load=functions.load_with_threads, workers=1) as runtime:
        assert runtime.submit(functions.score, 1.0).result() == functions.score(functions.load_linear(), 1.0)
        assert runtime.plan.strategy is Strategy.SPAWN
        reasons = [reason.text for reason in runtime.plan.reasons]
        assert any(text.startswith("cannot fork: torch computes with 2 threads") for text in reasons)
    assert "the workers are spawned instead" in caplog.text


@needs_fork
@pytest.mark.slow
def test_a_zygote_that_could_fork_and_cannot_when_it_is_started_again_makes_room_for_spawned_workers(
    tmp_path: Path,
) -> None:
    import script_functions as functions

    marker = tmp_path / "marker"
    with Runtime(load=partial(functions.load_with_threads_if, str(marker)), workers=2) as runtime:
        before = runtime.submit(functions.score, 1.0).result()
        marker.touch()
        zygote = runtime.supervisor.zygote_pid()
        assert zygote is not None
        os.kill(zygote, signal.SIGKILL)
        wait_until_gone([zygote], 10)
        assert runtime.submit(functions.score, 1.0).result() == before
        _wait_for_workers(runtime, 2)
        assert runtime.plan.strategy is Strategy.SPAWN


def test_where_nothing_can_be_shared_each_worker_has_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    import script_functions as functions

    original = prefork.pool.requests.make_plan
    monkeypatch.setattr(prefork.pool.requests, "make_plan", lambda request: original(replace(request, copies=True)))
    with Runtime(load=functions.load_linear, workers=1, strategy="spawn") as runtime:
        _, line = runtime.submit(functions.find_mapping).result()
        assert "memfd" not in line
        assert runtime.supervisor.inventory is not None
        assert runtime.supervisor.inventory.weights == 64 * 65 * 4


def test_fewer_workers_than_were_asked_for_are_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import script_functions as functions

    def make_plan(request: Request) -> Plan:
        facts = replace(read_facts(Devices()), memory=2_200_000_000, available=2_200_000_000)
        return decide(facts, request)

    monkeypatch.setattr(prefork.pool.requests, "make_plan", make_plan)
    with caplog.at_level(logging.WARNING, "prefork"):
        with Runtime(load=functions.load_linear, workers=5, strategy="spawn") as runtime:
            assert isinstance(runtime.submit(functions.score, 1.0).result(), float)
            assert runtime.plan.workers == len(runtime.supervisor.status()) == 2
        assert "5 workers would take " in caplog.text and "; 2 fit" in caplog.text
        caplog.clear()
        with pytest.raises(LoadError, match="not enough memory for one worker"):
            monkeypatch.setattr("prefork.platform_matrix.budget.LIBRARIES", 3_000_000_000)
            Runtime(load=functions.load_linear, workers=1).wait_until_loaded()


def test_no_spawned_worker_outlives_the_command(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "long", *["sleep"] * 2000)
    options = ["--engine", "script", "--format", "json", "--workers", "2", "--strategy", "spawn"]
    command = [*PREFORK, "align", str(tmp_path / "in"), str(tmp_path / "out"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        children = _wait_for_children(process.pid, 2)
        time.sleep(1.0)
        process.kill()
    assert not wait_until_gone(children, 5)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a console, see tests/portability")
@pytest.mark.slow
def test_ctrl_c_ends_spawned_workers_in_time(tmp_path: Path) -> None:
    write_script(tmp_path / "in", "long", *["sleep"] * 2000)
    options = ["--engine", "script", "--format", "json", "--workers", "2", "--strategy", "spawn"]
    command = [*PREFORK, "align", str(tmp_path / "in"), str(tmp_path / "out"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        children = _wait_for_children(process.pid, 2)
        time.sleep(4.0)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(20) == 130
        assert time.monotonic() - started < 6
    assert not wait_until_gone(children, 1)


def _wait_for_children(pid: int, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while True:
        children = [child.pid for child in find_children(pid, recursive=True)]
        if len(children) >= count:
            return children
        assert time.monotonic() < deadline, sys.executable
        time.sleep(0.05)


@needs_fork
@pytest.mark.parametrize("deaths", [1, 2])
def test_a_canary_that_was_killed_from_outside_does_not_decide_the_strategy(deaths: int, tmp_path: Path) -> None:
    def load() -> Any:
        import torch

        def die() -> None:
            number = len(list(tmp_path.iterdir()))
            if number < deaths:
                (tmp_path / str(number)).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        os.register_at_fork(after_in_child=die)
        return torch.nn.Linear(2, 2)

    runtime = Runtime(load=load, workers=1)
    if deaths == 1:
        with runtime:
            assert runtime.plan.strategy == "fork"
    else:
        with pytest.raises(LoadError, match=r"2 canaries .* SIGKILL.*; whether it is safe to fork cannot be told"):
            runtime.wait_until_loaded()
    assert len(list(tmp_path.iterdir())) == deaths
