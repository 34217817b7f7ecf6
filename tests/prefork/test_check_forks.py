"""`prefork check` of what children share and lack: as prefork forks them, and as a plain fork does."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prefork.check.fork_check import examine, examine_plainly
from prefork.check.steps import PLAIN_STEPS, STEPS, Finding, Step
from prefork.check.targets import Reference, Target
from prefork.platform_matrix.matrix import Request
from prefork.pool.requests import make_plan
from tests.prefork.command import run

MODELS = Path(__file__).resolve().parents[1] / "data" / "sharing_models.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what every descriptor is")


@cache
def _examine(
    act: Callable[..., Iterator[Step]], load: str, infer: str, deadline: float | None = None
) -> dict[str, Step]:
    target = Target("mine", load=Reference.parse(f"{MODELS}:{load}"), infer=Reference.parse(f"{MODELS}:{infer}"))
    return {step.name: step for step in act(target, make_plan(Request()), deadline)}


PLAIN = {
    "seeks and reads": (
        "load_file",
        "infer_from_file",
        "fresh",
        r"moved a position in a file that all processes share",
    ),
    "asks a program": ("load_program", "infer_by_program", "parallel", r"hung|differ|raised"),
    "keeps a connection": (
        "load_connection",
        "infer_over_connection",
        "used",
        "the child used a connection that all processes share",
    ),
    "asks a thread": ("Queue", "infer_by_thread", "used", r"the child hung: .*ask \(sharing_models.py:\d+\)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_what_a_plain_fork_breaks_is_unsafe_and_what_may_be_behind_it_is_named(kind: str) -> None:
    load, infer, name, reason = PLAIN[kind]
    steps = _examine(examine_plainly, load, infer)
    assert list(steps) == list(PLAIN_STEPS)
    assert steps[name].finding is Finding.UNSAFE, steps
    assert re.search(reason, steps[name].text), steps[name]
    named = {
        "seeks and reads": "file ",
        "asks a program": "process ",
        "keeps a connection": "is connected to 127.0.0.1 port ",
        "asks a thread": "Python thread server",
    }[kind]
    assert any(named in detail for detail in steps[name].details), steps[name]
    assert any(named in detail for detail in steps["hazards"].details), steps["hazards"]


@pytest.mark.slow
def test_children_that_read_one_file_at_once_get_wrong_results_and_the_check_counts_them() -> None:
    steps = _examine(examine_plainly, "load_file", "infer_from_file")
    assert steps["parallel"].finding is Finding.UNSAFE
    assert re.fullmatch(
        r"[1-9]\d* of \d+ results of 8 children at once differ from the parent's", steps["parallel"].text
    )
    assert any("prefork-sharing-" in detail for detail in steps["parallel"].details)


@pytest.mark.slow
def test_who_reads_at_positions_of_its_own_is_safe_and_the_file_is_named_all_the_same() -> None:
    steps = _examine(examine_plainly, "load_file", "infer_at_positions")
    assert {step.finding for step in steps.values()} == {Finding.SAFE}
    (detail,) = [detail for detail in steps["hazards"].details if "is open" in detail]
    assert re.search(r"^suspect: file \S+ is open for reading, opened in load_file \(sharing_models.py:\d+\)", detail)


@pytest.mark.slow
@pytest.mark.parametrize(("load", "infer"), [("load_file", "infer_from_file"), ("Queue", "infer_by_thread")])
def test_prefork_gives_each_worker_what_a_plain_fork_shares(load: str, infer: str) -> None:
    """Files of their own; and no thread has been started before the fork, because nothing was inferred."""
    steps = _examine(examine, load, infer)
    first = {name: steps[name].finding for name in ("hazards", "canary", "same")}
    assert set(first.values()) == {Finding.SAFE}, steps
    if load == "load_file":
        assert {step.finding for step in steps.values()} == {Finding.SAFE}, steps
        assert "1 suspect" in steps["hazards"].text


@pytest.mark.slow
def test_a_pipe_to_a_program_is_closed_in_a_worker_and_the_verdict_says_so() -> None:
    steps = _examine(examine, "load_program", "infer_by_program")
    assert steps["canary"].finding is Finding.UNSAFE
    assert "Bad file descriptor" in steps["canary"].text
    assert any("shared by all: process " in detail for detail in steps["canary"].details)


@pytest.mark.slow
def test_without_a_deadline_the_limit_follows_what_the_parent_takes() -> None:
    started = time.monotonic()
    hung = _examine(examine, "load_program", "infer_or_hang")
    assert time.monotonic() - started < 20
    assert hung["canary"].finding is Finding.UNSAFE
    assert "hung: no result after 3 s" in hung["canary"].text
    assert list(hung) == list(STEPS)


@pytest.mark.slow
def test_a_slow_model_is_no_hang() -> None:
    slow = _examine(examine, "load_program", "infer_slowly", 1.0)
    assert slow["canary"].finding is Finding.UNKNOWN
    assert slow["canary"].text == "the parent itself has no result after 1 s; give it a longer deadline"
    tight = _examine(examine, "load_program", "infer_slowly", 1.6)
    if tight["canary"].finding is not Finding.SAFE:  # it may just be in time
        assert tight["canary"].finding is Finding.UNKNOWN
        assert re.search(r"the parent itself (took 1\.\d s|has no result)", tight["canary"].text)


@pytest.mark.slow
def test_what_an_exception_says_is_told_in_full() -> None:
    steps = _examine(examine, "load_program", "infer_or_raise_many_lines")
    assert steps["canary"].text.endswith("ManyLines: <RPC that ended with: status = UNAVAILABLE >")


@pytest.mark.slow
def test_nothing_is_imported_into_a_plain_process_that_the_model_does_not_import() -> None:
    """torch would bring OpenMP with it."""
    steps = _examine(examine_plainly, "load_database", "infer_by_database")
    assert not any("torch" in detail or "openblas" in detail for detail in steps["hazards"].details)
    assert any("SQLite database" in detail for detail in steps["hazards"].details)


BAD = {
    "load raises": (
        "load_and_raise",
        "infer_itself",
        "load",
        "cannot tell",
        "RuntimeError: the disk with the weights is",
    ),
    "load dies": (
        "load_and_die",
        "infer_itself",
        "load",
        "cannot tell",
        "the process that forks itself exited",
    ),
    "load exits": ("load_and_exit", "infer_itself", "load", "cannot tell", r"load called sys.exit\('usage: load'\)"),
    "load returns nothing": (
        "load_nothing",
        "infer_itself",
        "load",
        "cannot tell",
        "returned nothing; it must return",
    ),
    "infer raises": ("load_number", "infer_and_raise", "fresh", "cannot tell", "parent itself cannot infer: LookupErr"),
    "infer exits": (
        "load_number",
        "infer_and_exit",
        "fresh",
        "cannot tell",
        r"cannot infer: infer called sys.exit\(3\)",
    ),
    "infer at random": (
        "load_number",
        "infer_at_random",
        "fresh",
        "cannot tell",
        "the parent's own result changes",
    ),
    "infer forks": ("load_number", "infer_and_fork", "fresh", "unsafe", "left processes behind that it had started"),
    "load forks": ("load_and_fork", "infer_itself", "parallel", "safe", r"\d+ inferences"),
    "infer prints": ("load_number", "infer_and_print", "parallel", "safe", r"\d+ inferences"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_whatever_a_users_functions_do_costs_no_more_than_their_own_verdict(kind: str) -> None:
    load, infer, name, finding, reason = BAD[kind]
    steps = _examine(examine_plainly, load, infer)
    assert list(steps) == list(PLAIN_STEPS)
    assert steps[name].finding == finding, steps
    assert re.search(reason, steps[name].text), steps[name]


@pytest.mark.slow
def test_both_ways_are_shown_in_every_output_and_only_the_one_that_counts_fails(tmp_path: Path) -> None:
    options = ("--load", f"{MODELS}:load_file", "--infer", f"{MODELS}:infer_from_file")
    done = run("check", *options, "--json", "--junit", tmp_path / "report.xml", GITHUB_ACTIONS="true")
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert ": prefork: safe; gunicorn --preload, multiprocessing fork: unsafe (fresh: the child moved" in last
    report, _, annotations = done.stdout.partition("\n}\n")
    (target,) = json.loads(report + "\n}")["targets"]
    forks = [(verdict["fork"], verdict["finding"], verdict["counts"]) for verdict in target["verdicts"]]
    assert forks == [("prefork", "safe", True), ("plain", "unsafe", False)]
    suspect = "is open for reading, opened in load_file (sharing_models.py:"
    assert done.stderr.count(suspect) >= 2
    assert annotations.count(suspect) >= 2
    assert "::error" not in annotations
    junit = (tmp_path / "report.xml").read_text()
    assert junit.count(suspect) >= 2
    assert "<failure" not in junit and "unsafe, which does not count here: the child moved" in junit


@pytest.mark.slow
def test_a_report_is_the_baseline_of_a_later_run(tmp_path: Path) -> None:
    def check(infer: str, *options: object) -> Any:
        return run(
            "check", "--load", f"{MODELS}:load_file", "--infer", f"{MODELS}:{infer}", "--fork", "plain", *options
        )

    baseline = tmp_path / "baseline.json"
    baseline.write_text(check("infer_from_file", "--json").stdout)
    same = check("infer_from_file", "--baseline", baseline)
    assert same.returncode == 0, same.stdout
    assert f"nothing new since {baseline}" in same.stdout.splitlines()[-1]
    better = check("infer_at_positions", "--baseline", baseline)
    assert better.returncode == 0
    assert f"gone since {baseline}: " in better.stdout
    baseline.write_text(check("infer_at_positions", "--json").stdout)
    worse = check("infer_from_file", "--baseline", baseline)
    assert worse.returncode == 1
    assert re.search(f"^new since {baseline}: .* fresh: unsafe: the child moved", worse.stdout, re.M)
