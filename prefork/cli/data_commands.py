"""`prefork data`: what makes data sets, and what they are. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prefork.cli.job_commands import explain
from prefork.cli.options import AsJSON
from prefork.cli.parsing import parse_count

data_app = typer.Typer(help="Make data sets (parquet files), and show what they are.", no_args_is_help=True)


@data_app.command(
    short_help="Make a data set of recordings and transcripts.",
    epilog="Example: prefork data pack corpus corpus.parquet",
)
def pack(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A folder of transcripts and recordings, or of recordings.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="The file to write.")],
    unit: Annotated[
        str, typer.Option(metavar="auto|file|utterance", help="What a row is; auto: an utterance where it has times.")
    ] = "auto",
    media: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the recordings, if they are not beside the transcripts."),
    ] = None,
    workers: Annotated[str, typer.Option(metavar="auto|N", help="Number of worker processes.")] = "auto",
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Follow symbolic links out of IN.")] = False,
) -> None:
    """Make a data set of a folder: a row for each utterance or recording, with its audio, length and text.

    Exit code: 0, 1 if some of it could not be packed, 2 if nothing could.
    """
    if unit not in ("auto", "file", "utterance"):
        raise typer.BadParameter(f"--unit takes auto, file or utterance, not {unit!r}")
    number = parse_count("--workers", workers)
    with explain():
        from prefork.data.pack import Unit
        from prefork.data.pack import pack as pack_folder
        from prefork.wording import format_duration, make_printable

        result = pack_folder(
            source,
            target,
            None if unit == "auto" else Unit(unit),
            media=media,
            workers=number,
            follow_links=follow_links,
        )
        for problem in result.problems:
            print(f"{make_printable(problem.id)}: {make_printable(problem.reason)}", file=sys.stderr)
        size = target.stat().st_size / 1e6
        print(
            f"{result.rows} rows, {format_duration(result.seconds)} of audio, {size:.1f} MB: "
            f"{make_printable(str(target))}"
        )
    raise typer.Exit(1 if result.problems else 0)


@data_app.command(
    short_help="Show what a data set is, and what batches become of it.",
    epilog="Example: prefork data describe corpus.parquet --picture lengths.svg",
)
def describe(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="A parquet file, or a folder of them.")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Only files of this split, such as train.")] = None,
    where: Annotated[str | None, typer.Option(metavar="CONDITION", help="Only rows that pass.")] = None,
    audio_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column with the recordings.")] = None,
    min_audio_len: Annotated[int, typer.Option(metavar="SAMPLES", help="Leave out shorter recordings.")] = 1,
    max_audio_len: Annotated[int, typer.Option(metavar="SAMPLES", help="Leave out longer recordings.")] = 800_000,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Recordings in a STATIC batch.")] = 8,
    max_num_elements: Annotated[int, typer.Option(metavar="N", help="Samples in a LENGTH batch.")] = 3_200_000,
    num_seqs_multiple_of: Annotated[
        int, typer.Option(metavar="N", help="LENGTH batches of more hold a multiple of N.")
    ] = 8,
    example_shuffle_window: Annotated[int, typer.Option(metavar="N", help="Examples shuffled at a time.")] = 1,
    batch_shuffle_window: Annotated[int, typer.Option(metavar="N", help="Batches shuffled at a time.")] = 1000,
    workers: Annotated[str, typer.Option(metavar="auto|N", help="Number of worker processes.")] = "auto",
    picture: Annotated[
        Path | None, typer.Option(metavar="PATH.svg|PATH.png", help="Also draw the lengths to this file.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Show rows, hours, languages and lengths, the batches that fairseq2's LENGTH and STATIC strategies make, and the
    memory and time that reading them takes on this machine."""
    number = parse_count("--workers", workers)
    with explain():
        from prefork.cli.data_picture import draw_lengths, show_description, to_json
        from prefork.cli.memlog_picture import check_picture
        from prefork.cli.terminal import make_console
        from prefork.data.description import describe as describe_data
        from prefork.data.options import PipelineOptions
        from prefork.data.pipeline import DataPipeline

        if picture is not None:
            check_picture(picture)
        try:
            options = PipelineOptions(
                audio_column=audio_column,
                split=split,
                where=where,
                min_audio_len=min_audio_len,
                max_audio_len=max_audio_len,
                batch_size=batch_size,
                max_num_elements=max_num_elements,
                num_seqs_multiple_of=num_seqs_multiple_of,
                example_shuffle_window=example_shuffle_window,
                batch_shuffle_window=batch_shuffle_window,
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        with DataPipeline(source, options, workers=number) as pipeline:
            found = describe_data(pipeline)
        if picture is not None:
            draw_lengths(found, picture)
        if as_json:
            print(to_json(found))
        else:
            show_description(make_console(), found)
