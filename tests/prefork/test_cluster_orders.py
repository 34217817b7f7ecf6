"""Orders and answers between a driver, Dask's scheduler and a machine, which are real and all in this process."""

from __future__ import annotations

import pickle
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra cluster")
pytest.importorskip("cryptography", reason="needs the extra cluster")

from distributed import Client, LocalCluster

import prefork.cluster.connecting  # noqa: F401  Dask's configuration
from prefork.cluster import orders as orders_module
from prefork.cluster.dispatching import Dispatch, Unit
from prefork.cluster.intake import Intake
from prefork.cluster.machine import MachinePlugin
from prefork.cluster.messages import ORDER, PLUGIN, Answer, EndOrder, JobOrder, MachineReport, describe_version
from prefork.cluster.orders import Orders
from prefork.cluster.watching import reserve
from prefork.cluster.work import Writer
from prefork.engines.base import Job
from prefork.pool.jobs import Course, JobResult


class Post:
    """A driver's orders, what a machine got of them, and what came back."""

    def __init__(self, cluster: LocalCluster, client: Client, session: str) -> None:
        self.machine = next(iter(cluster.workers.values()))
        self.address = str(self.machine.address)
        self.got: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.heard: queue.SimpleQueue[tuple[str, int, Answer]] = queue.SimpleQueue()
        self.failed: queue.SimpleQueue[tuple[int, Exception]] = queue.SimpleQueue()
        self.machine.stream_handlers[ORDER] = lambda session, number, data: self.got.put((number, pickle.loads(data)))
        client.run_on_scheduler(reserve, client=client.id, what="a test", version=describe_version())
        self.orders = Orders(client, session, self._hear, lambda *failed: self.failed.put(failed))

    def _hear(self, address: str, number: int, data: bytes) -> None:
        self.heard.put((address, number, pickle.loads(data)))

    def give(self, order: JobOrder, contents: bool = False, address: str = "") -> int:
        number = self.orders.give(Unit((1,), 1.0), address or self.address, order, contents)
        self.orders.send()
        return number


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "silence_logs": False, "protocol": "tcp://"}
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, **options) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        yield client


@pytest.fixture
def post(cluster: LocalCluster, client: Client) -> Iterator[Post]:
    made = Post(cluster, client, "session")
    yield made
    made.orders.close()


def make_job(folder: Path, name: str, size: int) -> Job:
    path = folder / name
    path.write_bytes(bytes([len(name)]) * size)
    return Job(name, path).note_files()


def test_orders_of_one_moment_come_in_order_and_those_of_nobody_are_lost_alone(post: Post, tmp_path: Path) -> None:
    job = make_job(tmp_path, "a", 10)
    numbers = [post.give(JobOrder(job), address=where) for where in ("", "tcp://127.0.0.1:1", "", "inproc://gone")]
    assert [post.got.get(timeout=10)[0] for _ in range(2)] == [numbers[0], numbers[2]]
    assert post.orders.take(numbers[0]) is not None
    assert post.orders.take(numbers[0]) is None
    post.give(JobOrder(job))
    post.got.get(timeout=10)


def test_recordings_are_read_and_sent_as_far_as_there_is_room(
    post: Post, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders_module, "_MOST_BYTES", 150)
    jobs = [make_job(tmp_path, name, 100) for name in ("a", "ab", "abc", "abcd")]
    numbers = [post.give(JobOrder(job), contents=True) for job in jobs]
    first = dict(post.got.get(timeout=10) for _ in range(2))
    assert set(first) == set(numbers[:2])
    assert first[numbers[1]].contents == {str(tmp_path / "ab"): b"\x02" * 100}
    with pytest.raises(queue.Empty):
        post.got.get(timeout=0.3)
    post.orders.take(numbers[2])  # it is not wanted any more, and takes no room
    post.orders.take(numbers[0])
    assert post.got.get(timeout=10)[0] == numbers[3]


def test_a_file_that_is_gone_costs_its_own_order(post: Post, tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, name, 100) for name in ("a", "ab")]
    (tmp_path / "a").unlink()
    numbers = [post.give(JobOrder(job), contents=True) for job in jobs]
    number, error = post.failed.get(timeout=10)
    assert (number, type(error)) == (numbers[0], FileNotFoundError)
    assert post.got.get(timeout=10)[0] == numbers[1]


