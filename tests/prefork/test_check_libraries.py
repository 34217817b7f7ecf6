"""Verdicts of `prefork check` about libraries are what children of a plain fork really do.

Those that prefork needs anyway; the others of tests/benchmarks/libraries.py where they are installed.
"""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.libraries import KNOWN, LIBRARIES, PAGE, describe, examine, find_version, replace_table
from tests.benchmarks.results import Table

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


def test_the_page_has_the_script_s_table_below_its_last_heading() -> None:
    table = Table(("library", "version"))
    table.add("numpy", "1.0")
    page = replace_table("# Title\n\nText.\n\n## The table\n\nolder\n", table, ["jax: why"])
    assert page.startswith("# Title\n\nText.\n\n## The table\n\nMade on 20")
    assert page.endswith("| library | version |\n| --- | --- |\n| numpy | 1.0 |\n\n- jax: why\n")
    assert "older" not in page
    shown = PAGE.read_text(encoding="utf-8").partition("## The table\n")[2]
    assert all(f"| {title} |" in shown for title, _ in LIBRARIES.values())
