"""Popular libraries: what `prefork check` says of each, beside what forked children really do.

    python tests/benchmarks/libraries.py [NAME ...]

What is there of the libraries in LIBRARIES is examined. The truth is found by tests/data/fork_plainly.py, which shares
no code with prefork: four children of a plain fork, of a process that has loaded the object (fresh) or has used it too
(used), use it again and again at once; each result is compared with that of a process that never forked. A Runtime
with two workers uses it 40 times. Fails if a verdict is not the truth and KNOWN does not say why. The
rows go into prefork/docs/libraries.md, too, in the place of older ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.results import ROOT, Results, describe_machine

DATA = Path(__file__).resolve().parents[1] / "data"
MODELS = DATA / "libraries_to_check.py"
PAGE = ROOT / "prefork" / "docs" / "libraries.md"
HEADING = "## The table\n"
COLUMNS = (
    *("library", "version", "date", "plain fork, fresh", "seen", "plain fork, used", "seen", "prefork", "a Runtime"),
)
LIBRARIES = {  # by what the functions are called: what it is called elsewhere, its distribution
    "numpy": ("numpy", "numpy"),
    "scipy": ("scipy", "scipy"),
    "sklearn": ("scikit-learn", "scikit-learn"),
    "lightgbm": ("LightGBM", "lightgbm"),
    "xgboost": ("XGBoost", "xgboost-cpu"),
    "polars": ("polars", "polars"),
    "duckdb": ("DuckDB", "duckdb"),
    "pyarrow": ("pyarrow", "pyarrow"),
    "faiss": ("faiss", "faiss-cpu"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "tokenizers": ("tokenizers", "tokenizers"),
    "spacy": ("spaCy", "spacy"),
    "torch": ("torch", "torch"),
    "transformers": ("sentence embeddings (transformers)", "transformers"),
    "opencv": ("OpenCV", "opencv-python-headless"),
    "jax": ("jax", "jax"),
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "grpc": ("gRPC", "grpcio"),
    "sqlite": ("SQLite", ""),
    "redis": ("redis client", "redis"),
    "boto3": ("boto3 client", "boto3"),
    "opentelemetry": ("OpenTelemetry", "opentelemetry-sdk"),
    "sentry": ("Sentry", "sentry-sdk"),
}
KNOWN = {  # by name: why the verdict may not be what was seen
    "grpc": "a child that calls before gRPC has noticed the fork loses the call; in some runs none is so fast",
    "opentelemetry": "the children send over one connection; in some runs every answer goes to the child that asked",
}
_LEAST_SECONDS, _TIMES = 10.0, 10  # for a child
_AT_ONCE = 5  # libraries: most of the time somebody waits for a child that hangs

RUNTIME = """
import json, sys
sys.path.insert(0, sys.argv[1])
import libraries_to_check as libraries
from prefork import Runtime

if __name__ == "__main__":
    load, infer = (getattr(libraries, f"{part}_{sys.argv[2]}") for part in ("load", "infer"))
    found = {}
    with Runtime(load=load, workers=2) as runtime:
        plan = str(runtime.plan.strategy)
        for future in [runtime.submit(infer) for _ in range(40)]:
            try:
                result = repr(future.result(60))
            except Exception as error:
                result = f"raised {type(error).__name__}: {error}"[:200]
            found[result] = found.get(result, 0) + 1
    print("\\n" + json.dumps([plan, found]))
