"""Admission: who may start, and how short memory is. Without a process."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.memory.admission import PATIENCE, Holder, Level, choose, find_room, judge
from prefork.platform_matrix.memory import MachineMemory, keep_back

GB = 1 << 30
SIZES = st.integers(1, 1000)
TURN = 5.0  # seconds
LEVELS = st.sampled_from(list(Level))
PERCENT = st.one_of(st.none(), st.floats(0, 100))
AVAILABLE = st.integers(0, 3 * GB)


@dataclass
class Made:
    """A task that was made up: bytes predicted, bytes taken at its end, and turns that it takes."""

    predicted: int
    peak: int
    turns: int
    passed: float | None = None  # since when others have passed it
    age: int = 0

    @property
    def holder(self) -> Holder:
        return Holder(self.peak * self.age // self.turns, self.predicted)


class Simulation:
    """A run without processes, in which tasks grow turn by turn. Started as the supervisor does: the first that may,
    and if none may though nothing runs, the first one alone."""

    def __init__(self, waiting: list[Made], limit: int, workers: int) -> None:
        self.limit, self.workers, self.reserve = limit, workers, keep_back(limit)
        self.waiting, self.running, self.ended = waiting, list[Made](), list[Made]()
        self.turn = 0

    @property
    def used(self) -> int:
        return sum(task.holder.used for task in self.running)

    def run(self) -> None:
        """One turn: tasks start, then all that run grow, and those whose time is over end."""
        alone = False
        while self.waiting and len(self.running) < self.workers and not alone:
            now = self.turn * TURN
            weighed = [(task.predicted, 0.0 if task.passed is None else now - task.passed) for task in self.waiting]
            available = max(0, self.limit - self.used)
            place = choose(weighed, find_room(available, self.reserve, [task.holder for task in self.running]))
            if place is None and self.running:
                break
            alone = place is None
            for task in self.waiting[: place or 0]:
                task.passed = now if task.passed is None else task.passed
            self.running.append(self.waiting.pop(place or 0))
            promised = sum(max(0, task.predicted - task.holder.used) for task in self.running)
            assert alone or promised <= available - self.reserve
        for task in self.running:
            task.age += 1
        self.ended += [task for task in self.running if task.age == task.turns]
        self.running = [task for task in self.running if task.age < task.turns]
        self.turn += 1


MADE = st.builds(
    lambda predicted, share, turns: Made(predicted, round(share * predicted), turns),
    predicted=SIZES,
    share=st.floats(0, 1),
    turns=st.integers(1, 12),
)
GREEDY = st.builds(Made, predicted=SIZES, peak=SIZES, turns=st.integers(1, 12))


def test_the_reserve_is_a_tenth_and_two_gigabytes_at_most() -> None:
    assert [round(keep_back(size * GB) / GB, 6) for size in (4, 16, 512)] == [0.4, 1.6, 2.0]


def test_what_running_workers_may_still_take_is_not_given_twice() -> None:
    workers = [Holder(used=100, predicted=300), Holder(used=500, predicted=400), Holder(used=50)]
    assert find_room(1000, 100, workers) == 700


def test_a_small_task_passes_one_that_does_not_fit_but_not_for_ever() -> None:
    assert choose([(500, 0.0), (300, 0.0), (100, 0.0)], 350) == 1
    assert choose([(500, PATIENCE), (300, 0.0)], 350) == 1
    assert choose([(500, PATIENCE + 1), (300, 0.0)], 350) is None
    assert choose([(500, PATIENCE + 1), (300, 0.0)], 500) == 0
    assert choose([], 500) is None


@settings(deadline=None)
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


@settings(deadline=None)
@given(
    tasks=st.lists(MADE, max_size=40), limit=st.integers(1200, 5000), workers=st.integers(1, 8), longest=st.booleans()
)
def test_tasks_that_take_what_was_predicted_never_touch_the_reserve_whatever_their_order(
    tasks: list[Made], limit: int, workers: int, longest: bool
) -> None:
    if longest:
        tasks.sort(key=lambda task: -task.predicted)
    run = Simulation(list(tasks), limit, workers)
    for _ in range(sum(task.turns for task in tasks)):  # at least one runs in every turn
        run.run()
        assert run.used + sum(task.holder.promised for task in run.running) <= limit - run.reserve
    assert len(run.ended) == len(tasks)


@settings(deadline=None)
@given(tasks=st.lists(GREEDY, max_size=40), limit=st.integers(100, 3000), workers=st.integers(1, 8))
def test_tasks_that_take_more_or_do_not_fit_end_as_well_and_get_no_memory_that_was_promised(
    tasks: list[Made], limit: int, workers: int
) -> None:
    run = Simulation(list(tasks), limit, workers)
    for _ in range(sum(task.turns for task in tasks)):
        run.run()
    assert len(run.ended) == len(tasks)


@settings(deadline=None)
@given(
    place=st.integers(0, 5),
    small=st.integers(1, 400),
    turns=st.integers(1, 4),
    workers=st.integers(2, 8),
)
def test_a_large_task_is_not_starved_by_small_ones_that_keep_coming(
    place: int, small: int, turns: int, workers: int
) -> None:
    large = Made(900, 900, 1)
    run = Simulation([Made(small, small, turns) for _ in range(workers + 5)], 1000, workers)
    run.run()
    run.waiting.insert(min(place, len(run.waiting)), large)
    most = run.turn + PATIENCE / TURN + (place + 1) * turns + 2  # those before it, its patience, those that still run
    while large in run.waiting and run.turn <= most:
        run.waiting += [Made(small, small, turns) for _ in range(workers)]
        run.run()
    assert large not in run.waiting


def test_small_tasks_do_pass_as_long_as_the_large_one_is_patient_and_none_after_that() -> None:
    run = Simulation([Made(600, 600, 20), Made(500, 500, 1), *(Made(50, 50, 1) for _ in range(40))], 1000, 2)
    for _ in range(20):
        run.run()
    passed = sum(task.predicted == 50 for task in run.ended)
    assert passed == PATIENCE / TURN + 1  # one in each turn, the last one just within its patience
    run.run()
    assert all(task.predicted != 500 for task in run.waiting)


@pytest.mark.parametrize(("size", "most"), [(4, 3), (16, 14), (512, 510)])
def test_tasks_of_a_gigabyte_fill_a_machine_up_to_its_reserve(size: int, most: int) -> None:
    run = Simulation([Made(GB, GB, 3) for _ in range(600)], size * GB, 600)
    run.run()
    assert len(run.running) == most
    assert size * GB - most * GB >= keep_back(size * GB) > size * GB - (most + 1) * GB


def test_a_machine_that_is_full_has_no_room_even_for_nothing() -> None:
    assert find_room(100, 200, []) == -100
    assert choose([(0, 0.0)], -100) is None
    assert choose([(0, 0.0)], 0) == 0


def _judge(available: float, before: Level = Level.EASY, some: float = 0.0, full: float = 0.0) -> Level:
    return judge(MachineMemory(10 * GB, int(available * GB), 10 * GB, some, full), GB, before)[0]


def test_the_shorter_memory_is_the_more_is_done_about_it() -> None:
    assert [_judge(gb) for gb in (5, 0.9, 0.4, 0.2)] == list(Level)


def test_pressure_counts_where_the_kernel_tells_of_it() -> None:
    assert [_judge(5, some=some, full=full) for some, full in ((10, 0), (30, 0), (90, 50))] == list(Level)[:3]
    level, why = judge(MachineMemory(10 * GB, 5 * GB, 10 * GB), GB)
    assert (level, why) == (Level.EASY, "")


@given(available=AVAILABLE, unused=AVAILABLE, before=LEVELS)
def test_where_the_system_says_how_short_memory_is_only_limits_count_beside_it(
    available: int, unused: int, before: Level
) -> None:
    """macOS: next to nothing is available all the time."""
    found = []
    for pressure in (1, 2, 4):
        level, why = judge(MachineMemory(10 * GB, available, 10 * GB, None, None, 0, pressure), GB, before)
        assert level is {1: Level.EASY, 2: Level.TIGHT, 4: Level.CRITICAL}[pressure] and bool(why) is (pressure > 1)
        found.append(judge(MachineMemory(10 * GB, available, 10 * GB, None, None, 0, pressure, unused), GB, before)[0])
    assert found[0] is judge(MachineMemory(10 * GB, unused, 10 * GB), GB, before)[0]
    assert found == sorted(found)


def test_it_is_easy_again_only_when_there_is_a_little_more() -> None:
    assert _judge(1.05) is Level.EASY
    assert _judge(1.05, before=Level.TIGHT) is Level.TIGHT
    assert _judge(1.2, before=Level.TIGHT) is Level.EASY


@settings(deadline=None)
@given(
    levels=st.tuples(LEVELS, LEVELS),
    available=st.tuples(AVAILABLE, AVAILABLE),
    some=st.tuples(st.floats(0, 100), st.floats(0, 100)),
    full=st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_with_less_memory_more_pressure_or_a_worse_past_it_is_never_easier(
    levels: tuple[Level, Level],
    available: tuple[int, int],
    some: tuple[float, float],
    full: tuple[float, float],
) -> None:
    easy = judge(MachineMemory(10 * GB, max(available), 10 * GB, min(some), min(full)), GB, min(levels))[0]
    hard = judge(MachineMemory(10 * GB, min(available), 10 * GB, max(some), max(full)), GB, max(levels))[0]
    assert easy <= hard


@settings(deadline=None)
@given(available=AVAILABLE, some=PERCENT, full=PERCENT, before=LEVELS)
def test_there_is_a_reason_for_every_level_but_easy_and_it_holds(
    available: int, some: float | None, full: float | None, before: Level
) -> None:
    level, why = judge(MachineMemory(10 * GB, available, 10 * GB, some, full), GB, before)
    assert bool(why) == (level > Level.EASY)
    assert "  " not in why and "{" not in why
    if "reserve" in why:
        shares = {"a quarter of the": 0.25, "half of the": 0.5, "1.1 times the": 1.1, "less than the": 1.0}
        assert available < next(share for words, share in shares.items() if words in why) * GB
    elif why:
        assert max(some or 0.0, full or 0.0) >= 20


@pytest.mark.parametrize(
    ("available", "level"),
    [
        (GB, Level.EASY),
        (GB - 1, Level.TIGHT),
        (GB // 2, Level.TIGHT),
        (GB // 2 - 1, Level.CRITICAL),
        (GB // 4, Level.CRITICAL),
        (GB // 4 - 1, Level.DESPERATE),
        (0, Level.DESPERATE),
    ],
)
def test_the_levels_begin_at_the_reserve_its_half_and_its_quarter(available: int, level: Level) -> None:
    assert judge(MachineMemory(10 * GB, available, 10 * GB), GB)[0] is level


def test_memory_that_wavers_about_the_reserve_does_not_make_the_level_waver() -> None:
    level, seen = Level.EASY, []
    for available in itertools.islice(itertools.cycle([0.99, 1.01, 1.05]), 12):
        level = _judge(available, before=level)
        seen.append(level)
    assert set(seen) == {Level.TIGHT}
    assert _judge(1.2, before=level) is Level.EASY
    assert _judge(0.9, before=Level.DESPERATE) is Level.TIGHT


def test_pressure_alone_never_ends_a_worker_at_its_work() -> None:
    assert _judge(5, some=100, full=100) is Level.CRITICAL
    assert _judge(0.2, some=0, full=0) is Level.DESPERATE
