"""The performance log: what one run did, how long each stage took and what it needed, as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefork.memory.tally import Tally
from prefork.platform_matrix.matrix import Plan
from prefork.platform_matrix.nvml import list_watched
from prefork.run.summary import GPULoad, Summary
from prefork.wire.specification import Inventory

SUFFIX = ".performance.json"
_STEPS = {"split": ("split",), "run": ("prepare", "infer", "finish"), "join": ("join", "write")}  # of each kind of task


def describe(
    names: Mapping[str, str],
    summary: Summary,
    tally: Tally,
    steps: Mapping[tuple[str, str], float],
    plan: Plan,
    inventory: Inventory,
) -> dict[str, Any]:
    """The log's content. names: of command, engine, model, dtype. steps: seconds of all workers together.

    Stages are those that a job goes through, three for each engine; `seconds` of them are summed over the workers,
    `peak` is the most that one worker had of its own. What this machine or this run does not have is null.
    """
    stages: list[dict[str, Any]] = [{"stage": "load", "seconds": inventory.seconds, "peak": tally.loaded}]
    for engine in inventory.fingerprints:
        for task, parts in _STEPS.items():
            seconds = {part: round(steps.get((engine, part), 0.0), 3) for part in parts}
            peak = tally.peaks.get((engine, task))
            total = round(sum(seconds.values()), 3)
            stages.append({"engine": engine, "stage": task, "seconds": total, "steps": seconds, "peak": peak})
    memory = asdict(replace(tally, peaks={}))
    memory["peaks"] = {" ".join(key).strip(): peak for key, peak in tally.peaks.items()}
    memory["lowest"] = None if tally.lowest == float("inf") else tally.lowest
    return {
        **names,
        "device": plan.device,
        "strategy": str(plan.strategy),
        "workers": plan.workers,
        "threads": plan.threads,
        "servers": {"number": plan.servers, "threads": plan.server_threads} if plan.servers else None,
        "tf32": inventory.tf32,
        "devices": list(plan.devices),
        "gpu": {"busy": tally.busy, "used": tally.used} if tally.busy else None,
        "files": {"done": summary.done, "skipped": summary.skipped, "failed": len(summary.failed)},
        "audio_seconds": summary.audio_seconds,
        "wall_seconds": summary.wall_seconds,
        "audio_seconds_per_second": summary.speed,
        "weights": inventory.weights,
        "stages": stages,
        "memory": memory,
    }


def list_gpus(plan: Plan, tally: Tally) -> list[GPULoad]:
    """What the plan's GPUs did; MIG instances are left out, as they cannot be asked."""
    places = list_watched(plan.devices)
    if len(places) != len(tally.busy):  # they could not be asked
        return []
    chosen = [plan.chosen[place] for place in places]
    loads = zip(chosen, tally.busy, tally.used, strict=True)
    return [GPULoad(device.name, busy, used, device.memory) for device, busy, used in loads]


def write(path: Path, content: Mapping[str, Any], notice: Callable[[str], None]) -> None:
    """A disk that does not take it costs the log, never the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        notice(f"{path}: {error.strerror}; the run has no performance log: make room or make it writable")
