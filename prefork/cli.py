"""The command line. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prefork.report import Report
    from prefork.run import Request

app = typer.Typer(
    name="prefork",
    help="Run speech and language models over many files with workers that share one copy of the weights.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_FORCE_CPU = "Compute on the CPU and hide every GPU from the models. In this version that is so in any case."
ForceCPU = Annotated[bool, typer.Option("--force-cpu", envvar="PREFORK_FORCE_CPU", help=_FORCE_CPU)]


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("prefork"))
        raise typer.Exit()


@app.callback()
def configure(
    force_cpu: ForceCPU = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def align(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A folder of transcripts and recordings, or one transcript.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where the results go: the same tree as IN.")],
    engine: Annotated[str, typer.Option(help="Which engine aligns.")] = "ctc",
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH|HUB_ID", help="A CTC model: a folder, or a hub id. Default: a small English one."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME", help="chat, textgrid, srt, vtt, ctm or json; may be given again."),
    ] = None,
    media: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the recordings are, if not beside the transcripts.")
    ] = None,
    workers: Annotated[str, typer.Option(metavar="auto|N", help="Worker processes.")] = "auto",
    threads: Annotated[
        str, typer.Option(metavar="auto|N", help="Threads of each worker; auto: its share of the cores.")
    ] = "auto",
    max_segment: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Short utterances are aligned together up to this length; less, less memory."
        ),
    ] = None,
    hang_limit: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Without progress for so long, and 20 s for each second of audio, a worker is replaced.",
        ),
    ] = 60.0,
    redo: Annotated[bool, typer.Option("--redo", help="Make every output again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what failed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, for a machine.")] = False,
    force_cpu: ForceCPU = False,  # noqa: ARG001  it holds without being asked for
) -> None:
    """Find when each word of a transcript is said.

    CHAT in, CHAT out with %wor tiers and utterance times; plain text (.txt, .lab: one utterance a line) goes in too.
    The same command given again goes on where it stopped. Exit code: 0 if every file is done, 1 if one failed, 2 if
    nothing can run, 130 if it was stopped.
    """
    from prefork.run import Request
    from prefork.tasks import HangLimit

    options = {"model": model, "max_segment": max_segment}
    request = Request(
        source=source,
        target=target,
        engine=engine,
        options={name: value for name, value in options.items() if value is not None},
        formats=tuple(name for text in formats or () for name in text.replace(",", " ").split()),
        media=media,
        workers=parse_count("--workers", workers),
        threads=parse_count("--threads", threads),
        hang_limit=HangLimit(parse_seconds("--hang-limit", hang_limit)),
        redo=redo,
    )
    raise typer.Exit(_run(request, quiet, as_json))


def parse_count(option: str, value: str) -> int | None:
    """A number of at least 1; None for auto."""
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise typer.BadParameter(f"{option} takes auto or a whole number of at least 1, not {value!r}")
    return int(value)


def parse_seconds(option: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{option} takes a number of seconds above 0, not {value}")
    return value


def _run(request: Request, quiet: bool, as_json: bool) -> int:
    from engines.base import InputError, LoadError
    from prefork.report import show
    from prefork.run import run

    try:
        return run(request, lambda: _make_report(quiet, as_json))
    except (InputError, LoadError) as error:
        print(f"prefork: {show(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read what we print has gone; the interpreter must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _make_report(quiet: bool, as_json: bool) -> Report:
    from rich.console import Console

    from prefork.report import JSONReport, LiveReport, PlainReport, QuietReport

    if as_json:
        return JSONReport()
    if quiet:
        return QuietReport()
    console = Console()
    return LiveReport(console) if console.is_terminal else PlainReport(console)


def main() -> None:
    """Entry point of the command `prefork`."""
    app()
