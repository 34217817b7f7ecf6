"""The sources that outputs come from, as they were when `OUTPUTS` of prefork/fingerprint.py was raised last.

    python -m tests.output_sources                 notes them anew, once OUTPUTS has been raised
    python -m tests.output_sources --same-outputs  notes them anew: no output can differ by what has changed

Every file of engines/ counts; comments, docstrings and empty lines do not. The rest of prefork passes segments on, and
tests hold that outputs do not depend on it.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import sys
import tokenize
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grimp

from prefork.fingerprint import OUTPUTS

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "data" / "output_sources.json"
_FORMATS = "prefork.engines.text.formats"


def strip(source: str) -> str:
    """Code without comments, docstrings and empty lines, the same on every Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def digest_sources(root: Path = ROOT) -> dict[str, str]:
    """By file."""
    files = sorted((root / "engines").rglob("*.py"))
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(strip(file.read_text(encoding="utf-8")).encode()).hexdigest()
        for file in files
    }


def find_families() -> dict[str, list[str]]:
    """By module, the engines and services that use it, and `formats` where all formats do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    graph = grimp.build_graph("prefork", cache_dir=None)
    families: dict[str, list[str]] = {}
    for name, place in {**project["prefork.engines"], **project["prefork.services"]}.items():
        module = place.partition(":")[0]
        for used in {module, *graph.find_upstream_modules(module)}:
            families.setdefault(used, []).append(name)
    for used in {_FORMATS, *graph.find_upstream_modules(_FORMATS)}:
        families.setdefault(used, []).append("formats")
    return families


def find_module(file: str) -> str:
    """
    >>> find_module("engines/text/mor/__init__.py")
    'prefork.engines.text.mor'
    """
    return ".".join(["prefork", *Path(file).with_suffix("").parts]).removesuffix(".__init__")


def explain(record: Mapping[str, Any], now: Mapping[str, str], outputs: str = OUTPUTS) -> str:
    """What is to be done about sources that have changed; empty if nothing is.

    record: what was noted last. now: the sources' digests. outputs: the version in prefork/fingerprint.py.
    """
    noted = record["sources"]
    changed = sorted(file for file in {*noted, *now} if noted.get(file) != now.get(file))
    if not changed and record["outputs"] == outputs:
        return ""
    if record["outputs"] != outputs:
        return f"OUTPUTS is {outputs} now: note the sources that belong to it by python -m tests.output_sources"
    families = find_families()
    lines = [f"  {file} ({', '.join(families.get(find_module(file), ['all']))})" for file in changed]
    return "\n".join(
        [
            f"These have changed, and outputs are still said to be those of prefork {outputs}:",
            *lines,
            "If an output can differ by it, raise OUTPUTS in prefork/fingerprint.py and the version in pyproject.toml, "
            "then run: python -m tests.output_sources",
            "If none can, run: python -m tests.output_sources --same-outputs",
        ]
    )


def main(arguments: list[str]) -> None:
    """Notes the sources. Refuses to where nobody has said what became of the outputs."""
    now = digest_sources()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"outputs": "", "sources": {}}
    problem = explain(record, now)
    if problem and record["outputs"] == OUTPUTS and arguments != ["--same-outputs"]:
        sys.exit(problem)
    RECORD.write_text(json.dumps({"outputs": OUTPUTS, "sources": now}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
