"""The command line. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from prefork.cli.cache_command import cache_app
from prefork.cli.check_command import check
from prefork.cli.cluster_commands import cluster_app, join_cluster
from prefork.cli.data_commands import data_app
from prefork.cli.job_commands import explain, make_commands
from prefork.cli.options import (
    AsJSON,
    DiarizeModel,
    DType,
    FactsFile,
    ForceCPU,
    Hiding,
    JoinOptions,
    Language,
    Model,
    NoMPS,
    Refresh,
    Speakers,
    flatten,
)
from prefork.cli.parsing import parse_language
from prefork.cli.status_command import show_status
from prefork.cli.terminal import make_console, prepare_streams
from prefork.platform_matrix.errors import FactsError
from prefork.platform_matrix.systems import SYSTEM
from prefork.pool import pipeline as pipelines
from prefork.pool.pipeline import Intake, Pipeline
from prefork.wire.environment import find_folders

app = typer.Typer(
    name="prefork",
    help="Run speech and language models over many files with workers that share one copy of the weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TIMED = ("chat", "textgrid", "srt", "vtt", "ctm", "rttm", "json", "parquet")
_TAGGED = ("chat", "conllu", "json", "parquet")


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
        bool,
        typer.Option(
            "--verbose", "-v", is_eager=True, help="With --version: show the versions of the dependencies too."
        ),
    ] = False,
    version: Annotated[  # noqa: ARG001  its callback does it
        bool, typer.Option("--version", callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    if verbose:
        raise typer.BadParameter("give -v with --version, or after `check`")
    try:
        SYSTEM.check()
    except FactsError as error:
        print(f"prefork: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    context.obj = Hiding(force_cpu, no_mps)


plan_app = typer.Typer(
    help="Show what a command would do on this machine and why, without running it.", no_args_is_help=True
)
app.add_typer(plan_app, name="plan", short_help="Show what a command would do here, and why.")
app.add_typer(data_app, name="data", short_help="Make data sets, and show what they are.")
_command = partial(make_commands, app, plan_app)


@_command(Intake.PAIRS, usual="chat", known=_TIMED, example="prefork align corpus aligned --format chat,textgrid")
def align(
    engine: Annotated[str, typer.Option(metavar="ctc|whisper|NAME", help="Engine to align with.")] = "ctc",
    model: Model = None,
    dtype: DType = None,
    lang: Language = None,
    utr: Annotated[
        str,
        typer.Option(
            metavar="auto|ctc|whisper|rev|NAME|off",
            help="How to find utterances without times in the recording; auto: ctc.",
        ),
    ] = "auto",
    utr_model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|HUB_ID", help="Model for --utr. Default: --model if that fits, else the engine's own."
        ),
    ] = None,
    max_segment: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Align short utterances together up to this length. A lower value needs less memory.",
        ),
    ] = None,
) -> Pipeline:
    """Find the time of every word in transcripts.

    Reads CHAT or plain text (.txt, .lab: one utterance per line) and writes CHAT with %wor tiers and utterance times.
    Repeat the command to continue an interrupted run. Exit code: 0 every file is done, 1 some files failed, 2 nothing
    could run, 3 stopped by --mem-guard, 130 stopped by Ctrl-C.
    """
    return pipelines.align(
        engine, model, dtype=dtype, max_segment=max_segment, language=parse_language(lang), utr=utr, utr_model=utr_model
    )


@_command(
    Intake.RECORDINGS, usual="chat", known=_TIMED, example="prefork transcribe talks texts --lang en --format srt"
)
def transcribe(
    engine: Annotated[str, typer.Option(metavar="whisper|rev|NAME", help="Engine to transcribe with.")] = "whisper",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|HUB_ID",
            help="A Whisper model; tiny.en, the smallest, is included. Default: openai/whisper-large-v3-turbo.",
        ),
    ] = None,
    dtype: DType = None,
    lang: Language = None,
    diarize: Annotated[bool, typer.Option("--diarize", help="Also find who speaks.")] = False,
    diarize_model: DiarizeModel = None,
    speakers: Speakers = None,
) -> Pipeline:
    """Transcribe recordings, with a time for every word.

    Writes CHAT, or the formats given by --format. Repeat the command to continue an interrupted run. Exit codes: as
    for align.
    """
    return pipelines.transcribe(
        engine,
        model,
        dtype=dtype,
        language=parse_language(lang),
        diarize=diarize,
        diarize_model=diarize_model,
        speakers=speakers,
    )


@_command(Intake.RECORDINGS, usual="rttm", known=_TIMED, example="prefork diarize talks turns --speakers 2")
def diarize(
    engine: Annotated[str, typer.Option(metavar="NAME", help="Engine to find speakers with.")] = "diarize",
    model: DiarizeModel = None,
    speakers: Speakers = None,
    min_speakers: Annotated[int | None, typer.Option(metavar="N", help="Minimum number of speakers.")] = None,
    max_speakers: Annotated[int | None, typer.Option(metavar="N", help="Maximum number of speakers.")] = None,
) -> Pipeline:
    """Find who speaks when in recordings.

    Writes RTTM, or the formats given by --format. Repeat the command to continue an interrupted run. Exit codes: as
    for align.
    """
    return pipelines.find_speakers(
        model, engine=engine, speakers=speakers, min_speakers=min_speakers, max_speakers=max_speakers
    )


@_command(Intake.TEXTS, usual="", known=_TAGGED, example="prefork morphotag corpus tagged --lang eng")
def morphotag(
    engine: Annotated[str, typer.Option(metavar="NAME", help="Engine to tag with.")] = "stanza",
    lang: Annotated[
        str | None,
        typer.Option("--lang", metavar="CODE", help="Language of files without @Languages. Default: eng."),
    ] = None,
    model_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder with stanza's models; nothing is downloaded. Default: stanza's own folder."
        ),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A package of stanza's, such as default. Default: for English, the small one that comes with prefork.",
        ),
    ] = None,
    retokenize: Annotated[
        bool, typer.Option("--retokenize", help="Change the words of the transcript to stanza's tokens.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not change utterances that have a %mor tier.")] = False,
) -> Pipeline:
    """Tag words with parts of speech, lemmas and dependencies.

    Reads CHAT and writes CHAT with %mor and %gra tiers; reads plain text (.txt, .lab: one utterance per line) or
    CoNLL-U and writes CoNLL-U; --format chooses other formats. Repeat the command to continue an interrupted run. Exit
    codes: as for align.
    """
    return pipelines.morphotag(
        parse_language(lang), engine=engine, model_dir=model_dir, package=package, retokenize=retokenize, keep=keep
    )


@app.command(
    short_help="Show how weights can be shared on which machine.",
    epilog="Example: prefork matrix --json > machine.json",
)
def matrix(
    context: typer.Context,
    facts: FactsFile = None,
    refresh: Refresh = False,
    as_json: AsJSON = False,
) -> None:
    """Show how weights can be shared on each kind of machine, and which kind this machine is.

    With --json: print the facts of this machine, as --facts reads them.
    """
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
            show_matrix(make_console(), found, decide(found, request), installed)


app.command("status", short_help="Show what is done, failed and left.", epilog="Example: prefork status aligned")(
    show_status
)
app.command(short_help="Test whether forking is safe here.", epilog="Example: prefork check ctc")(check)


app.add_typer(cluster_app, name="cluster", short_help="Make certificates, start and stop a scheduler.")
app.command(
    "join", short_help="Offer this machine to a cluster.", epilog="Example: srun prefork join /shared/scheduler.json"
)(flatten(JoinOptions)(join_cluster))
app.add_typer(cache_app, name="cache", short_help="Show, check or remove what earlier runs have computed.")


@app.command(short_help="Copy sample recordings and transcripts to a folder.", epilog="Example: prefork samples talks")
def samples(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Target folder. Existing files are not changed.")],
) -> None:
    """Copy the sample recordings and transcripts to a folder, to try the commands on them."""
    import shlex

    from prefork.cli.samples import copy_samples
    from prefork.wording import make_printable

    with explain():
        copied = copy_samples(target)
        where = make_printable(str(target))
        print(f"{len(copied)} files copied to {where}" if copied else f"all samples are in {where} already")
        print(f"next: prefork align {make_printable(shlex.quote(str(target)))} aligned")


@app.command(
    short_help="Show how much memory a run used.", epilog="Example: prefork memlog aligned --picture memory.svg"
)
def memlog(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A memory log, or the OUT of a run: then its newest log.")
    ],
    picture: Annotated[
        Path | None, typer.Option(metavar="PATH.svg|PATH.png", help="Also draw memory over time to this file.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Show how much memory a run used, and how close the predictions were.

    Exit code: 0, or 2 if there is no such log or the picture cannot be drawn.
    """
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
            show_figures(make_console(), log, figures)


def main() -> None:
    """Entry point of the command `prefork`."""
    prepare_streams()
    os.environ.update(find_folders())
    app()
