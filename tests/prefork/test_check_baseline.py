"""Reports of `prefork check` as the baseline of later runs: what is new, and what is no report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.check.baseline import find_new, judge, list_items, list_known, read, to_json
from prefork.check.report import annotate, write_junit
from prefork.check.steps import Examined, Finding, Fork, Step, Verdict
from prefork.engines.base import InputError
from tests.prefork.command import run

SUSPECT = "suspect: file /srv/a/weights.bin is open for reading, opened in load (m.py:12); all share its position"
THREAD = "suspect: Python thread decoder_0 (13474), started to run poll (client.py:12), is waiting; end it"


def _examined(*steps: Step, fork: Fork = Fork.PLAIN, name: str = "mine") -> Examined:
    return Examined(name, (Verdict(fork, steps, Finding.SAFE),))


def _hazards(*details: str) -> Step:
    return Step("hazards", Finding.SAFE, f"{len(details)} suspect", 0.5, details)


def _hung(after: int, line: int) -> Step:
    return Step("used", Finding.UNSAFE, f"the child hung: no result after {after} s, in search (m.py:{line})")


def _find_new(known: Examined, found: Examined) -> list[str]:
    return [str(item) for item in find_new(list_items([known]), list_items([found]))]


def test_the_same_in_another_run_is_not_new_whatever_its_numbers_its_folder_and_its_place() -> None:
    known = _examined(_hazards(SUSPECT, THREAD), _hung(3, 12))
    moved = SUSPECT.replace("/srv/a/", "/home/b/c/").replace(":12", ":80")
    again = _examined(_hazards(THREAD.replace("13474", "7"), moved), _hung(11, 80))
    assert _find_new(known, again) == []
    assert judge([]) is Finding.SAFE


def test_what_is_new_is_named_and_fails() -> None:
    known = _examined(_hazards(SUSPECT), _hung(3, 12))
    other = SUSPECT.replace("weights.bin", "words.bin")
    assert _find_new(known, _examined(_hazards(SUSPECT, other))) == [
        f"mine, gunicorn --preload, multiprocessing fork, hazards: suspect: {other.removeprefix('suspect: ')}"
    ]
    assert len(_find_new(known, _examined(_hazards(SUSPECT, SUSPECT)))) == 1, "a second one is new"
    died = Step("used", Finding.UNSAFE, "the child was killed by SIGSEGV")
    assert len(_find_new(known, _examined(died))) == 1, "another way to fail is new"
    assert len(_find_new(known, _examined(_hung(3, 12), fork=Fork.PREFORK))) == 1
    assert len(_find_new(known, _examined(_hung(3, 12), name="yours"))) == 1
    assert _find_new(known, _examined(_hazards("harmless: a semaphore"))) == []


def test_what_is_unsafe_or_suspect_fails_and_what_cannot_be_told_says_so() -> None:
    suspect = list_items([_examined(_hazards(SUSPECT))])
    unknown = list_items([_examined(Step("load", Finding.UNKNOWN, "the disk is gone"))])
    assert judge(suspect) is Finding.UNSAFE
    assert judge(unknown) is Finding.UNKNOWN
    assert judge([*unknown, *suspect]) is Finding.UNSAFE


def test_what_is_known_is_neither_a_failure_nor_an_error(tmp_path: Path) -> None:
    known, found = [_examined(_hung(3, 12))], [_examined(_hazards(SUSPECT), _hung(3, 12))]
    places = list_known(list_items(known), list_items(found))
    assert places == {("mine", "plain", "used")}
    write_junit(tmp_path / "report.xml", found, places)
    assert "unsafe, which is known: the child hung" in (tmp_path / "report.xml").read_text()
    annotations = annotate(found, places, {"GITHUB_ACTIONS": "true"})
    assert [line.partition(" ")[0] for line in annotations] == ["::notice", "::notice"]
    assert annotate(found, (), {"GITHUB_ACTIONS": "true"})[1].startswith("::error ")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    examined = [_examined(_hazards(SUSPECT, THREAD), _hung(3, 12)), _examined(Step("load", Finding.UNKNOWN, "\udcff"))]
    (tmp_path / "report.json").write_text(to_json(examined, Finding.UNSAFE))
    assert read(tmp_path / "report.json") == list_items(examined)


REPORT: dict[str, Any] = json.loads(to_json([_examined(_hazards(SUSPECT), _hung(3, 12))], Finding.UNSAFE))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def _list_places(thing: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    return [place, *(inner for key, part in parts for inner in _list_places(part, (*place, key)))]


@given(place=st.sampled_from(_list_places(REPORT)), value=JSON)
def test_a_damaged_report_is_refused_by_name_or_read(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any
) -> None:
    report = json.loads(json.dumps({"report": REPORT}))
    thing = report
    for key in ("report", *place)[:-1]:
        thing = thing[key]
    thing[("report", *place)[-1]] = value
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(json.dumps(report["report"]))
    try:
        items = read(path)
    except InputError as error:
        assert str(path) in str(error) and "make it by `prefork check ... --json > FILE`" in str(error)
    else:
        assert all(isinstance(item.text, str) for item in items)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"version": 1', "is not JSON"),
        ("[]", "is no report of prefork check"),
        ('{"version": 2, "targets": []}', "has version 2, and this prefork reads 1"),
        ('{"targets": []}', "has version None, and this prefork reads 1"),
        ('{"version": 1, "targets": [{"name": "x"}]}', "is damaged (KeyError: 'verdicts')"),
    ],
)
def test_a_baseline_that_is_none_is_refused_before_anything_is_loaded(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    done = run("check", "ctc", "--baseline", path)
    assert done.returncode == 2
    said = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert reason in said and "make it by" in said
    assert "Traceback" not in said
