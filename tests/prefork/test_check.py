"""`prefork check`: what is safe turns green, and what is not turns red, for the right reason."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from prefork.check.fork_check import examine, judge
from prefork.check.processes import describe_end
from prefork.check.report import annotate, check, write_junit
from prefork.check.steps import EXIT_CODES, STEPS, Examined, Finding, Fork, Step, Verdict, conclude, sum_up
from prefork.check.targets import Reference, Target
from prefork.engines.base import LoadError
from prefork.platform_matrix.devices import Devices
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import Plan, Request, decide
from prefork.pool.requests import make_plan
from tests.prefork.command import run

MODELS = Path(__file__).resolve().parents[1] / "data" / "models_to_check.py"


def _check(load: str, infer: str, *options: object) -> tuple[int, dict[str, dict[str, Any]], str]:
    """The exit code, the steps by name, and what was shown."""
    command = (
        "check",
        "--load",
        f"{MODELS}:{load}",
        "--infer",
        f"{MODELS}:{infer}",
        "--deadline",
        2,
        "--fork",
        "prefork",
    )
    done = run(*command, "--json", *options)
    steps = json.loads(done.stdout)["targets"][0]["verdicts"][0]["steps"]
    assert [step["name"] for step in steps] == list(STEPS)
    return done.returncode, {step["name"]: step for step in steps}, done.stderr


def test_the_embedded_engine_is_safe_and_every_step_says_so(tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "new" / "report.xml", "--report", tmp_path / "sent" / "report.json")
    done = run("check", "ctc", "--fork", "prefork", *files)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [[name, "safe"] for name in STEPS]
    assert lines[-1] == "ctc: prefork: safe"
    suite = ElementTree.parse(tmp_path / "new" / "report.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(STEPS)), "0", "0")
    sent = json.loads((tmp_path / "sent" / "report.json").read_text())
    assert Facts.from_json(json.dumps(sent["facts"])).system == "linux"
    assert (sent["plan"]["strategy"], sent["check"]["finding"]) == ("fork", "safe")
    assert "torch" in sent["installed"]["packages"] and sent["memory"]["machine"]["available"] > 0
    assert [step["name"] for step in sent["check"]["targets"][0]["verdicts"][0]["steps"]] == list(STEPS)


@pytest.mark.slow
@pytest.mark.exec  # one of them as users start it: it forks from a process that has just imported torch
def test_a_model_of_the_users_is_safe() -> None:
    code, steps, _ = _check("load_model", "infer")
    assert code == 0
    assert {step["finding"] for step in steps.values()} == {"safe"}
    assert "was killed by SIGSEGV" in steps["write"]["text"]


@pytest.mark.slow
def test_load_and_infer_of_one_file_see_one_module() -> None:
    code, steps, _ = _check("load_into_the_module", "infer_from_the_module")
    assert code == 0, steps


UNSAFE = {
    "its own pool of threads": ("Pooled", "infer_in_pool", "canary", r"hung: .*infer_in_pool \(models_to_check.py"),
    "OpenMP initialised in the parent": ("load_with_openmp", "infer", "hazards", "OpenMP"),
    "torch on two threads": ("load_with_two_threads", "infer", "hazards", "torch computes with 2 threads"),
    "writes to a buffer": ("load_training", "infer", "canary", r"wrote to shared weights \(1\.\w+\)"),
    "a lock held by another thread": (
        "load_with_a_lock_held",
        "infer",
        "hazards",
        r"models_to_check_\w+\.LOCK is locked",
    ),
    "hangs": ("load_model", "infer_and_hang", "canary", r"hung: no result after 2 s, .*infer_and_hang"),
    "segfaults": ("load_model", "infer_with_segfault", "canary", "was killed by SIGSEGV"),
    "exits": ("load_model", "infer_and_exit", "canary", "exited with status 0 before it had a result"),
    "forks itself": ("load_model", "infer_and_fork", "canary", "left processes behind"),
    "raises in a child alone": ("load_model", "infer_only_in_the_parent", "canary", "ConnectionError"),
    "computes otherwise in a child": (
        "load_model",
        "infer_otherwise_in_children",
        "same",
        "the child's result differs from the parent's",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNSAFE)
def test_what_is_unsafe_turns_red_for_the_right_reason(kind: str) -> None:
    load, infer, name, reason = UNSAFE[kind]
    code, steps, shown = _check(load, infer)
    assert code == 1
    assert steps[name]["finding"] == "unsafe"
    assert re.search(reason, steps[name]["text"])
    later = list(STEPS)[list(STEPS).index(name) + 1 :]
    assert {steps[step]["finding"] for step in later} == {"skipped"}
    assert f"unsafe ({name}: " in shown
    if load == "Pooled":  # the threads that are missing stand beside the place that waits for them
        assert any("decoder_0" in detail for detail in steps[name]["details"])


UNKNOWN = {
    "at random": (
        "load_model",
        "infer_at_random",
        "same",
        "the parent's own result changes each time; seed all random generators",
    ),
    "not comparable": ("load_model", "infer_what_holds_itself", "canary", "too deeply, cannot be compared; return"),
    "hangs in the parent, too": (
        "load_model",
        "infer_and_hang_everywhere",
        "canary",
        "the parent itself has no result after 2 s; give it a longer deadline",
    ),
    "infer exits": ("load_model", "infer_and_call_exit", "canary", "cannot infer: infer called sys.exit(3)"),
    "load forks, infer forks and raises in the parent alone": (
        "load_and_fork",
        "infer_or_raise_in_the_parent",
        "same",
        "the parent itself cannot infer: LookupError: no such word",
    ),
    "load returns nothing": ("load_nothing", "infer", "load", "returned nothing; it must return the model"),
    "load raises": ("load_and_raise", "infer", "load", "RuntimeError: the disk with the weights is gone"),
    "load dies": ("load_and_die", "infer", "load", "the process that forks itself exited with status 9"),
    "load exits as if all were well": ("load_and_exit", "infer", "load", "load called sys.exit()"),
    "no such function": ("load_what", "infer", "load", "has no function load_what; check its name"),
    "no function": ("LOADED_BY", "infer", "load", "is not a function but of type int"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_cannot_be_examined_is_neither_red_nor_green(kind: str) -> None:
    load, infer, name, reason = UNKNOWN[kind]
    code, steps, shown = _check(load, infer)
    assert code == 2
    assert steps[name]["finding"] == "cannot tell"
    assert reason in steps[name]["text"]
    assert "Traceback" not in shown


def _target(load: str, infer: str) -> Target:
    return Target("mine", load=Reference.parse(f"{MODELS}:{load}"), infer=Reference.parse(f"{MODELS}:{infer}"))


def test_a_kill_of_our_own_is_not_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork.check.processes._END_SECONDS", 0.5)
    _, load, *later = examine(_target("load_and_close_everything", "infer"), make_plan(Request()), 2.0)
    assert load.finding is Finding.UNKNOWN
    assert load.text.endswith("closed its channel, did not end within 0.5 s, and was killed by prefork check")
    assert {step.finding for step in later} == {Finding.SKIPPED}
    assert describe_end(-9) == "was killed by SIGKILL, perhaps by the kernel because memory ran out"


@pytest.mark.slow
def test_a_parent_that_alone_is_too_slow_tells_nothing_about_forking() -> None:
    target = _target("load_model", "infer_or_hang_in_the_parent")
    steps = {step.name: step for step in examine(target, make_plan(Request()), 2.0)}
    assert steps["canary"].finding is Finding.SAFE
    assert steps["same"].finding is Finding.UNKNOWN
    assert steps["same"].text == "the parent itself has no result after 2 s; give it a longer deadline"


def test_a_machine_that_has_no_process_left_tells_nothing_about_the_target() -> None:
    target = _target("load_where_nothing_more_can_be_forked", "infer")
    steps = {step.name: step for step in examine(target, make_plan(Request()), 2.0)}
    assert steps["canary"].finding is Finding.UNKNOWN
    assert steps["canary"].text == "prefork check itself failed: BlockingIOError: too many processes"


def test_what_fails_in_check_itself_is_no_finding_about_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr("prefork.check.processes.ChildProcess", start)
    steps = list(examine(_target("load_model", "infer"), make_plan(Request()), 2.0))
    assert [step.name for step in steps] == list(STEPS)
    assert steps[1].finding is Finding.UNKNOWN
    assert steps[1].text == "prefork check itself failed: OSError: too many open files"
    assert conclude(Target("mine"), steps) is Finding.UNKNOWN


def test_steps_that_are_unknown_or_told_twice_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(*_: object) -> Iterator[Step]:
        for name in ("load", "load", "garbage", "matrix", "hazards", "load"):
            yield _step(name, Finding.SAFE)

    monkeypatch.setattr("prefork.check.fork_check._examine", say)
    steps = list(examine(_target("load_model", "infer"), make_plan(Request()), 2.0))
    assert [step.name for step in steps] == list(STEPS)
    assert {step.finding for step in steps[3:]} == {Finding.SKIPPED}


def test_what_the_examined_code_says_can_be_printed_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _step("load", Finding.UNKNOWN, "\udcff is no name", ("at \udcff",))
    monkeypatch.setattr("prefork.check.report.examine", lambda *_: iter([broken]))
    file = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    check([Target("\udcff.py:load")], make_plan(Request()), 2.0, Console(file=file, width=120), verbose=False)
    file.seek(0)
    shown = file.read()
    assert "cannot tell    0.50 s  \\udcff is no name\n" in shown and "at \\udcff\n" in shown


def test_a_script_that_exits_when_it_is_imported_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script')\n")
    with pytest.raises(
        LoadError, match=r"it called sys.exit\('usage: script'\); put what it runs as a script under `if"
    ):
        Reference.parse(f"{tmp_path}/script.py:load").resolve()


def _plan(system: str, available: int) -> Plan:
    methods = ("spawn",) if system == "windows" else ("fork", "spawn")
    facts = Facts(system, "1", "x", "3.11.7", methods, 8, 8, 32 << 30, 32 << 30, available, devices=Devices())
    return decide(facts, Request())


def test_want_of_memory_is_no_finding_about_forking() -> None:
    poor, rich, windows = _plan("linux", 1 << 20), _plan("linux", 30 << 30), _plan("windows", 1 << 20)
    assert judge(rich).finding is Finding.SAFE
    assert judge(poor).finding is Finding.UNKNOWN
    assert judge(poor).text.startswith("not enough memory for one worker: ")
    assert judge(windows).finding is Finding.UNSAFE  # which no memory would change
    assert judge(windows).text == "Windows, CPU: fork is refused"
    assert sum_up([conclude(Target("mine"), list(examine(Target("mine"), poor, 2.0)))]) is Finding.UNKNOWN


@pytest.mark.slow
def test_garbage_that_a_child_prints_is_shown_to_nobody_who_did_not_ask() -> None:
    code, _, shown = _check("load_model", "infer_and_print")
    assert code == 0
    assert "garbage" not in shown


@pytest.mark.slow
def test_functions_are_found_by_module_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "models.py").write_text(MODELS.read_text())
    command = [sys.executable, "-P", "-c", "from prefork.cli.app import main; main()", "check"]
    options = ["--load", "package.models:load_model", "--infer", "package.models:infer", "--fork", "prefork"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nonsense"], "no engine named 'nonsense'"),
        (["--load", "a.b:c"], "--load and --infer go together"),
        (["ctc", "--load", "a:b", "--infer", "a:b"], "--load takes the place of engines"),
        (["--load", "nothing", "--infer", "a:b"], "'nothing' names no function; write package.module:function"),
        (["--load", "no.such:load", "--infer", "no.such:infer"], "no.such cannot be imported: ModuleNotFoundError"),
        (["--deadline", "0"], "--deadline takes a number of seconds above 0"),
        (["--fork", "vfork"], "--fork takes prefork, plain or both, not 'vfork'"),
        (["ctc", "--model", "/no/such/model"], "/no/such/model"),
        (["--load", "no.such:load", "--infer", "a:b", "--junit", "/dev/null/report.xml"], "cannot be written"),
        (["--load", "no.such:load", "--infer", "a:b", "--report", "/dev/null/report.json"], "give another --report"),
    ],
)
def test_bad_input_is_told_in_one_line(options: list[str], reason: str) -> None:
    done = run("check", *options)
    assert done.returncode == 2
    assert reason in " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("script_engine")
def test_an_engine_that_nobody_asked_for_may_be_missing_and_one_without_an_example_tells_nothing() -> None:
    done = run("check", "script")
    assert done.returncode == 2
    assert "the engine has no example to infer on" in done.stdout


def _step(name: str, finding: Finding, text: str = "", details: tuple[str, ...] = ()) -> Step:
    return Step(name, finding, text, 0.5, details)


def _examined(name: str, *steps: Step, fork: Fork = Fork.PREFORK, counts: bool = True) -> Examined:
    return Examined(name, (Verdict(fork, steps, conclude(Target(name), steps), counts),))


def test_one_unsafe_step_is_enough_and_engines_that_are_not_there_do_not_count() -> None:
    safe, unknown = _step("load", Finding.SAFE), _step("load", Finding.UNKNOWN)
    assert conclude(Target("a"), [safe, _step("same", Finding.UNSAFE), unknown]) is Finding.UNSAFE
    assert conclude(Target("a"), [unknown]) is Finding.UNKNOWN
    assert conclude(Target("a", required=False), [unknown]) is Finding.SKIPPED
    assert conclude(Target("a", required=False), [safe, _step("same", Finding.UNKNOWN)]) is Finding.UNKNOWN
    assert conclude(Target("a"), [safe]) is Finding.SAFE
    assert conclude(Target("a"), [safe, _step("same", Finding.SKIPPED)]) is Finding.UNKNOWN
    assert sum_up([Finding.SAFE, Finding.SKIPPED]) is Finding.SAFE
    assert sum_up([Finding.SAFE, Finding.UNKNOWN, Finding.UNSAFE]) is Finding.UNSAFE
    assert sum_up([Finding.SKIPPED]) is Finding.UNKNOWN
    assert EXIT_CODES == {Finding.SAFE: 0, Finding.UNSAFE: 1, Finding.UNKNOWN: 2}


def test_github_gets_annotations_that_keep_to_their_line() -> None:
    steps = (_step("load", Finding.SAFE), _step("canary", Finding.UNSAFE, "hung: 100%", ("at a", "at b")))
    examined = [_examined("my:model", *steps)]
    assert annotate(examined, environment={}) == []
    assert annotate(examined, environment={"GITHUB_ACTIONS": "true"}) == [
        "::error title=prefork check my%3Amodel%3A prefork%3A canary::hung: 100%25%0Aat a%0Aat b"
    ]
    unknown = [_examined("x", _step("load", Finding.UNKNOWN, "gone"))]
    assert annotate(unknown, environment={"GITHUB_ACTIONS": "true"}) == [
        "::warning title=prefork check x%3A prefork%3A load::gone"
    ]


def test_junit_counts_each_kind_and_takes_any_text(tmp_path: Path) -> None:
    steps = (
        _step("load", Finding.SAFE),
        _step("canary", Finding.UNSAFE, "\x1b[31m<red> & \0", ("frame",)),
        _step("same", Finding.SKIPPED),
        _step("again", Finding.UNKNOWN, "?"),
    )
    write_junit(tmp_path / "report.xml", [_examined("x", *steps)])
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "1", "1", "1"]
    failure = suite[1][0]
    assert (failure.tag, failure.get("message"), failure.text) == ("failure", "\\x1b[31m<red> & \\x00", "frame")


def test_on_github_what_is_unsafe_is_annotated() -> None:
    options = ("--load", f"{MODELS}:load_model", "--infer", f"{MODELS}:infer_and_exit", "--fork", "prefork")
    done = run("check", *options, GITHUB_ACTIONS="true")
    assert done.returncode == 1
    annotations = [line for line in done.stdout.splitlines() if line.startswith("::error ")]
    assert len(annotations) == 1 and "canary::the child exited with status 0" in annotations[0]
