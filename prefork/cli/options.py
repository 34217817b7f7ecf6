"""The options of the commands: each is declared here once, with its help. Imports nothing heavy.

What several commands take is a type (`Model`); what belongs together is a frozen dataclass, whose fields become options
in a command's flat signature (`flatten`), and which the command's function gets as a whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

T = TypeVar("T")

_FORCE_CPU = "Compute on the CPU and hide all GPUs from the models. On a Mac, this makes forking possible."
_NO_MPS = "Hide Apple's MPS from the models."
ForceCPU = Annotated[bool, typer.Option("--force-cpu", envvar="PREFORK_FORCE_CPU", help=_FORCE_CPU)]
NoMPS = Annotated[bool, typer.Option("--no-mps", envvar="PREFORK_NO_MPS", help=_NO_MPS)]
Model = Annotated[
    str | None,
    typer.Option(metavar="PATH|HUB_ID", help="A CTC model: a folder or a hub id. Default: a small English model."),
]
Language = Annotated[
    str | None, typer.Option("--lang", metavar="CODE", help="The spoken language: en, de, zh ... Default: detected.")
]
DiarizeModel = Annotated[
    str | None,
    typer.Option(metavar="DIR|HUB_ID", help="A pyannote pipeline. Default: pyannote/speaker-diarization-community-1."),
]
Speakers = Annotated[int | None, typer.Option(metavar="N", help="Number of speakers. Default: detected.")]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Data type of the weights: float32, bfloat16, float16 or int8. By default int8 for Whisper and the "
        "included aligner on CPUs with VNNI, else float32.",
    ),
]
FactsFile = Annotated[
    Path | None,
    typer.Option("--facts", metavar="FILE", help="Use the machine that this file describes instead of this one."),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Detect the devices again and ignore the cached result.")]
TLS = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        metavar="DIR",
        envvar="PREFORK_TLS",
        help="Certificates of the cluster (`prefork cluster init DIR`). Default: what the scheduler's file names.",
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Hiding:
    """Which devices the models do not get to see, as the options before the command have it."""

    force_cpu: bool = False
    no_mps: bool = False

    def add(self, force_cpu: bool, no_mps: bool) -> Hiding:
        return Hiding(self.force_cpu or force_cpu, self.no_mps or no_mps)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What running a command's jobs and planning them have in common. How `source` is described depends on the
    command."""

    source: Path
    media: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with the recordings, if they are not beside the transcripts."),
    ] = None
    workers: Annotated[str, typer.Option(metavar="auto|N", help="Number of worker processes.")] = "auto"
    threads: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Threads of each worker and each server; auto: a worker gets its share of the cores, a server all "
            "cores.",
        ),
    ] = "auto"
    strategy: Annotated[
        str,
        typer.Option(
            metavar="auto|fork|ipc|server|spawn",
            help="How workers get the weights; auto: see `prefork plan`.",
        ),
    ] = "auto"
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Devices to compute on: cpu, cuda (all NVIDIA GPUs), cuda:0,cuda:1, or UUIDs; a MIG instance by its "
            "UUID. Default: the GPU with the most free memory; without a GPU, the CPU.",
        ),
    ] = None
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that all processes together may use: 3GB, 512MiB, 50%.")
    ] = None
    track: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of the audio track to use, of a film with several. Default: the main one."
        ),
    ] = None
    channel: Annotated[
        str | None,
        typer.Option(
            metavar="N|mix",
            help="Number of the channel to use; mix: the mean of all. Default: the mean of those that do not cancel "
            "each other out.",
        ),
    ] = None
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links", help="Follow symbolic links out of IN, as git-annex, DataLad and DVC make them."
        ),
    ] = False
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ADDRESS|local:N",
            help="Compute on the machines of a Dask cluster: its scheduler's file or address; local:N: N machines' "
            "worth on this one, for trying.",
        ),
    ] = None
    tls: TLS = None
    force_cpu: ForceCPU = False
    no_mps: NoMPS = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(JobOptions):
    """Of `prefork align` and its like. Which formats there are depends on the command."""

    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the results, with the same tree as IN.")]
    formats: list[str] | None = None
    residency: Annotated[
        str,
        typer.Option(metavar="all|stage", help="Keep the models of all stages in memory, or of one stage at a time."),
    ] = "all"
    mem_guard: Annotated[
        bool,
        typer.Option("--mem-guard", help="Stop cleanly when memory runs low, before the kernel kills a process."),
    ] = False
    memory_checkpoints: Annotated[
        bool,
        typer.Option(
            "--memory-checkpoints", help="Log the memory use of each step of a segment to OUT/.prefork/log.txt."
        ),
    ] = False
    hang_limit: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Replace a worker that makes no progress for this long, plus 20 s for each second of audio or 0.4 s "
            "for each word of text.",
        ),
    ] = 60.0
    redo: Annotated[bool, typer.Option("--redo", help="Recompute every output.")] = False
    cache: Annotated[
        str,
        typer.Option(
            metavar="use|refresh|off",
            envvar="PREFORK_CACHE",
            help="Results of earlier runs: use them, compute them again, or neither use nor keep any.",
        ),
    ] = "use"
    cache_limit: Annotated[str, typer.Option(metavar="SIZE", help="Size of the result cache.")] = "2GB"
    cache_keep: Annotated[float, typer.Option(metavar="DAYS", help="Days for which results are kept.")] = 90.0
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto|auto/N",
            help="Do one of N parts of IN, divided by length; other runs do the others, on other machines. auto: the "
            "number of an array's task (Slurm, AWS Batch; with auto/N Kubernetes, GNU parallel).",
        ),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only failures.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtitleOptions:
    """Of the commands that write subtitles. Names are those of WhisperX's options."""

    max_line_width: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of characters in a line of subtitles.")
    ] = 42
    max_line_count: Annotated[int, typer.Option(metavar="N", help="Maximum number of lines in a subtitle.")] = 2
    highlight_words: Annotated[
        bool, typer.Option("--highlight-words", help="Underline each word of a subtitle while it is said.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Of data sets, with --format parquet. Names are those of `RowOptions`."""

    audio_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data sets: column with the recordings. Default: by its type.")
    ] = None
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data sets: column with the texts. Default: text, or the like.")
    ] = None
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data sets: column whose values name rows in messages.")
    ] = None
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data sets: only files of this split, such as train.")
    ] = None
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="Data sets: only rows that pass: \"language = 'eng' and size > 3\"."),
    ] = None
    limit: Annotated[int | None, typer.Option(metavar="N", help="Data sets: only the first N rows that pass.")] = None
    keep_audio: Annotated[
        bool, typer.Option("--keep-audio", help="Data sets: the results have the recordings too.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(JobOptions):
    """Of `prefork plan align` and its like."""

    facts: FactsFile = None
    refresh: Refresh = False
    as_json: AsJSON = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingOptions:
    """Which segments go through the model together. Names are those of `Batching`."""

    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Segments in each batch, whatever their length.")
    ] = None
    max_num_elements: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Maximum number of samples (16,000 per second) in a batch. Default: depends on free memory.",
        ),
    ] = None
    num_seqs_multiple_of: Annotated[
        int | None,
        typer.Option(metavar="N", help="Batches of more than N segments hold a multiple of N. Default: 8."),
    ] = None
    max_bucket_size: Annotated[int | None, typer.Option(metavar="N", help="Maximum number of segments in a batch.")] = (
        None
    )
    min_audio_len: Annotated[
        int | None,
        typer.Option(
            metavar="SAMPLES",
            help="Shorter segments get no batch size of their own. Data sets: shorter recordings are left out.",
        ),
    ] = None
    max_audio_len: Annotated[
        int | None,
        typer.Option(
            metavar="SAMPLES",
            help="A file with a longer segment fails. Data sets: longer recordings are left out. Default: no limit.",
        ),
    ] = None
    drop_remainder: Annotated[
        bool, typer.Option("--drop-remainder", help="For data sets only; refused here, because outputs would be lost.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """Of `prefork join`. What a machine says of itself holds before what a run asks of all."""

    place: Annotated[str, typer.Argument(metavar="FILE|ADDRESS", help="The file or the address of a scheduler.")]
    tls: TLS = None
    name: Annotated[str, typer.Option(metavar="NAME", help="Of this machine in messages. Default: its host name.")] = ""
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time to wait for a scheduler that cannot be reached.")
    ] = 300.0
    workers: Annotated[str, typer.Option(metavar="auto|N", help="Number of worker processes here.")] = "auto"
    threads: Annotated[str, typer.Option(metavar="auto|N", help="Threads of each worker here.")] = "auto"
    strategy: Annotated[
        str, typer.Option(metavar="auto|fork|ipc|server|spawn", help="How workers get the weights here.")
    ] = "auto"
    devices: Annotated[str | None, typer.Option(metavar="LIST", help="Devices of this machine to compute on.")] = None
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that prefork may use here: 3GB, 512MiB, 50%.")
    ] = None
    force_cpu: ForceCPU = False
    no_mps: NoMPS = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """Of `prefork check`."""

    engines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ENGINE ...]", help="Engines to check. Default: all whose models are on this machine."),
    ] = None
    model: Model = None
    load: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="A function of yours that returns a model.")
    ] = None
    infer: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="A function of yours that computes with this model.")
    ] = None
    fork: Annotated[
        str | None,
        typer.Option(
            metavar="prefork|plain|both",
            help="How the model is forked: as prefork does, by a plain fork (gunicorn --preload, multiprocessing), or "
            "both; what is tried must be safe. Default: both are tried, and prefork's must be safe.",
        ),
    ] = None
    deadline: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Time limit for one inference in a forked child. Default: 20 times what the parent took, at least 3.",
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A report that --json has written: only what is unsafe or suspect and new fails."
        ),
    ] = None
    as_json: AsJSON = False
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a JUnit report to this file.")] = None
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write what is known of this machine, to be sent to prefork's makers."),
    ] = None
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the examined code prints.")] = False
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda[:N]|UUID|mps",
            help="Device to compute on. Default: as for other commands, but no NVIDIA GPU. On an NVIDIA GPU, prefork "
            "checks what it does there instead of forking.",
        ),
    ] = None
    force_cpu: ForceCPU = False
    no_mps: NoMPS = False


def list_parameters(options: type[Any], special: Mapping[str, Any] | None = None) -> list[inspect.Parameter]:
    """The fields of a dataclass of options as parameters of a command. special: annotations that depend on the
    command, by name."""
    annotations = get_type_hints(options, include_extras=True) | dict(special or {})
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=annotations[field.name],
        )
        for field in fields(options)
    ]


def pick(options: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a dataclass of options, of those values of a command that are its own."""
    return options(**{field.name: values[field.name] for field in fields(options) if field.name in values})  # type: ignore[arg-type]


def set_signature(command: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """Lets typer see these parameters of a function that takes any, after its context."""
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    signature = inspect.Signature([context, *parameters])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}


def flatten(options: type[T]) -> Callable[[Callable[[typer.Context, T], None]], Callable[..., None]]:
    """Makes a command with one option for each field of a function that takes a context and the dataclass."""

    def decorate(act: Callable[[typer.Context, T], None]) -> Callable[..., None]:
        def command(context: typer.Context, **values: Any) -> None:
            act(context, pick(options, values))

        set_signature(command, list_parameters(options))
        command.__name__, command.__doc__ = act.__name__, act.__doc__
        return command

    return decorate
