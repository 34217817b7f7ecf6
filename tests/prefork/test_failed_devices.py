"""Devices that fail in the middle of a run, on a simulated machine: no task is to blame, and what is left goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.engines.base import LoadError
from prefork.memory.governor import Governor
from prefork.platform_matrix.devices import Device, Devices
from prefork.platform_matrix.failed_devices import give_up
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.platform_matrix.nvml import Load
from prefork.pool import events as ev
from prefork.pool.device_record import DeviceRecord
from prefork.pool.state import Pool
from prefork.wire.endings import UNENDED
from prefork.wire.messages import (
    BatchDone,
    BatchStarted,
    LoadFailed,
    ServerBroken,
    WorkerBroken,
)
from prefork.wire.specification import Specification
from tests.prefork.machine import FACTS, HANG, Machine, Policy, make_task

GB = 10**9
GPUS = tuple(Device("cuda", "NVIDIA H200", 140 * GB, 130 * GB, "9.0", f"{number}0000000") for number in range(2))
ECC = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"


def _plan(count: int = 2, devices: tuple[str, ...] = ("cuda",), strategy: Strategy = Strategy.SERVER) -> Plan:
    facts = replace(FACTS, devices=Devices("2.14", ("cuda",), GPUS[:count]))
    request = Request(engines=("script",), strategy=strategy, workers=2, weights=1000, private=1000, devices=devices)
    plan = decide(facts, request)
    assert not plan.refusal
    return plan


def _start(plan: Plan, tasks: int = 4) -> Machine:
    machine = Machine(Pool(Specification(), plan, Policy(), HANG, 1024))
    machine.feed(ev.Started())
    machine.feed(ev.Tick())
    machine.feed(ev.TasksSubmitted([make_task(f"task {number}", number) for number in range(tasks)]))
    machine.get_ready()
    machine.feed(ev.Tick())
    return machine


def _break_server(machine: Machine, place: int, failed: bool, done: bool = False, status: int = 1) -> None:
    """At a batch of a worker that asks it. done: it has done another one before."""
    number = next(worker.number for worker in machine.pool.workers.all.values() if worker.slot % 2 == place)
    batch = ((number, 0),)
    if done:
        machine.feed(ev.ServerSent(place, BatchStarted(1, batch, 16_000)))
        machine.feed(ev.ServerSent(place, BatchDone(1)))
    machine.feed(ev.ServerSent(place, BatchStarted(2, batch, 16_000)))
    machine.feed(ev.ServerSent(place, ServerBroken(ECC, failed)))
    machine.serving.discard(place)
    machine.feed(ev.ServerExited(place, 7, status))
    machine.load()


def _list_labels(machine: Machine) -> list[str]:
    return list(machine.pool.models.plan.labels)


def _end(machine: Machine) -> dict[str, Any]:
    machine.close()
    assert set(machine.ended.values()) == {1}
    return machine.results


def test_of_several_gpus_the_others_go_on() -> None:
    machine = _start(_plan())
    _break_server(machine, 0, failed=True)
    assert _list_labels(machine) == ["cuda:0", "cuda:1"]  # it may pass
    _break_server(machine, 0, failed=True)
    assert set(_end(machine).values()) == {b"result"}
    assert _list_labels(machine) == ["cuda:1"]
    assert any("cuda:0 is used no more" in notice and "ECC" in notice for notice in machine.notices)


def test_the_cpu_computes_where_nobody_has_asked_for_a_gpu() -> None:
    machine = _start(_plan(count=1, devices=()))
    _break_server(machine, 0, failed=True)
    _break_server(machine, 0, failed=True)
    results = _end(machine)
    assert machine.pool.models.plan.device == "cpu"
    assert set(results.values()) == {b"result"}


def test_where_only_that_gpu_may_compute_the_run_ends_with_the_reason_and_no_task_is_blamed() -> None:
    machine = _start(_plan(count=1, devices=("cuda:0",)))
    _break_server(machine, 0, failed=True)
    _break_server(machine, 0, failed=True)
    results = _end(machine)
    assert {type(result) for result in results.values()} == {LoadError}
    text = str(next(iter(results.values())))
    assert "cuda:0 (NVIDIA H200) cannot be used: it has failed in this run" in text and "--devices cpu" in text


def test_a_fault_that_passes_costs_a_server_and_nothing_else() -> None:
    machine = _start(_plan())
    for _ in range(5):
        _break_server(machine, 0, failed=True, done=True)
    assert len(machine.pool.models.plan.devices) == 2
    assert set(_end(machine).values()) == {b"result"}


def test_a_gpu_that_breaks_on_every_segment_is_to_blame_and_not_the_segments() -> None:
    """An illegal access, which a segment may have caused: twice for the same one, and nothing done before."""
    machine = _start(_plan())
    _break_server(machine, 0, failed=False)
    _break_server(machine, 0, failed=False)
    assert set(_end(machine).values()) == {b"result"}
    assert _list_labels(machine) == ["cuda:1"]


def test_a_gpu_that_hangs_at_every_segment_is_to_blame_and_not_the_segments() -> None:
    """As one that has fallen off the bus, and that raises nothing."""
    machine = _start(_plan())
    for _ in range(2):
        number = next(worker.number for worker in machine.pool.workers.all.values() if worker.slot % 2 == 0)
        machine.feed(ev.ServerSent(0, BatchStarted(1, ((number, 0),), 16_000)))
        machine.now += HANG.seconds(1.0) + 0.1
        machine.feed(ev.Tick())
        assert machine.dying_servers == [0]
        machine.serving.discard(0)
        machine.kill_server(0)
        machine.load()
    assert set(_end(machine).values()) == {b"result"}
    assert _list_labels(machine) == ["cuda:1"]


def test_a_process_that_sigkill_does_not_end_takes_its_gpu_with_it() -> None:
    machine = _start(_plan())
    _break_server(machine, 1, failed=False, status=UNENDED)
    assert set(_end(machine).values()) == {b"result"}
    assert _list_labels(machine) == ["cuda:0"]


def test_a_worker_that_does_not_end_costs_no_gpu_where_a_server_computes() -> None:
    """It has never used one: another device keeps it, as a network's file system does."""
    machine = _start(_plan())
    machine.zygote_is_stuck = True  # nobody says that it has ended
    machine.pool.workers.kill(next(iter(machine.pool.workers.all.values())), "was killed")
    machine.now += HANG.base + 1.0
    machine.feed(ev.Tick())
    assert any("the models are loaded again" in notice for notice in machine.notices)
    assert set(_end(machine).values()) == {b"result"}
    assert _list_labels(machine) == ["cuda:0", "cuda:1"]


