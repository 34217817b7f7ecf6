"""`prefork status`: how far the runs into a folder are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefork.cli.job_commands import explain
from prefork.cli.options import AsJSON

if TYPE_CHECKING:
    from rich.table import Table

    from prefork.run.status import FolderStatus, ShownRun


def show_status(
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder with the results of runs, or of their shards.")],
    as_json: AsJSON = False,
) -> None:
    """Show what is done, failed and left of a run, or of all its shards together, on whatever machines they are.

    Exit code: 0 everything is done, 1 some files failed or are left or a journal is damaged, 2 no run has begun there.
    """
    import json

    from prefork.cli.terminal import make_console
    from prefork.run.status import read_folder
    from prefork.wording import make_printable

    with explain():
        found = read_folder(target)
        if as_json:
            print(json.dumps(found.to_dict()))
        else:
            make_console().print(tabulate(found))
            for run in found.runs:
                if run.problem:
                    print(f"unreadable  {make_printable(run.problem)}")
                for job, reason in run.failures.items():
                    print(f"failed  {make_printable(job)}: {make_printable(reason)}")
    raise typer.Exit(0 if found.is_done else 1)


def tabulate(found: FolderStatus) -> Table:
    """A line for each run, and one for all."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), show_edge=False)
    table.add_column("shard" if len(found.runs) > 1 else "run")
    table.add_column("state")
    for name in ("done", "failed", "left"):
        table.add_column(name, justify="right")
    for run in found.runs:
        status = run.status
        name = f"{status.number} of {status.count}" if len(found.runs) > 1 else status.command
        begun = run.state != "not begun"
        figures = (status.finished, status.failed, status.left)
        table.add_row(name, _describe(run), *(f"{figure:,}" if begun else "" for figure in figures))
    if len(found.runs) > 1:
        table.add_row("all", "", *(f"{found.total(name):,}" for name in ("finished", "failed", "left")))
    return table


def _describe(run: ShownRun) -> str:
    if run.state != "running":
        return run.state
    return f"running on {run.status.host}, as of {max(0.0, time.time() - run.status.updated):.0f} s ago"
