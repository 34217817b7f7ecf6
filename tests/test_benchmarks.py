"""What benchmarks find is kept where it can be traced, by all of them alike."""

from __future__ import annotations

import ast
import platform
import sys
from pathlib import Path

import pytest

from tests.benchmarks.results import HEAD, RESULTS, ROOT, Results, describe_commit, replace_section

SCRIPTS = sorted(path for path in RESULTS.parent.glob("*.py") if '__name__ == "__main__"' in path.read_text())
COMMAND = ("python", "tests/benchmarks/some.py", "start")


def _measure(path: Path, figure: str, command: tuple[str, ...] = COMMAND) -> None:
    with Results(command, path) as results:
        table = results.add_table("what", "measured", title="start")
        table.add("prefork --help", figure)
        results.note("nothing else ran")


def test_a_run_says_what_was_typed_on_which_commit_machine_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    _measure(path, "0.2 s")
    text = path.read_text()
    assert text.startswith(HEAD)
    assert "## `python tests/benchmarks/some.py start`\n" in text
    assert describe_commit() in text
    for known in (platform.release(), f"Python {platform.python_version()}", "torch ", "prefork ", " GB, "):
        assert known in text
    assert "start:\n\n| what | measured |\n| --- | --- |\n| prefork --help | 0.2 s |\n" in text
    assert "- nothing else ran\n" in text


def test_the_next_run_of_a_command_replaces_its_section_alone(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for figure, command in (("1 s", COMMAND), ("2 s", (*COMMAND, "b")), ("3 s", COMMAND)):
        _measure(path, figure, command)
    text = path.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## `python tests/benchmarks/some.py start`",
        "## `python tests/benchmarks/some.py start b`",
    ]
    assert "1 s" not in text
    assert text.index("3 s") < text.index("2 s")
    assert replace_section(text, "z", "later").startswith(text.rstrip("\n"))


def test_a_run_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    _measure(path, "1 s")
    before = path.read_text()
    with pytest.raises(ZeroDivisionError), Results(COMMAND, path) as results:
        results.add_table("what", "measured").add("half", "2 s")
        raise ZeroDivisionError
    assert path.read_text() == before


def test_a_row_that_does_not_fit_its_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start has 2 cells, not 3"), Results(COMMAND, tmp_path / "R.md") as results:
        results.add_table("what", "measured", title="start").add("a", "b", "c")


def test_a_cell_cannot_end_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    _measure(path, "1 | 2")
    assert "| prefork --help | 1 \\| 2 |" in path.read_text()


def test_a_command_names_no_folder_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, model = str(SCRIPTS[0]), str(ROOT.parent / "shared" / "models")
    monkeypatch.setattr(sys, "argv", [script, "--model", model, str(tmp_path / "mine"), "start"])
    assert Results().command == f"python tests/benchmarks/{SCRIPTS[0].name} --model ../shared/models mine start"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_keeps_its_results_there(script: Path) -> None:
    tree = ast.parse(script.read_text())
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    called = {node.func.id for node in ast.walk(main) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "Results" in called
    assert "print" not in called