def test_a_gpu_that_a_new_server_cannot_use_is_given_up() -> None:
    machine = _start(_plan())
    machine.serving.discard(0)
    machine.feed(ev.ServerExited(0, 7, -9))
    for _ in range(2):
        machine.feed(ev.ServerSent(0, LoadFailed("no CUDA-capable device is detected", "", device_failed=True)))
        machine.feed(ev.ServerExited(0, 7, 0))
    assert set(_end(machine).values()) == {b"result"}
    assert _list_labels(machine) == ["cuda:1"]


def _lose_worker(machine: Machine, failed: bool, status: int = 1) -> bool:
    """One that computes by itself, at a task."""
    number = next(iter(machine.tasks), None)
    if number is None or machine.pool.models.servers is not None:
        return False
    if status != UNENDED:
        machine.feed(ev.WorkerSent(number, WorkerBroken(ECC, failed)))
    machine.kill(number, status)
    return True


@pytest.mark.parametrize(("failed", "status", "losses"), [(True, 1, 2), (False, 1, 2), (False, UNENDED, 1)])
def test_a_worker_with_a_model_of_its_own_is_not_blamed_either(failed: bool, status: int, losses: int) -> None:
    machine = _start(_plan(count=1, devices=(), strategy=Strategy.SPAWN), tasks=1)
    for _ in range(losses):
        assert _lose_worker(machine, failed, status)
        machine.get_ready()
        machine.feed(ev.Tick())
    assert _end(machine) == {"task 0": b"result"}
    assert machine.pool.models.plan.device == "cpu"


def test_a_gpu_that_new_workers_cannot_use_is_given_up_before_they_are() -> None:
    machine = Machine(Pool(Specification(), _plan(count=1, devices=(), strategy=Strategy.SPAWN), Policy(), HANG, 1024))
    machine.feed(ev.Started())
    machine.feed(ev.TasksSubmitted([make_task("task 0")]))
    for _ in range(2):
        machine.feed(ev.Tick())
        number = next(iter(machine.silent))
        machine.feed(ev.WorkerSent(number, WorkerBroken("cannot use the GPU: it has fallen off the bus", True)))
        machine.kill(number, status=1)
    assert _end(machine) == {"task 0": b"result"}
    assert machine.pool.models.plan.device == "cpu"
    assert any("fallen off the bus" in notice for notice in machine.notices)


