"""Whoever changes what outputs come from says whether they come out the same."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

from packaging.version import Version

from prefork.fingerprint import OUTPUTS
from tests.output_sources import RECORD, ROOT, digest_sources, explain


def test_sources_of_outputs_do_not_change_unless_somebody_says_what_becomes_of_the_outputs() -> None:
    problem = explain(json.loads(RECORD.read_text()), digest_sources())
    assert not problem, problem


def test_no_output_is_said_to_be_of_a_version_that_does_not_exist_yet() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert Version(OUTPUTS) <= Version(version)


def copy_sources(folder: Path) -> Path:
    shutil.copytree(ROOT / "engines", folder / "engines", ignore=shutil.ignore_patterns("models", "__pycache__"))
    return folder


def test_a_changed_rule_of_mor_is_named_with_the_engine_and_the_remedy(tmp_path: Path) -> None:
    rules = copy_sources(tmp_path) / "engines" / "text" / "mor" / "english.py"
    record = {"outputs": OUTPUTS, "sources": digest_sources(tmp_path)}
    assert not explain(record, digest_sources(tmp_path))
    rules.write_text(rules.read_text() + "\n\nANOTHER = 'rule'\n")
    problem = explain(record, digest_sources(tmp_path))
    assert "engines/text/mor/english.py" in problem and "stanza" in problem
    assert "raise OUTPUTS in prefork/fingerprint.py" in problem and "--same-outputs" in problem
    rules.unlink()
    assert "engines/text/mor/english.py" in explain(record, digest_sources(tmp_path))


def test_an_aligner_s_source_is_no_tagger_s(tmp_path: Path) -> None:
    source = copy_sources(tmp_path) / "engines" / "ctc" / "padding.py"
    record = {"outputs": OUTPUTS, "sources": digest_sources(tmp_path)}
    source.write_text(source.read_text() + "\nX = 1\n")
    line = explain(record, digest_sources(tmp_path)).splitlines()[1]
    assert "engines/ctc/padding.py (" in line and "ctc" in line.partition("(")[2] and "stanza" not in line


def test_comments_and_docstrings_make_no_outputs(tmp_path: Path) -> None:
    rules = copy_sources(tmp_path) / "engines" / "text" / "mor" / "english.py"
    before = digest_sources(tmp_path)
    text = rules.read_text().replace('"""', '"""Other words. ', 1)
    rules.write_text(f"# a comment\n{text}\n\n# another\n")
    assert digest_sources(tmp_path) == before


def test_a_raised_version_needs_its_sources_noted() -> None:
    now = digest_sources()
    assert "python -m tests.output_sources" in explain({"outputs": OUTPUTS, "sources": now}, now, "99.0")
