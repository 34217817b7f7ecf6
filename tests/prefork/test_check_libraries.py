"""Verdicts of `prefork check` about libraries are what children of a plain fork really do.

Those that prefork needs anyway; the others of tests/benchmarks/libraries.py where they are installed.
"""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.libraries import HEADING, KNOWN, LIBRARIES, PAGE, describe, examine, find_version, update_page

CHEAP = ("numpy", "sqlite", "tokenizers", "torch")


@pytest.mark.slow
@pytest.mark.exec  # neither the check nor the truth may begin in a process that has imported torch
@pytest.mark.skipif(sys.platform != "linux", reason="the machines that the page is about")
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_verdict_about_a_library_is_what_its_children_do(name: str) -> None:
    if not find_version(name):
        pytest.skip(f"{LIBRARIES[name][0]} is not installed, and not in requirements.lock")
    if name not in CHEAP:
        pytest.skip("takes long; run tests/benchmarks/libraries.py, which examines all that are installed")
    found = examine(name, with_runtime=False)
    assert found.is_true or name in KNOWN, found


def test_what_children_did_is_said_with_the_worst_first() -> None:
    right = {"7": 100}
    assert describe([right, right], "7") == "right"
    assert describe([right, {"hung": 1}, {"hung": 1}], "7") == "2 of 3 hung"
    assert describe([{"7": 97, "8": 3}, {"raised OSError": 1}], "7") == "3 of 100 wrong, 1 of 2 raised OSError"


def test_the_page_gets_the_script_s_rows_below_its_last_heading_and_keeps_others() -> None:
    first = update_page("# Title\n\nText.\n\n## The table\n\nolder\n", [["numpy", "1.0"], ["jax", "3.0"]], ["jax: why"])
    assert first.startswith("# Title\n\nText.\n\n## The table\n\nBy `python tests/benchmarks/libraries.py`, last on ")
    assert first.endswith("| --- |\n| numpy | 1.0 |\n| jax | 3.0 |\n\n- jax: why\n")
    assert "older" not in first
    assert update_page(first, [["polars", "2.0"], ["numpy", "1.1"]]).endswith(
        "| --- |\n| numpy | 1.1 |\n| polars | 2.0 |\n| jax | 3.0 |\n"
    )


def test_the_page_has_a_row_for_each_library() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(HEADING)[2]
    assert [title for title, _ in LIBRARIES.values() if f"\n| {title} | " not in shown] == []
