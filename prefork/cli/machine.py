"""What the commands `matrix` and `plan` show: a machine, the matrix, and what would happen here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefork.platform_matrix.alternative import find_alternative
from prefork.platform_matrix.devices import Device
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.matrix import ROWS, Plan, Reason, Row, Verdict
from prefork.platform_matrix.memory import format_gigabytes

GIGABYTE = 1e9
_STYLES = {Verdict.SAFE: "green", Verdict.CAVEATS: "yellow", Verdict.REFUSED: "red"}


def describe_facts(facts: Facts) -> list[tuple[str, str]]:
    """Names and values, a line each."""
    where = [place for place in (f"in {facts.container}" * bool(facts.container), "under WSL2" * facts.wsl) if place]
    devices = [_describe_device(device) for device in facts.devices.present]
    limited = f", as {facts.devices.limited}" if facts.devices.limited else ""
    system = {"linux": "Linux", "darwin": "macOS", "windows": "Windows"}.get(facts.system, facts.system)
    rows = [
        ("machine", " ".join([f"{system} {facts.release} ({facts.machine})", *where])),
        ("python", f"{facts.python}; starts processes by {', '.join(facts.start_methods)}"),
        ("cores", f"{facts.cores} of {facts.installed_cores} may be used"),
        (
            "memory",
            f"{format_gigabytes(facts.memory, 1)} of {format_gigabytes(facts.installed_memory, 1)} may be used, "
            f"{format_gigabytes(facts.available, 1)} are available",
        ),
        ("torch", f"{facts.devices.torch or 'not installed'}, built for {', '.join(['cpu', *facts.devices.built])}"),
        ("gpus", facts.devices.error or "; ".join(devices) or f"none{limited}"),
    ]
    return rows if not facts.initialised else [*rows, ("initialised", ", ".join(facts.initialised))]


def show_matrix(console: Console, facts: Facts, plan: Plan, installed: Sequence[tuple[str, str]] = ()) -> None:
    """The whole table, with the row of the machine marked, and why each row says what it says. installed: names and
    values, of this machine's packages."""
    _show_rows(console, [*describe_facts(facts), *installed])
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("", "machine", "fork", "strategies", "engines", "why"):
        table.add_column(heading, no_wrap=heading != "why")
    sources = _number([claim for row in ROWS for claim in row.claims])
    for row in ROWS:
        here = row is plan.row
        marks = " ".join(f"[{sources[claim]}]" for claim in row.claims)
        cells = [">" if here else "", row.title, Text(row.verdict, _STYLES[row.verdict]), ", ".join(row.strategies)]
        table.add_row(*cells, _list_engines(row), marks, style="bold" if here else "")
    console.print()
    console.print(table)
    for reason in plan.unused:
        _show_reason(console, ">", reason)
    console.print()
    for claim, number in sources.items():
        _show_reason(console, f"[{number}]", claim)


def show_plan(console: Console, plan: Plan, work: Sequence[tuple[str, str]] = (), batches: str = "") -> None:
    """What would happen, and every reason. work: names and values; batches: which segments go together."""
    rows = [*work, *describe_facts(plan.facts), ("row", f"{plan.row.title}: fork is {plan.row.verdict}")]
    other = find_alternative(plan)
    hidden = dict.fromkeys(device.kind for device in plan.facts.devices.present if device.kind in plan.hidden)
    if not plan.refusal:
        chosen = zip(plan.labels, plan.chosen, plan.devices, strict=True)
        devices = [f"{label} ({device.name}, {name})" for label, device, name in chosen]
        rows += [
            *([("devices", ", ".join(devices))] if devices else []),
            ("strategy", f"{plan.strategy}: {_describe_copies(plan)}"),
            ("workers", f"{plan.workers}, with {plan.threads} thread{'s' * (plan.threads != 1)} each"),
            ("memory", plan.budget.describe(plan.workers)),
            *([("vram", plan.video.describe(plan.workers))] if plan.video else []),
            *([("batches", batches)] if batches else []),
            *([("hidden", f"{', '.join(hidden)} from the models")] if hidden else []),
        ]
    rows += [("instead", other.describe())] if other else []
    _show_rows(console, rows)
    console.print()
    for reason in plan.reasons:
        _show_reason(console, "-", reason)
    if plan.refusal:
        console.print(Text(f"refused: {plan.refusal}", "red"), soft_wrap=True)


def show_machines(console: Console, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """The plan of each machine of a cluster, by its name."""
    for name, plan in plans.items():
        console.print(Text(name, "bold"), soft_wrap=True)
        threads = f"{plan['threads']} thread{'s' * (plan['threads'] != 1)}"
        rows = [
            ("  machine", plan["row"]),
            ("  strategy", f"{plan['strategy']}, on {plan['device']}"),
            ("  workers", f"{plan['workers']}, with {threads} each"),
            ("  memory", plan["memory"]),
        ]
        _show_rows(console, [("  refused", plan["refusal"])] if plan["refusal"] else rows)


def _describe_copies(plan: Plan) -> str:
    if not plan.shared:
        return "one copy of the weights for each worker"
    several = len(plan.devices) > 1
    text = (
        f"one copy of the weights on each of {len(plan.devices)} GPUs"
        if several
        else "one copy of the weights for all workers"
    )
    if not plan.servers:
        return text
    threads = f"with {plan.server_threads} thread{'s' * (plan.server_threads != 1)}"
    return f"{text}, {'each ' * several}in a process of its own {threads}"


def _describe_device(device: Device) -> str:
    parts = [device.name, format_gigabytes(device.memory, 1)]
    parts += [f"of which {format_gigabytes(device.free, 1)} free"] if device.free and device.kind != "mps" else []
    named = f"compute capability {device.capability}" if device.kind == "cuda" else device.capability
    parts += [named] if device.capability else []
    parts += ["a MIG instance"] if device.mig else []
    parts += [f"compute mode {device.mode}"] if device.mode else []
    parts += [f"not usable now ({device.busy})"] if device.busy else []
    return ", ".join(parts)


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan for a machine to read."""
    content = asdict(plan)
    content["facts"] = json.loads(plan.facts.to_json())
    return content


def _list_engines(row: Row) -> str:
    return "all" if row.engines is None else ", ".join(row.engines) or "none"


def _number(claims: Sequence[Reason]) -> dict[Reason, int]:
    return {claim: number for number, claim in enumerate(dict.fromkeys(claims), 1)}


def _show_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    if not console.is_terminal:
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            console.print(Text(f"{name:<{width}}  {value}"), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(value, overflow="fold"))
    console.print(table)


def _show_reason(console: Console, mark: str, reason: Reason) -> None:
    text = Text(reason.text)
    if reason.source:
        text.append(f" ({reason.source})", "dim")
    if not console.is_terminal:
        console.print(Text(f"{mark} ").append_text(text), soft_wrap=True)
        return
    table = Table.grid(padding=(0, 1))
    text.overflow = "fold"  # a shortened address cannot be opened
    table.add_row(Text(mark), text)
    console.print(table)
