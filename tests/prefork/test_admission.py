"""Admission: who may start, and how short memory is. Without a process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from platform_matrix.memory import MachineMemory, keep_back
from prefork.admission import PATIENCE, Holder, Level, choose, find_room, judge

GB = 1 << 30
SIZES = st.integers(1, 1000)


def test_the_reserve_is_a_tenth_and_two_gigabytes_at_most() -> None:
    assert [round(keep_back(size * GB) / GB, 6) for size in (4, 16, 512)] == [0.4, 1.6, 2.0]


def test_what_running_workers_may_still_take_is_not_given_twice() -> None:
    workers = [Holder(used=100, predicted=300), Holder(used=500, predicted=400), Holder(used=50)]
    assert find_room(1000, 100, workers) == 700
    assert [worker.excess for worker in workers] == [-200, 100, 50]


def test_a_small_task_passes_one_that_does_not_fit_but_not_for_ever() -> None:
    assert choose([(500, 0.0), (300, 0.0), (100, 0.0)], 350) == 1
    assert choose([(500, PATIENCE), (300, 0.0)], 350) == 1
    assert choose([(500, PATIENCE + 1), (300, 0.0)], 350) is None
    assert choose([(500, PATIENCE + 1), (300, 0.0)], 500) == 0
    assert choose([], 500) is None


@given(peaks=st.lists(SIZES, max_size=40), limit=st.integers(1200, 3000), workers=st.integers(1, 8))
def test_never_more_is_promised_than_there_is_and_everything_ends(peaks: list[int], limit: int, workers: int) -> None:
    """A run without processes: tasks take what was predicted, a turn after they have started, and end a turn later."""
    reserve = keep_back(limit)
    waiting = sorted(peaks, reverse=True)
    running: list[Holder] = []
    for _ in range(3 * len(peaks) + 3):
        available = limit - sum(holder.used for holder in running)
        while len(running) < workers:
            place = choose([(peak, 0.0) for peak in waiting], find_room(available, reserve, running))
            if place is None:
                break
            running.append(Holder(0, waiting.pop(place)))
        assert sum(max(holder.used, holder.predicted) for holder in running) <= limit - reserve
        running = [Holder(holder.predicted, holder.predicted) for holder in running if not holder.used]
    assert not waiting


def _judge(available: float, before: Level = Level.EASY, some: float = 0.0, full: float = 0.0) -> Level:
    return judge(MachineMemory(10 * GB, int(available * GB), 10 * GB, some, full), GB, before)[0]


def test_the_shorter_memory_is_the_more_is_done_about_it() -> None:
    assert [_judge(gb) for gb in (5, 0.9, 0.4, 0.2)] == list(Level)


def test_pressure_counts_where_the_kernel_tells_of_it() -> None:
    assert [_judge(5, some=some, full=full) for some, full in ((10, 0), (30, 0), (90, 50))] == list(Level)[:3]
    level, why = judge(MachineMemory(10 * GB, 5 * GB, 10 * GB), GB)
    assert (level, why) == (Level.EASY, "")


def test_it_is_easy_again_only_when_there_is_a_little_more() -> None:
    assert _judge(1.05) is Level.EASY
    assert _judge(1.05, before=Level.TIGHT) is Level.TIGHT
    assert _judge(1.2, before=Level.TIGHT) is Level.EASY
