"""A worker is given what it knows something of already; nothing is passed over for good."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prefork.pool import events as ev
from prefork.pool.nearness import Near, put_near_first
from prefork.pool.tasks import Task, bundle
from tests.prefork.machine import start


def make_task(job: int, index: int = 0, name: str = "run", attempts: int = 0) -> Task:
    return Task(name, (), lambda *_: None, order=(job, 0, index), attempts=attempts)


def near(*jobs: int) -> Near:
    found = Near()
    for job in jobs:
        found.note(make_task(job))
    return found


def list_jobs(tasks: Sequence[Task]) -> list[int]:
    return [task.order[0] for task in tasks]


def test_first_its_own_jobs_then_those_of_nobody_then_those_of_others() -> None:
    tasks = [make_task(job, index) for job in (1, 2, 3, 4) for index in range(2)]
    assert list_jobs(list(put_near_first(iter(tasks), near(3), [near(1), near(2)]))) == [3, 3, 4, 4, 1, 1, 2, 2]
    assert list_jobs(list(put_near_first(iter(tasks), near(), []))) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_what_a_worker_has_died_of_does_not_wait_for_one_that_knows_it() -> None:
    tasks = [make_task(1, attempts=1), make_task(2), make_task(3)]
    assert list_jobs(list(put_near_first(iter(tasks), near(3), [near(1)]))) == [1, 3, 2]
    tasks = [make_task(1), make_task(2), make_task(3, attempts=2)]
    tasks[2].is_last = True
    assert list_jobs(list(put_near_first(iter(tasks), near(3), [near(1)]))) == [2, 1, 3]


def test_a_worker_knows_the_jobs_of_a_bundle_and_forgets_those_of_long_ago() -> None:
    tasks = [Task("run", (), lambda *_: None, order=(job, 0, 0), items=["x"]) for job in (1, 2)]
    worker = Near()
    worker.note(bundle(tasks))
    assert set(worker.jobs) == {(1,), (2,)}
    for job in range(10, 30):
        worker.note(make_task(job))
    assert not {(1,), (2,)} & set(worker.jobs)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["run", "split", "call"]), st.integers(0, 1)), max_size=90),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
)
def test_every_task_comes_once_and_those_of_a_job_in_their_order(
    made: list[tuple[int, str, int]], own: list[int], others: list[list[int]]
) -> None:
    tasks = [make_task(job, index, name, attempts) for index, (job, name, attempts) in enumerate(made)]
    tasks.sort(key=lambda task: task.order)
    found = list(put_near_first(iter(tasks), near(*own), [near(*jobs) for jobs in others]))
    assert sorted(found, key=lambda task: task.order) == tasks
    for job in range(10):
        alike = [task.order for task in found if task.order[0] == job and not task.attempts and task.name != "call"]
        assert alike == sorted(alike)


@given(st.integers(2, 4), st.integers(4, 12), st.randoms(use_true_random=False))
def test_a_job_s_tasks_are_one_worker_s_where_there_are_jobs_for_all(workers: int, jobs: int, random: Any) -> None:
    machine = start(workers=workers)
    machine.get_ready()

    def submit(job: int, step: int) -> None:
        label = f"{job} {step}"
        machine.feed(ev.TasksSubmitted([Task("run", (label,), lambda *_: None, (job, 0, step), label, step=1.0)]))

    for job in range(jobs):
        submit(job, 0)
    machine.feed(ev.Tick())
    by: dict[int, set[int]] = defaultdict(set)
    left = set(range(jobs))  # that have not begun
    while machine.tasks:
        given = {n: tuple(map(int, pickle.loads(task)[1][0].split())) for n, task in machine.tasks.items()}
        left -= {job for job, _ in given.values()}
        number = random.choice(sorted(given))
        job, step = given[number]
        if left:  # else who has nothing to do helps others
            by[job].add(number)
        machine.finish(number)
        machine.feed(ev.Tick())  # it has another task by now
        if step < 3:
            submit(job, step + 1)
            machine.feed(ev.Tick())
    assert machine.ended == Counter(f"{job} {step}" for job in range(jobs) for step in range(4))
    assert all(len(numbers) == 1 for numbers in by.values()), by
    machine.close()
