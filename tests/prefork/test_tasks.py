"""The queue: what is started when, without a process."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prefork.pool.call_options import CallOptions
from prefork.pool.tasks import HangLimit, Task, TaskQueue


def _task(label: str, order: int = 0, *, attempts: int = 0, closing: bool = False) -> Task:
    return Task("run", (), lambda *_: None, (order,), label, attempts=attempts, closing=closing)


def _drain(queue: TaskQueue, fresh: bool = True, closing: bool = False) -> list[str]:
    labels = []
    while (task := queue.pop(fresh, closing)) is not None:
        labels.append(task.label)
    return labels


def test_tasks_go_by_order_and_equal_ones_as_they_came() -> None:
    queue = TaskQueue()
    queue.push(_task("c", 2), _task("a", 1), _task("b", 1))
    assert _drain(queue) == ["a", "b", "c"]
    assert not queue


def test_what_lost_its_worker_goes_first_but_a_second_attempt_waits_for_a_fresh_worker() -> None:
    queue = TaskQueue()
    queue.push(_task("new"))
    queue.push_again(_task("second", attempts=1))
    queue.push_again(_task("blameless"))
    assert queue.wants_fresh
    assert _drain(queue, fresh=False) == ["blameless", "new"]
    assert _drain(queue, fresh=True) == ["second"]


def test_while_it_drains_only_what_saves_work_is_started_and_the_rest_stays() -> None:
    queue = TaskQueue()
    queue.push(_task("run", 0), _task("join", 1, closing=True))
    assert queue.has_closing
    assert _drain(queue, closing=True) == ["join"]
    assert not queue.has_closing
    assert _drain(queue) == ["run"]


def test_cancelled_tasks_are_never_started() -> None:
    queue = TaskQueue()
    tasks = [_task("a"), _task("b"), _task("c", attempts=1)]
    queue.push(*tasks[:2])
    queue.push_again(tasks[2])
    tasks[0].cancelled = tasks[2].cancelled = True
    assert [task.label for task in queue.clear()] == ["b"]
    assert not queue


def test_the_hang_limit_grows_with_the_audio() -> None:
    assert HangLimit(60.0, 20.0).seconds(15.0) == 360.0


@dataclass
class _WaitingCall:
    rank: int
    priority: int

    def make_task(self) -> Task:
        options = CallOptions(priority=self.priority)
        return Task("call", (), lambda *_: None, (self.rank,), str(self.priority), options=options)


def test_as_many_priorities_as_calls_cost_no_more_than_one() -> None:
    queue, count = TaskQueue(), 40_000
    queue.push_calls(_WaitingCall(number, number * 7919 % count) for number in range(count))
    first = queue.pop_call()
    assert first is not None and (first.label, queue.calls, len(queue)) == (str(count - 1), count - 1, count - 1)
    queue.push_calls_back([first])
    began = time.process_time()
    assert _drain(queue) == [str(priority) for priority in reversed(range(count))]
    assert time.process_time() - began < 5.0  # 0.3 s; to look at all priorities for each call takes 20
    assert queue.calls == 0 and not queue