"""


@dataclass(frozen=True)
class Examination:
    """A library: the findings of the check, and what was seen: 'right', or what else, for each way to fork."""

    name: str
    prefork: str
    plain: dict[str, str]  # by fresh and used
    reasons: dict[str, str]
    truth: dict[str, str]  # by fresh and used
    runtime: str

    @property
    def is_true(self) -> bool:
        """Whether each verdict is what was seen."""
        return all((self.plain[state] == "safe") == (seen == "right") for state, seen in self.truth.items())


def find_version(name: str) -> str:
    """Empty if it is not installed."""
    if name == "sqlite":
        import sqlite3

        return sqlite3.sqlite_version
    try:
        return version(LIBRARIES[name][1])
    except PackageNotFoundError:
        return ""


def examine(name: str, with_runtime: bool = True) -> Examination:
    expected, seconds = _look(name, "alone", 120.0)
    (result,) = expected
    deadline = max(_LEAST_SECONDS, _TIMES * seconds)
    truth = {state: describe(_look(name, state, deadline), result) for state in ("fresh", "used")}
    verdicts = _check(name, ["prefork", "plain"] if with_runtime else ["plain"])
    steps = {step["name"]: step for step in verdicts["plain"]["steps"]}
    used = [steps["used"], steps["parallel"]]
    worst = next((step for step in used if step["finding"] in ("unsafe", "cannot tell")), used[0])
    return Examination(
        name,
        verdicts["prefork"]["finding"] if with_runtime else "",
        {"fresh": steps["fresh"]["finding"], "used": worst["finding"]},
        {"fresh": steps["fresh"]["text"], "used": worst["text"]},
        truth,
        _run(name, result) if with_runtime else "",
    )


def describe(children: list[dict[str, int]], expected: str) -> str:
    """What was seen of all children: 'right', or what was not, the worst first."""
    seen = []
    for child in children:
        for result, count in child.items():
            if result != expected:
                is_fate = result.split()[0] in ("hung", "died", "raised")
                seen += [result] if is_fate else [f"{count} of {sum(child.values())} wrong"]
    kinds = dict.fromkeys(sorted(seen))
    return (
        ", ".join(kind if " wrong" in kind else f"{seen.count(kind)} of {len(children)} {kind}" for kind in kinds)
        or "right"
    )


def _look(name: str, state: str, seconds: float) -> Any:
    reading, writing = os.pipe()
    command = [sys.executable, str(DATA / "fork_plainly.py"), str(MODELS), name, state, str(seconds)]
    environment = {**os.environ, "ANSWER": str(writing)}
    with subprocess.Popen(
        command, pass_fds=[writing], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        with open(reading, "rb") as answer:
            said = answer.read()
        process.wait()
        assert process.stderr is not None
        if not said:
            raise RuntimeError(f"{name}, {state}: {process.stderr.read().decode(errors='replace')[-2000:]}")
    return json.loads(said)


def _check(name: str, forks: list[str]) -> dict[str, Any]:
    options = ["--load", f"{MODELS}:load_{name}", "--infer", f"{MODELS}:infer_{name}", "--json"]
    fork = [] if len(forks) > 1 else ["--fork", forks[0]]
    command = [sys.executable, "-m", "prefork", "check", *options, *fork]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    (target,) = json.loads(done.stdout)["targets"]
    return {verdict["fork"]: verdict for verdict in target["verdicts"]}


def _run(name: str, expected: str) -> str:
    """What a Runtime does."""
    command = [sys.executable, "-c", RUNTIME, str(DATA), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return f"fails: {done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else done.returncode}"
    strategy, found = json.loads(done.stdout.strip().splitlines()[-1])
    how = {"fork": "forks", "spawn": "spawns"}[strategy]
    return f"{how}: {describe([found], expected)}"


def update_page(page: str, rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """The page with these rows in the table below its last heading, in the order of LIBRARIES; others stay."""
    head, heading, below = page.partition(HEADING)
    cells = [line.strip("| ").split(" | ") for line in below.splitlines() if line.startswith("| ")]
    known = {row[0]: row for row in [*cells, *rows]}
    ordered = [known[title] for title, _ in LIBRARIES.values() if title in known]
    table = [f"| {' | '.join(row)} |" for row in [COLUMNS, ["---"] * len(COLUMNS), *ordered]]
    machine = describe_machine().partition("; prefork")[0]
    made = f"By `python tests/benchmarks/libraries.py`, last on {machine}:"
    return (
        "\n".join([f"{head}{heading}", made, "", *table, *[""][: len(notes)], *(f"- {note}" for note in notes)]) + "\n"
    )


def tell(name: str) -> tuple[list[str], str]:
    """A row, and what is wrong with it."""
    title, installed = LIBRARIES[name][0], find_version(name)
    if not installed:
        return [title, "not installed", *[""] * (len(COLUMNS) - 2)], ""
    row = [title, installed, f"{datetime.now(UTC):%Y-%m-%d}"]
    try:
        found = examine(name)
    except Exception as error:  # noqa: BLE001  it costs its own row
        return [*row, *[""] * (len(COLUMNS) - 4), "could not be examined"], f"{name}: {error}"
    row += [part for state in ("fresh", "used") for part in (found.plain[state], found.truth[state])]
    return [*row, found.prefork, found.runtime], "" if found.is_true or name in KNOWN else f"{name}: {found}"


def main(names: list[str]) -> None:
    """Adds a table to the results and to the page; fails at the end if a verdict was wrong."""
    wrong, rows = [], []
    with Results() as results:
        table = results.add_table(*COLUMNS)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for row, error in pool.map(tell, names or LIBRARIES):
                table.add(*row)
                rows += [row] if row[2] else []
                wrong += [error] if error else []
        notes = [f"{LIBRARIES[name][0]}: {why}" for name, why in KNOWN.items()]
        for note in notes:
            results.note(note)
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8"), rows, notes), encoding="utf-8")
    if wrong:
        raise SystemExit("\n".join(["verdicts that are not the truth:", *wrong]))


if __name__ == "__main__":
    main(sys.argv[1:])
