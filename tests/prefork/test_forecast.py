"""The forecast: what tasks will take, from what earlier ones took. Without a process."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.memory.forecast import BASE, FLOOR, QUANTILE, History, Series, fit

MB = 1_000_000
POINTS = st.lists(st.tuples(st.floats(0, 1e12), st.integers(0, 10**12)), max_size=60)
ALIKE = st.tuples(st.sampled_from([0.0, 1.0, 5.0 * MB, 400.0 * MB]), st.integers(0, 10**10))  # zero and equal sizes
SIZES = (20 * MB, 50 * MB, 100 * MB, 200 * MB, 400 * MB)
LEAST_SLOPE, MOST_SLOPE = 0.05, 10.0  # of what the configuration suggests


def _draw(count: int, seed: int = 0) -> list[tuple[float, int]]:
    """Tasks as they were measured: 20 MB and half of what the configuration suggests, a tenth more or less."""
    draw = random.Random(seed)
    sizes = [draw.uniform(10, 400) * MB for _ in range(count)]
    return [(size, round((20 * MB + 0.5 * size) * draw.gauss(1.0, 0.1))) for size in sizes]


def _draw_line(count: int, base: float, slope: float, noise: float, seed: int) -> list[tuple[float, int]]:
    draw = random.Random(seed)
    sizes = [draw.uniform(10, 400) * MB for _ in range(count)]
    return [(size, round((base + slope * size) * draw.gauss(1.0, noise))) for size in sizes]


def _write_history(cache: Path, text: str) -> None:
    (cache / "prefork" / "memory").mkdir(parents=True)
    (cache / "prefork" / "memory" / "align-ctc.json").write_text(text)


def test_before_anything_was_measured_the_configuration_decides() -> None:
    assert Series().predict(100 * MB) == BASE + 100 * MB
    assert Series().typical is None


@settings(deadline=None)
@given(points=POINTS, sizes=st.lists(st.floats(0, 1e12), min_size=2, max_size=2))
def test_whatever_was_measured_more_takes_no_less_and_nothing_takes_less_than_nothing(
    points: list[tuple[float, int]], sizes: list[float]
) -> None:
    series = Series(points)
    small, large = sorted(sizes)
    assert 0 <= series.predict(small) <= series.predict(large)


@settings(deadline=None)
@given(st.one_of(POINTS, st.lists(ALIKE, max_size=60)).filter(bool))
def test_whatever_was_measured_most_of_it_stays_below_what_would_be_predicted(points: list[tuple[float, int]]) -> None:
    series = Series(points)
    below = sum(taken <= series.predict(size) for size, taken in series.points)
    assert below >= QUANTILE * len(series.points)


@settings(deadline=None, max_examples=25)
@given(
    base=st.floats(0, 200 * MB),
    slope=st.floats(LEAST_SLOPE, MOST_SLOPE),
    noise=st.floats(0, 0.1),
    seed=st.integers(0, 1000),
)
def test_on_any_line_with_noise_few_tasks_take_more_and_the_usual_one_not_much_less(
    base: float, slope: float, noise: float, seed: int
) -> None:
    above, ratios = [], []
    for number in range(8):  # one alone may have been unlucky with what it has measured
        series = Series(_draw_line(100, base, slope, noise, 17 * seed + number))
        new = _draw_line(100, base, slope, noise, 17 * seed + number + 10**6)
        predicted = [series.predict(size) for size, _ in new]
        above += [taken > prediction for (_, taken), prediction in zip(new, predicted, strict=True)]
        ratios.append(statistics.median(predicted) / statistics.median(taken for _, taken in new))
    assert statistics.mean(above) <= 1 - QUANTILE + 0.02
    assert 0.95 < statistics.median(ratios) < 1.25


@settings(deadline=None, max_examples=40)
@given(
    base=st.floats(0, 200 * MB),
    slope=st.floats(LEAST_SLOPE, MOST_SLOPE),
    place=st.integers(0, 99),
    seed=st.integers(0, 1000),
)
def test_one_in_a_hundred_that_took_ten_times_as_much_spoils_no_prediction_wherever_it_is(
    base: float, slope: float, place: int, seed: int
) -> None:
    points = _draw_line(100, base, slope, 0.1, seed)
    clean = Series(points)
    points[place] = (points[place][0], 10 * points[place][1])
    spoiled = Series(points)
    ratios = [(spoiled.predict(size) + FLOOR) / (clean.predict(size) + FLOOR) for size in SIZES]
    assert 0.8 < min(ratios) <= max(ratios) < 1.25


@pytest.mark.parametrize("change", [1 / 3, 3, 30])
def test_what_lies_32_tasks_of_each_size_back_is_forgotten(change: float) -> None:
    before = [(float(size), size // 2 + number) for size in SIZES for number in range(100)]
    after = [(float(size), round(change * size / 2) + number) for size in SIZES for number in range(32)]
    assert Series([*before, *after]).points == Series(after).points
    assert Series([*before, *after[1:]]).points != Series(after).points


def test_a_size_that_did_not_come_again_is_still_known_by_what_it_took_last() -> None:
    series = Series([(400.0 * MB, 200 * MB)] * 5 + [(20.0 * MB, 10 * MB)] * 1000)
    assert series.points.count((400.0 * MB, 200 * MB)) == 5


@settings(deadline=None, max_examples=40)
@given(base=st.floats(0, 200 * MB), slope=st.floats(LEAST_SLOPE, MOST_SLOPE), seed=st.integers(0, 1000))
def test_outside_of_what_was_measured_the_line_goes_on(base: float, slope: float, seed: int) -> None:
    series = Series(_draw_line(100, base, slope, 0.1, seed))
    for size in (600 * MB, 800 * MB, 1600 * MB):
        assert 0.8 < series.predict(size) / (base + slope * size) < 2
    assert series.predict(0) < 1.5 * base + 2 * BASE  # of which nothing was measured


@pytest.mark.parametrize("taken", [0, 30 * MB, 40_000 * MB])
def test_tasks_that_say_nothing_of_their_size_take_what_the_others_took(taken: int) -> None:
    series = Series([(0.0, taken)] * 40)
    assert taken <= series.predict(0) < 1.1 * taken + FLOOR


@pytest.mark.parametrize("size", [1.0, 100.0 * MB, 1e15])
@pytest.mark.parametrize("taken", [0, 30 * MB, 40_000 * MB])
def test_tasks_of_one_size_take_what_the_others_took(size: float, taken: int) -> None:
    series = Series([(size, taken)] * 40)
    assert taken <= series.predict(size) < 1.1 * taken + FLOOR
    assert series.predict(0) <= series.predict(size) <= series.predict(2 * size)


def test_tasks_without_a_size_that_contradict_all_others_are_no_hindrance() -> None:
    steep = [(1.0 * MB, 0), (2.0 * MB, 200 * MB)] * 32
    series = Series([*steep, *[(0.0, 1000 * MB)] * 20])
    assert series.predict(0) >= 1000 * MB


@pytest.mark.parametrize("size", [math.inf, math.nan, 10**400, 1e200, -5, -math.inf, 1e-200], ids=str)
def test_a_size_that_cannot_be_is_no_hindrance(size: float) -> None:
    series = Series(_draw(50))
    usual = series.predict(100 * MB)
    assert series.predict(size) >= 0
    assert series.predict(100 * MB) == usual
    series.add(size, 50 * MB)
    assert series.predict(size) >= 0
    assert Series([(size, 50 * MB)]).predict(size) >= 50 * MB


@pytest.mark.parametrize(
    "taken", [-5, 0, 1 << 50, 10**400], ids=["negative", "zero", "most", "more than a float holds"]
)
def test_a_measurement_that_cannot_be_is_no_hindrance(taken: int) -> None:
    series = Series([(100.0 * MB, taken)])
    assert 0 <= series.predict(0) <= series.predict(100 * MB) < 1 << 52
    series.add(100 * MB, 70 * MB)
    assert series.predict(100 * MB) >= 70 * MB


def test_the_line_of_a_fit_is_never_below_what_is_added_to_all() -> None:
    line = fit([(1.0 * MB, 0), (2.0 * MB, 200 * MB)] * 32)
    assert line.base >= FLOOR and line.slope > 0 and line.factor > 1


def test_most_tasks_take_no_more_than_predicted_and_not_much_less() -> None:
    series = Series(_draw(200))
    ratios = [series.predict(size) / taken for size, taken in _draw(500, seed=1)]
    assert sum(ratio >= 1 for ratio in ratios) / len(ratios) > QUANTILE - 0.06
    assert sorted(ratios)[250] < 1.25


def test_one_that_took_ten_times_as_much_spoils_nothing_but_a_change_is_followed() -> None:
    before = Series(_draw(200)).predict(200 * MB)
    assert Series([*_draw(200), (200.0 * MB, 1200 * MB)]).predict(200 * MB) < 1.3 * before
    changed = Series([*_draw(200), *((size, 3 * taken) for size, taken in _draw(600, seed=2))])
    assert 2.5 * before < changed.predict(200 * MB) < 4.5 * before


def test_few_measurements_are_trusted_less() -> None:
    predictions = [Series([(100.0 * MB, 70 * MB)] * count).predict(100 * MB) for count in (1, 4, 100)]
    assert predictions[0] > predictions[1] > predictions[2] >= 65 * MB


def test_beyond_what_was_measured_the_slope_goes_on() -> None:
    assert Series(_draw(100)).predict(4000 * MB) > 1500 * MB


def test_what_one_run_has_measured_the_next_one_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    series = Series(_draw(2000))
    History("align", "ctc").store("run|a", series)
    again = History("align", "ctc").load("run|a")
    assert len(again.points) < 1000  # the newest of each size
    assert abs(again.predict(100 * MB) - series.predict(100 * MB)) < MB
    assert History("align", "ctc").load("run|b").points == []
    assert History("align", "other").load("run|a").points == []


def test_what_comes_back_predicts_exactly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    series = Series([*((float(round(size)), taken) for size, taken in _draw(300)), (0.0, 5 * MB), (0.0, 6 * MB)])
    History("align", "ctc").store("run", series)
    again = History("align", "ctc").load("run")
    assert again.points == series.points
    assert [again.predict(size) for size in SIZES] == [series.predict(size) for size in SIZES]
    assert again.typical == series.typical
    for _ in range(32):  # the order, too: what is oldest goes first
        again.add(100.0 * MB, 77 * MB)
        series.add(100.0 * MB, 77 * MB)
    assert again.points == series.points


def test_nothing_measured_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    History("align", "ctc").store("run", Series([(5.0, 7)]))
    History("align", "ctc").store("run", Series())
    assert History("align", "ctc").load("run").points == [(5.0, 7)]


def test_a_history_stays_small_whatever_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    draw = random.Random(0)
    series = Series((float(round(2 ** draw.uniform(0, 90))), draw.randrange(10**12)) for _ in range(20_000))
    for number in range(60):
        History("align", "ctc").store(f"run|{number}", series if number == 59 else Series([(1.0, number)]))
    (file,) = (tmp_path / "prefork" / "memory").iterdir()
    assert list(json.loads(file.read_text())) == [f"run|{number}" for number in range(10, 60)]
    assert len(History("align", "ctc").load("run|59").points) == len(series.points) <= 32 * 101
    assert file.stat().st_size < 200_000


@pytest.mark.parametrize(
    "entry",
    [
        {"version": 2, "points": [[1, 2]]},
        {"version": 0, "points": [[1, 2]]},
        {"version": "1", "points": [[1, 2]]},
        {"version": None, "points": [[1, 2]]},
        {"version": 1},
        {"version": 1, "points": "many"},
        {"version": 1, "points": {"1": 2}},
        {"points": [[1, 2]]},
        [[1, 2]],
        "points",
        7,
        None,
    ],
)
def test_an_entry_of_another_kind_or_version_is_not_there_until_it_is_written_anew(
    entry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _write_history(tmp_path, json.dumps({"run": entry}))
    assert History("align", "ctc").load("run").points == []
    History("align", "ctc").store("run", Series([(5.0, 7)]))
    assert History("align", "ctc").load("run").points == [(5.0, 7)]


@pytest.mark.parametrize(
    "content", ["", '{"run": {"version": 1, "points": [[5, 7], [6', '{"run": {"version": 1, "points": ' + "[" * 9999]
)
def test_a_torn_history_is_not_there_until_it_is_written_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _write_history(tmp_path, content)
    assert History("align", "ctc").load("run").points == []
    History("align", "ctc").store("run", Series([(5.0, 7)]))
    assert History("align", "ctc").load("run").points == [(5.0, 7)]


@pytest.mark.parametrize(
    "point",
    [
        "[NaN, 7]",
        "[5, NaN]",
        "[Infinity, 7]",
        "[5, Infinity]",
        "[-Infinity, 7]",
        "[1e999, 7]",
        "[-1, 7]",
        "[5, -7]",
        "[5, 0]",
        "[5, 7.5]",
        '["5", 7]',
        '[5, "7"]',
        "[null, 7]",
        "[true, 7]",
        "[5, true]",
        "[[5], 7]",
        "[5, [7]]",
        "[[5, 7]]",
        "[5]",
        "[5, 7, 9]",
        "[]",
        "{}",
        "5",
        "null",
        f"[1{'0' * 400}, 7]",
        f"[5, 1{'0' * 400}]",
    ],
    ids=lambda point: point[:20],
)
def test_a_point_that_makes_no_sense_is_left_out(point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _write_history(tmp_path, f'{{"run": {{"version": 1, "points": [[5, 7], {point}, [9, 8]]}}}}')
    assert History("align", "ctc").load("run").points == [(5.0, 7), (9.0, 8)]


def test_a_point_of_no_size_to_speak_of_can_be_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _write_history(tmp_path, '{"run": {"version": 1, "points": [[1e-200, 7], [0.5, 8]]}}')
    series = History("align", "ctc").load("run")
    assert len(series.points) == 2 and series.predict(0) >= 8