def _take(machine: Machine, step: str, random: Any) -> None:
    """One thing that can happen to a machine with GPUs."""
    workers = machine.pool.workers.all
    steps: dict[str, Callable[[], object]] = {
        "tick": lambda: machine.feed(ev.Tick()),
        "load": machine.get_ready,
        "finish": lambda: machine.finish(random.choice(list(machine.tasks))) if machine.tasks else None,
        "end": machine.end_dying,
        "wait": lambda: setattr(machine, "now", machine.now + 3.0),
        "fault": lambda: _lose_worker(machine, failed=True),
        "context": lambda: _lose_worker(machine, failed=False),
        "unended": lambda: _lose_worker(machine, failed=False, status=UNENDED),
        "kill zygote": lambda: machine.kill_zygote() if machine.zygote else None,
    }
    if step.startswith("server "):
        places = {worker.slot % 2 for worker in workers.values()} & machine.serving
        if places:
            _break_server(machine, random.choice(sorted(places)), failed=step == "server fault")
    else:
        steps[step]()


_STEPS = (
    "tick",
    "load",
    "finish",
    "end",
    "wait",
    "fault",
    "context",
    "unended",
    "kill zygote",
    "server fault",
    "server context",
)


@settings(deadline=None)
@given(
    count=st.integers(1, 2),
    asked=st.booleans(),
    strategy=st.sampled_from([Strategy.SERVER, Strategy.SPAWN]),
    steps=st.lists(st.sampled_from(_STEPS), max_size=30),
    random=st.randoms(use_true_random=False),
)
def test_whatever_fails_each_task_ends_once_and_is_blamed_for_nothing_that_was_the_hardwares(
    count: int, asked: bool, strategy: Strategy, steps: Sequence[str], random: Any
) -> None:
    machine = _start(_plan(count, ("cuda",) if asked else (), strategy))
    for step in steps:
        if machine.pool.failure is None:
            _take(machine, step, random)
    results = _end(machine)
    assert len(results) == 4
    if not any("context" in step or "zygote" in step for step in steps):
        assert all(result == b"result" or isinstance(result, LoadError) for result in results.values()), results


def test_a_device_is_believed_once_for_each_time_that_it_has_done_something() -> None:
    record = DeviceRecord()
    assert not record.blames()
    record.note_done()
    assert record.blames() and not record.blames()
    assert [record.note_fault(), record.note_fault()] == [False, True]
    record.note_done()
    assert not record.note_fault()


def test_a_run_that_a_gpu_has_begun_goes_on_in_its_data_type() -> None:
    """The results of both are one run's, and the journal has one data type for them."""
    plan = _plan(count=1, devices=())
    plan = replace(plan, facts=replace(plan.facts, instructions=("avx512_vnni",)))
    assert decide(plan.facts, replace(plan.request, devices=("cpu",))).fast_dtype == "int8"
    left = give_up(plan, 0, "it fails")
    assert (left.device, plan.fast_dtype, left.fast_dtype) == ("cpu", "float32", "float32")


def test_the_load_of_the_gpus_that_are_left_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        def __init__(self, names: Sequence[str]) -> None:
            self.read = lambda: [Load(50.0, GB)] * len(names)

    monkeypatch.setattr("prefork.memory.governor.LoadMeter", Meter)
    governor = Governor(clock=itertools.count(0, 10).__next__)
    both, one = _plan(), _plan(count=1, devices=())
    for plan in (both, give_up(both, 0, "it fails"), one, give_up(one, 0, "it fails")):
        governor.begin(plan, 0)
        assert governor.look(dict)
        assert len(governor.tally.busy) == len(governor.tally.used) == len(plan.devices)
    governor.end()


def test_what_is_given_up_is_not_chosen_again() -> None:
    plan = _plan(devices=())
    first = plan.labels[0]
    left = give_up(plan, 0, "it fails")
    assert left.labels and left.labels[0] != first
    last = give_up(left, 0, "it fails too")
    assert (last.device, last.refusal) == ("cpu", "")
    assert "it fails" in last.fallback and "it fails too" in last.fallback
