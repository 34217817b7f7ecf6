"""Weights that an owner process has put into a device's memory, and workers that look into it.

The device is the host's memory here: what differs on a GPU is in `prefork.weights.device_memory.CUDAMemory` alone, and
has its tests in tests/gpu.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import prefork.pool.requests
from prefork import LoadError, Runtime
from prefork.platform_matrix.matrix import Plan, Request, Strategy
from prefork.pool.actions import StartOwners
from prefork.pool.events import OwnerSent
from prefork.pool.jobs import JobResult
from prefork.pool.server_processes import ServerProcesses
from prefork.wire.messages import IPCUnavailable
from tests.prefork.command import write_job

pytestmark = pytest.mark.usefixtures("script_engine")
_decide = prefork.pool.requests.make_plan


class HostPlan(Plan):
    """A plan for CUDA IPC on a machine without CUDA: what is learned changes nothing of it."""

    def learn(self, *sizes: Any, no_ipc: str = "", **news: Any) -> Plan:
        return _decide(replace(self.request, strategy=Strategy.SERVER)) if no_ipc else self


@pytest.fixture
def _host_ipc(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(request: Request) -> Plan:
        plan = _decide(replace(request, strategy=None))
        values = {field.name: getattr(plan, field.name) for field in fields(plan)}
        return HostPlan(**{**values, "strategy": Strategy.IPC})

    monkeypatch.setattr(prefork.pool.requests, "make_plan", make)


def read(results: list[JobResult]) -> dict[str, list[tuple[str, float | None]]]:
    return {r.job.id: [(u.text, u.words[0].end) for u in r.document.utterances] for r in results if r.document}


def start(**options: Any) -> Runtime:
    return Runtime("script", workers=2, strategy="ipc", **options)


@pytest.mark.usefixtures("_host_ipc")
def test_workers_compute_on_the_weights_of_an_owner_process(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", "say one", "say three") for number in range(6)]
    with start() as runtime:
        results = list(runtime.map(jobs))
        pids = runtime.supervisor.list_pids()
        assert runtime.plan.strategy is Strategy.IPC
        assert _find_memory(pids["owner"]) in _list_mapped(pids["worker 0"])
        assert _find_memory(pids["owner"]) not in _list_mapped(pids["zygote"])
    assert read(results) == {job.id: [("say one", 6.0), ("say three", 10.0)] for job in jobs}


def _find_memory(owner: int) -> int:
    """The inode of what an owner has put the weights into."""
    return next(fd.stat().st_ino for fd in Path(f"/proc/{owner}/fd").iterdir() if "prefork-arena" in str(fd.readlink()))


def _list_mapped(pid: int) -> set[int]:
    return {
        int(line.split()[4]) for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if len(line.split()) > 4
    }


@pytest.mark.slow
@pytest.mark.usefixtures("_host_ipc")
def test_when_an_owner_dies_its_readers_are_ended_and_nothing_is_lost(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", *["sleep"] * 20) for number in range(8)]
    notices: list[str] = []
    with start(notice=notices.append) as runtime:
        results = runtime.map(jobs)
        first = next(results)
        before = runtime.supervisor.list_pids()
        os.kill(before["owner"], signal.SIGKILL)
        rest = list(results)
        after = runtime.supervisor.list_pids()
    assert [result.error for result in [first, *rest]] == [None] * 8
    assert before["owner"] != after["owner"]
    assert not {pid for name, pid in before.items() if "worker" in name} & set(after.values())
    assert any("owner" in notice and "SIGKILL" in notice for notice in notices)


@pytest.mark.usefixtures("_host_ipc")
def test_what_is_computed_on_weights_that_were_written_over_is_never_kept(tmp_path: Path) -> None:
    jobs = [write_job(tmp_path, f"talk{number}", *["sleep"] * 10, "say one") for number in range(12)]
    notices: list[str] = []
    with start(notice=notices.append) as runtime:
        results = runtime.map(jobs)
        first = next(results)
        _write_over(runtime)
        rest = list(results)
    assert [result.error for result in [first, *rest]] == [None] * 12
    assert {lines[-1] for lines in read([first, *rest]).values()} == {("say one", 6.0)}
    assert any("the models are loaded again, and running tasks start over" in notice for notice in notices)


def _write_over(runtime: Runtime) -> None:
    """Another process of this user can write to the host's memory, if not to a GPU's."""
    owner = runtime.supervisor.list_pids()["owner"]
    for fd in Path(f"/proc/{owner}/fd").iterdir():
        if "prefork-arena" in str(fd.readlink()):
            with open(fd, "r+b") as file:
                file.seek(0)
                file.write(b"\x00\x00\x40\x41" * 1000)  # 12.0
            return
    raise AssertionError("the owner has no memory")


@pytest.mark.slow
@pytest.mark.usefixtures("_host_ipc")
def test_where_memory_cannot_be_shared_one_process_has_the_models_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(processes: ServerProcesses, _: StartOwners, path: str) -> None:
        processes._watch.feed(OwnerSent(0, IPCUnavailable("this driver says no")))

    monkeypatch.setattr(ServerProcesses, "start_owners", refuse)
    notices: list[str] = []
    with start(notice=notices.append) as runtime:
        results = list(runtime.map([write_job(tmp_path, "talk", "say one")]))
        assert runtime.plan.strategy is Strategy.SERVER
    assert read(results) == {"talk.txt": [("say one", 6.0)]}
    assert any("this driver says no" in notice for notice in notices)


@pytest.mark.slow
@pytest.mark.usefixtures("_host_ipc")
def test_a_worker_that_starts_on_weights_that_were_written_over_has_all_loaded_anew(tmp_path: Path) -> None:
    with Runtime("script", workers=1, strategy="ipc", notice=lambda _: None) as runtime:
        assert read(list(runtime.map([write_job(tmp_path, "first", "say one")])))
        before = runtime.supervisor.list_pids()
        _write_over(runtime)
        os.kill(before["worker 0"], signal.SIGKILL)
        until = time.monotonic() + 60
        while runtime.supervisor.list_pids().get("owner") == before["owner"] and time.monotonic() < until:
            time.sleep(0.05)
        results = list(runtime.map([write_job(tmp_path, "talk", "say one")]))
    assert read(results) == {"talk.txt": [("say one", 6.0)]}


@pytest.mark.usefixtures("_host_ipc")
def test_other_weights_are_loaded_once_all_calls_on_the_old_ones_have_ended() -> None:
    import script_calls as calls

    with Runtime(load=partial(calls.load_filled, 1.0), workers=2, notice=pytest.fail) as runtime:
        assert runtime.plan.strategy is Strategy.IPC
        before = runtime.supervisor.list_pids()
        running = runtime.with_options(retry=False).submit(calls.note_score, os.devnull, 0.5)
        assert runtime.submit(calls.score).result() == 4.0
        runtime._begin_reload(partial(calls.load_filled, 2.0)).result(timeout=60)
        assert (running.result(), runtime.submit(calls.score).result(timeout=60)) == (4.0, 8.0)
        assert not set(before.values()) & set(runtime.supervisor.list_pids().values())
        with pytest.raises(LoadError, match="the tensor weight is"):
            runtime._begin_reload(calls.load_wide).result(timeout=60)
        assert runtime.submit(calls.score).result(timeout=60) == 8.0


@pytest.mark.usefixtures("_host_ipc")
def test_a_model_that_is_not_what_it_says_is_refused_by_the_child_that_tries_it() -> None:
    with pytest.raises(LoadError, match="its model says something else; take another"):
        Runtime("tracing", options={"fail": "verify"}, workers=1, strategy="ipc").__enter__()
