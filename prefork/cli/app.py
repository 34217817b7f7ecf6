"""The command line. Imports nothing heavy before a command needs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from prefork.cli.check_command import check
from prefork.cli.job_commands import explain, make_commands
from prefork.cli.options import (
    AsJSON,
    DiarizeModel,
    DType,
    FactsFile,
    ForceCPU,
    Hiding,
    Language,
    Model,
    NoMPS,
    Refresh,
    Speakers,
)
from prefork.pool import pipeline as pipelines
from prefork.pool.pipeline import Intake, Pipeline

app = typer.Typer(
    name="prefork",
    help="Run speech and language models over many files with workers that share one copy of the weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_TIMED = ("chat", "textgrid", "srt", "vtt", "ctm", "rttm", "json")
_TAGGED = ("chat", "conllu", "json")


def _show_version(context: typer.Context, value: bool) -> None:
    """Of the dependencies too, if -v is given before or after it: that is parsed first."""
    if not value:
        return
    from prefork.installation import list_versions

    rows = list_versions()
    if not context.params.get("verbose"):
        print(rows[0][1])
    else:
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {version}" for name, version in rows))
    raise typer.Exit()


@app.callback()
def configure(
    context: typer.Context,
    force_cpu: ForceCPU = False,
    no_mps: NoMPS = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", is_eager=True, help="With --version: of the dependencies too.")
    ] = False,
    version: Annotated[  # noqa: ARG001  its callback does it
        bool, typer.Option("--version", callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    if verbose:
        raise typer.BadParameter("-v goes with --version, or after `check`")
    context.obj = Hiding(force_cpu, no_mps)


plan_app = typer.Typer(help="Show what a command would do here, and why; run nothing.", no_args_is_help=True)
app.add_typer(plan_app, name="plan")
_command = partial(make_commands, app, plan_app)


@_command(Intake.PAIRS, usual="chat", known=_TIMED)
def align(
    engine: Annotated[str, typer.Option(metavar="ctc|whisper", help="Which engine aligns.")] = "ctc",
    model: Model = None,
    dtype: DType = None,
    lang: Language = None,
    utr: Annotated[
        str,
        typer.Option(
            metavar="auto|ctc|whisper|rev|off",
            help="How utterances without times are found in the recording; auto: ctc.",
        ),
    ] = "auto",
    utr_model: Annotated[
        str | None, typer.Option(metavar="PATH|HUB_ID", help="The model that finds them. Default: that engine's own.")
    ] = None,
    max_segment: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Short utterances are aligned together up to this length; less, less memory."
        ),
    ] = None,
) -> Pipeline:
    """Find when each word of a transcript is said.

    CHAT in, CHAT out with %wor tiers and utterance times; plain text (.txt, .lab: one utterance a line) goes in too.
    The same command given again goes on where it stopped. Exit code: 0 if every file is done, 1 if one failed, 2 if
    nothing can run, 3 if --mem-guard stopped it, 130 if you did.
    """
    return pipelines.align(
        engine, model, dtype=dtype, max_segment=max_segment, language=lang, utr=utr, utr_model=utr_model
    )


@_command(Intake.RECORDINGS, usual="chat", known=_TIMED)
def transcribe(
    engine: Annotated[str, typer.Option(metavar="whisper|rev", help="Which engine listens.")] = "whisper",
    model: Annotated[
        str | None, typer.Option(metavar="PATH|HUB_ID", help="A Whisper model. Default: openai/whisper-large-v3-turbo.")
    ] = None,
    dtype: DType = None,
    lang: Language = None,
    diarize: Annotated[bool, typer.Option("--diarize", help="Say who speaks.")] = False,
    diarize_model: DiarizeModel = None,
    speakers: Speakers = None,
) -> Pipeline:
    """Write down what is said in recordings, with a time for every word.

    CHAT comes out, or what --format says. The same command given again goes on where it stopped. Exit codes as align.
    """
    return pipelines.transcribe(
        engine, model, dtype=dtype, language=lang, diarize=diarize, diarize_model=diarize_model, speakers=speakers
    )


@_command(Intake.RECORDINGS, usual="rttm", known=_TIMED)
def diarize(
    model: DiarizeModel = None,
    speakers: Speakers = None,
    min_speakers: Annotated[int | None, typer.Option(metavar="N", help="At least so many.")] = None,
    max_speakers: Annotated[int | None, typer.Option(metavar="N", help="At most so many.")] = None,
) -> Pipeline:
    """Find who speaks when in recordings.

    RTTM comes out, or what --format says. The same command given again goes on where it stopped. Exit codes as align.
    """
    return pipelines.find_speakers(model, speakers=speakers, min_speakers=min_speakers, max_speakers=max_speakers)


@_command(Intake.TEXTS, usual="", known=_TAGGED)
def morphotag(
    lang: Annotated[
        str | None,
        typer.Option("--lang", metavar="CODE", help="Of files that do not say it by @Languages. Default: eng."),
    ] = None,
    model_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="stanza's models; nothing is fetched. Default: stanza's own folder."),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of stanza's packages, such as default. Default: for English a small one within prefork.",
        ),
    ] = None,
    retokenize: Annotated[
        bool, typer.Option("--retokenize", help="Change the words of the transcript to stanza's tokens.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave utterances alone that have a %mor tier.")] = False,
) -> Pipeline:
    """Tag the words of transcripts: parts of speech, lemmas, dependencies.

    CHAT in, CHAT out with %mor and %gra tiers; plain text (.txt, .lab: one utterance a line) and CoNLL-U in, CoNLL-U
    out; or what --format says: chat, conllu, json. The same command given again goes on where it stopped. Exit codes as
    align.
    """
    return pipelines.morphotag(lang, model_dir=model_dir, package=package, retokenize=retokenize, keep=keep)


@app.command()
def matrix(
    context: typer.Context,
    facts: FactsFile = None,
    refresh: Refresh = False,
    as_json: AsJSON = False,
) -> None:
    """Show what may be shared how on which machine, and which row this one is.

    With --json: the facts of this machine, as --facts takes them.
    """
    from rich.console import Console

    from prefork.cli.machine import show_matrix
    from prefork.engines import registry
    from prefork.installation import describe_installation
    from prefork.platform_matrix.matrix import Request, decide
    from prefork.run.facts import find_facts

    hiding: Hiding = context.obj
    request = Request(tuple(registry.names()), force_cpu=hiding.force_cpu, no_mps=hiding.no_mps)
    with explain():
        found = find_facts(facts, refresh)
        if as_json:
            print(found.to_json())
        else:
            installed = describe_installation() if facts is None else ()
            show_matrix(Console(), found, decide(found, request), installed)


app.command()(check)


@app.command()
def samples(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go. Nothing there is changed.")],
) -> None:
    """Copy the sample recordings and transcripts to a folder, to try the commands on them."""
    import shlex

    from prefork.cli.samples import copy_samples
    from prefork.wording import show

    with explain():
        copied = copy_samples(target)
        where = show(str(target))
        print(f"{len(copied)} files copied to {where}" if copied else f"all samples are in {where} already")
        print(f"next: prefork align {show(shlex.quote(str(target)))} aligned")


@app.command()
def memlog(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A memory log, or OUT of a run: then its newest.")],
    picture: Annotated[
        Path | None, typer.Option(metavar="PATH.svg|PATH.png", help="Also draw memory over time there.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Show what a run took of memory, and how far it was from what had been predicted.

    Exit code: 0, or 2 if there is no such log or the picture cannot be drawn.
    """
    from rich.console import Console

    from prefork.cli.memlog_picture import check_picture, draw_picture, show_figures, to_json
    from prefork.memory.figures import sum_up
    from prefork.memory.memlog import read_log

    with explain():
        if picture is not None:
            check_picture(picture)
        log = read_log(file)
        figures = sum_up(log.events)
        if picture is not None:
            draw_picture(log, figures, picture)
        if as_json:
            print(to_json(log, figures))
        else:
            show_figures(Console(), log, figures)


def main() -> None:
    """Entry point of the command `prefork`."""
    app()
