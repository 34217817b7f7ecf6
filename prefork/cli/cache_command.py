"""`prefork cache`: where results are kept, what is there, away with it, and whether it is true."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from prefork.cli.job_commands import explain
from prefork.cli.options import AsJSON

cache_app = typer.Typer(help="Show, check or remove what earlier runs have computed.", no_args_is_help=True)


@cache_app.command("path", short_help="Print where results are kept.", epilog="Example: prefork cache path")
def show_path() -> None:
    """Print the path of the file that results are kept in, whether there are any or not."""
    from prefork.cache.folder import find_file
    from prefork.wording import make_printable

    with explain():
        print(make_printable(str(find_file())))


@cache_app.command("stats", short_help="Show what is kept.", epilog="Example: prefork cache stats")
def show_stats(as_json: AsJSON = False) -> None:
    """Show how much is kept, since when, and how long it took to compute."""
    import json

    from prefork.cache.folder import find_file
    from prefork.cache.store import Kind, count_entries
    from prefork.wording import format_duration

    with explain():
        path = find_file()
        counts = count_entries(path) if path.exists() else []
        if as_json:
            listed = {
                c.kind.name.lower(): {"number": c.number, "bytes": c.size, "oldest": c.oldest, "seconds": c.seconds}
                for c in counts
            }
            print(json.dumps({"path": str(path), "entries": listed}))
            return
        if not counts:
            print("nothing is kept")
        names = {Kind.DOCUMENT: "files", Kind.PIECE: "segments"}
        for count in counts:
            if count.kind in names:
                days = max(0.0, time.time() - count.oldest) / 86400
                size, took = f"{count.size / 1e6:.1f} MB", format_duration(count.seconds)
                print(
                    f"{names[count.kind]:<9} {count.number:>8,}  {size:>10}  computed in {took}, oldest {days:.0f} days"
                )


@cache_app.command("clear", short_help="Remove what is kept.", epilog="Example: prefork cache clear")
def clear() -> None:
    """Remove everything that is kept, whatever state it is in."""
    from prefork.cache.folder import find_file
    from prefork.cache.store import remove

    with explain():
        print(f"{remove(find_file()) / 1e6:.1f} MB removed")


@cache_app.command("verify", short_help="Compute a sample again.", epilog="Example: prefork cache verify --sample 20")
def verify(
    sample: Annotated[int, typer.Option(metavar="N", min=1, help="Number of files that are computed again.")] = 5,
) -> None:
    """Compute a random sample of what is kept again, and compare the bytes.

    Exit code: 0 all are the same, 1 some are not, 2 nothing could be compared.
    """
    from prefork.cache.folder import find_file
    from prefork.run.verification import Verdict, verify_sample
    from prefork.wording import make_printable

    with explain():
        verdicts = list(verify_sample(find_file(), sample))
        for found in verdicts:
            print(f"{found.verdict:<10} {make_printable(found.source)}{f': {found.reason}' if found.reason else ''}")
    kinds = {found.verdict for found in verdicts}
    raise typer.Exit(1 if Verdict.DIFFERENT in kinds else 0 if Verdict.SAME in kinds else 2)