def test_a_file_that_cannot_be_read_for_another_reason_costs_its_own_order(post: Post, tmp_path: Path) -> None:
    job = make_job(tmp_path, "a", 100)
    odd = replace(job, states=(replace(job.states[0], path="a\0b"),))
    numbers = [post.give(JobOrder(job), contents=True) for job in (odd, job)]
    number, error = post.failed.get(timeout=10)
    assert (number, type(error)) == (numbers[0], ValueError)
    assert post.got.get(timeout=10)[0] == numbers[1]


def test_a_machine_that_was_refused_answers_that_it_can_do_nothing_and_ends(
    post: Post, client: Client, tmp_path: Path
) -> None:
    client.register_plugin(MachinePlugin("session", "prefork 0.0.1", b""), name=PLUGIN)
    wait_for(lambda: PLUGIN in post.machine.plugins)
    number = post.give(JobOrder(make_job(tmp_path, "a", 10)))
    address, answered, answer = post.heard.get(timeout=10)
    assert (address, answered, answer.lost) == (post.address, number, True)
    ending = post.orders.end(post.address)
    post.orders.send()
    _, answered, answer = post.heard.get(timeout=10)
    assert answered == ending
    assert answer.value is not None
    assert isinstance(pickle.loads(answer.value), MachineReport)
    client.unregister_worker_plugin(PLUGIN)


def test_an_order_that_cannot_be_opened_costs_itself_alone(post: Post, client: Client) -> None:
    client.register_plugin(MachinePlugin("session", "prefork 0.0.1", b""), name=PLUGIN)
    wait_for(lambda: PLUGIN in post.machine.plugins)
    plugin = post.machine.plugins[PLUGIN]
    plugin._take("session", 7, b"no pickle")
    assert post.heard.get(timeout=10)[2].error is not None
    plugin._take("another session", 8, pickle.dumps(EndOrder()))
    plugin._take("session", 9, pickle.dumps(EndOrder()))
    assert post.heard.get(timeout=10)[1] == 9
    client.unregister_worker_plugin(PLUGIN)


def test_a_scheduler_of_another_version_is_refused_with_the_difference(client: Client) -> None:
    refusal = client.run_on_scheduler(reserve, client=client.id, what="a test", version="prefork 0.0.1, Python 3.1")
    assert describe_version() in refusal
    assert "prefork 0.0.1" in refusal


def test_of_many_jobs_few_are_units_and_all_come_out_longest_first() -> None:
    ended: list[JobResult] = []
    dispatch, writer = Dispatch(), Writer()
    intake = Intake(dispatch, writer, dispatch.drop)
    jobs = [Job(f"{number}", Path(f"{number}"), seconds=float(number)) for number in range(100)]
    ordered = sorted(jobs, key=lambda job: -job.seconds)
    intake.add(ordered, Course(()), ended.append, {})
    intake.add([Job("last", Path("last"))], Course(()), ended.append, {})
    dispatch.join("a", "a")
    dispatch.make_ready("a", 2)
    came: list[str] = []
    while len(came) < 60:
        intake.begin(10)
        assert dispatch.waiting <= 10
        for machine, unit in dispatch.assign(0.0):
            came.append(unit.payload.order.job.id)
            dispatch.finish(unit, machine.address, 1.0)
    assert came == [job.id for job in ordered[: len(came)]]
    intake.refuse(RuntimeError("enough"))
    left = [unit.payload.order.job.id for unit in dispatch.list_left()]
    assert sorted([*came, *left, *(result.job.id for result in ended)]) == sorted([*(job.id for job in jobs), "last"])
    assert all(isinstance(result.error, RuntimeError) for result in ended)
    writer.close()


def test_an_error_ends_jobs_that_come_later_too() -> None:
    ended: list[JobResult] = []
    dispatch, writer = Dispatch(), Writer()
    intake = Intake(dispatch, writer, dispatch.drop)
    intake.refuse(RuntimeError("enough"))
    intake.add([Job("late", Path("late"))], Course(()), ended.append, {})
    intake.begin(1)
    assert [str(result.error) for result in ended] == ["enough"]
    writer.close()


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
