"""The forecast: what tasks will take, from what earlier ones took. Without a process."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.forecast import BASE, QUANTILE, History, Series

MB = 1_000_000
POINTS = st.lists(st.tuples(st.floats(0, 1e12), st.integers(0, 10**12)), max_size=60)


def _draw(count: int, seed: int = 0) -> list[tuple[float, int]]:
    """Tasks as they were measured: 20 MB and half of what the configuration suggests, a tenth more or less."""
    draw = random.Random(seed)
    sizes = [draw.uniform(10, 400) * MB for _ in range(count)]
    return [(size, round((20 * MB + 0.5 * size) * draw.gauss(1.0, 0.1))) for size in sizes]


def test_before_anything_was_measured_the_configuration_decides() -> None:
    assert Series().predict(100 * MB) == BASE + 100 * MB
    assert Series().typical is None


@given(points=POINTS, sizes=st.lists(st.floats(0, 1e12), min_size=2, max_size=2))
def test_whatever_was_measured_more_takes_no_less_and_nothing_takes_less_than_nothing(
    points: list[tuple[float, int]], sizes: list[float]
) -> None:
    series = Series(points)
    small, large = sorted(sizes)
    assert 0 <= series.predict(small) <= series.predict(large)


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


@pytest.mark.parametrize(
    "entry",
    [
        {"version": 2, "points": [[1, 2]]},
        {"version": 1, "points": "many"},
        {"points": [[1, 2]]},
        [[1, 2]],
        None,
    ],
)
def test_an_entry_of_another_kind_or_version_is_not_there(
    entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "prefork" / "memory").mkdir(parents=True)
    (tmp_path / "prefork" / "memory" / "align-ctc.json").write_text(json.dumps({"run": entry}))
    assert History("align", "ctc").load("run").points == []


def test_points_that_make_no_sense_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "prefork" / "memory").mkdir(parents=True)
    text = '{"run": {"version": 1, "points": [[5, 7], [NaN, 7], [Infinity, 7], [-1, 7], [5, -7], ["5", 7], [5], 5]}}'
    (tmp_path / "prefork" / "memory" / "align-ctc.json").write_text(text)
    assert History("align", "ctc").load("run").points == [(5.0, 7)]
