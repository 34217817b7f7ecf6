"""What somebody sends who has tried prefork on a machine that its makers do not have: what is true of the machine, what
was decided for it, and what came of the check."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefork.check.baseline import describe
from prefork.check.steps import Examined, Finding
from prefork.engines.base import InputError
from prefork.installation import describe_installation
from prefork.memory.probe import measure_memory
from prefork.platform_matrix.alternative import find_alternative
from prefork.platform_matrix.matrix import Plan
from prefork.platform_matrix.memory import read_memory
from prefork.platform_matrix.systems import SYSTEM


def write_report(path: Path, plan: Plan, examined: Sequence[Examined], finding: Finding) -> None:
    """As JSON. Raises InputError if it cannot be written."""
    content = {"prefork": version("prefork"), **_describe_machine(plan), "check": describe(examined, finding)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; give another --report") from error


def _describe_machine(plan: Plan) -> dict[str, Any]:
    """Figures of memory are there to be compared with what the system's own tools show."""
    other = find_alternative(plan)
    return {
        "facts": json.loads(plan.facts.to_json()),
        "installed": dict(describe_installation()),
        "memory": {
            "machine": {name: _finite(value) for name, value in asdict(read_memory()).items()},
            "this_process": [_list(measure_memory(os.getpid())), SYSTEM.count_own(os.getpid())],
            "its_parent": [_list(measure_memory(os.getppid())), SYSTEM.count_own(os.getppid())],
        },
        "plan": {
            "row": plan.row.title,
            "verdict": plan.row.verdict,
            "strategy": plan.strategy,
            "workers": plan.workers,
            "threads": plan.threads,
            "budget": plan.budget.describe(plan.workers),
            "video": plan.video.describe(plan.workers) if plan.video is not None else "",
            "allowance": plan.allowance,  # bytes of an Apple GPU, for each worker
            "refusal": plan.refusal,
            "instead": other.describe() if other is not None else "",
        },
    }


def _finite(value: float | None) -> float | None:
    return None if value == float("inf") else value


def _list(memory: Any) -> dict[str, int] | None:
    return asdict(memory) if memory is not None else None
