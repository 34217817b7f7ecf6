"""What may stand on the command line, and what it means. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from prefork.engines.batching import Batching

# Which of these a command takes, `prefork.cli.app` says.
_FORCE_CPU = "Compute on the CPU and hide every GPU from the models; on a Mac, this is what allows to fork."
_NO_MPS = "Hide Apple's MPS from the models."
ForceCPU = Annotated[bool, typer.Option("--force-cpu", envvar="PREFORK_FORCE_CPU", help=_FORCE_CPU)]
NoMPS = Annotated[bool, typer.Option("--no-mps", envvar="PREFORK_NO_MPS", help=_NO_MPS)]
Model = Annotated[
    str | None,
    typer.Option(metavar="PATH|HUB_ID", help="A CTC model: a folder, or a hub id. Default: a small English one."),
]
Media = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the recordings are, if not beside the transcripts.")
]
Workers = Annotated[str, typer.Option(metavar="auto|N", help="Worker processes.")]
Threads = Annotated[
    str,
    typer.Option(
        metavar="auto|N", help="Threads of each worker, and of a server; auto: its share of the cores, and all cores."
    ),
]
StrategyName = Annotated[
    str,
    typer.Option(
        "--strategy",
        metavar="auto|fork|ipc|server|spawn",
        help="How workers come by the weights; auto: see `prefork plan`.",
    ),
]
DeviceList = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        help="cpu, cuda (all NVIDIA GPUs), cuda:0,cuda:1, or UUIDs; a MIG instance by its UUID. Default: one GPU, the "
        "one with the most memory free, or the CPU.",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="So many segments in each batch, however long they are.")
]
MaxElements = Annotated[
    int | None,
    typer.Option(metavar="N", help="So many samples (16,000 a second) in a batch at most. Default: from free memory."),
]
MultipleOf = Annotated[
    int | None, typer.Option(metavar="N", help="Batches of more segments than this have a multiple of it. Default: 8.")
]
MaxBucket = Annotated[int | None, typer.Option(metavar="N", help="So many segments in a batch at most.")]
MinAudio = Annotated[
    int | None, typer.Option(metavar="SAMPLES", help="Batches are made for segments of at least this length.")
]
MaxAudio = Annotated[
    int | None,
    typer.Option(metavar="SAMPLES", help="A segment that is longer costs its file. Default: none is too long."),
]
DropRemainder = Annotated[
    bool, typer.Option("--drop-remainder", help="Of data sets; refused here, where it would lose outputs.")
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="Where the results go: the same tree as IN.")]
Formats = list[str] | None  # which ones, depends on the command
Language = Annotated[
    str | None, typer.Option("--lang", metavar="CODE", help="What is spoken: en, de, zh ... Default: found out.")
]
DiarizeModel = Annotated[
    str | None,
    typer.Option(metavar="DIR|HUB_ID", help="A pyannote pipeline. Default: pyannote/speaker-diarization-community-1."),
]
Speakers = Annotated[int | None, typer.Option(metavar="N", help="How many speakers there are. Default: found out.")]
ResidencyName = Annotated[
    str,
    typer.Option(
        "--residency",
        metavar="all|stage",
        help="Keep the models of all stages in memory, or only those of one stage at a time.",
    ),
]
MemoryGuard = Annotated[
    bool,
    typer.Option("--mem-guard", help="Stop in order when memory gets too short, before the kernel ends a process."),
]
MemoryCheckpoints = Annotated[
    bool,
    typer.Option("--memory-checkpoints", help="Write to OUT/.prefork/log.txt what each step of a segment takes."),
]
HangSeconds = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Without progress for so long, and 20 s for each second of audio or 0.4 s for each word of text, a worker "
        "is replaced.",
    ),
]
Redo = Annotated[bool, typer.Option("--redo", help="Make every output again.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what failed.")]
JSONLines = Annotated[bool, typer.Option("--json", help="One JSON object per line, for a machine.")]
DType = Annotated[
    str | None,
    typer.Option("--dtype", metavar="NAME", help="Of the weights: float32 (default), bfloat16, float16 or int8."),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="SIZE", help="What all processes together may take: 3GB, 512MiB, 50%."),
]
FactsFile = Annotated[
    Path | None,
    typer.Option("--facts", metavar="FILE", help="Decide for the machine that this file describes, not for this one."),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Ask for the devices again, whatever is cached.")]
AsJSON = Annotated[bool, typer.Option("--json", help="JSON, for a machine.")]


@dataclass(frozen=True, slots=True)
class Hiding:
    """Which devices the models do not get to see, as the options before the command have it."""

    force_cpu: bool = False
    no_mps: bool = False

    def add(self, force_cpu: bool, no_mps: bool) -> Hiding:
        return Hiding(self.force_cpu or force_cpu, self.no_mps or no_mps)


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


def parse_size(option: str, value: str | None) -> int | None:
    """Bytes: a number with a unit, decimal (GB, or G) or binary (GiB), or a share of what the machine allows.

    >>> parse_size("--memory-limit", "1.5GiB")
    1610612736
    """
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?)(i?)B?", value.strip(), re.IGNORECASE)
    number = float(found[1]) if found else 0.0
    if found is None or number <= 0 or (found[3] and found[2] in ("", "%")) or (found[2] == "%" and number > 100):
        raise typer.BadParameter(f"{option} takes a size as 3GB, 512MiB or 50%, not {value!r}")
    if found[2] == "%":
        from prefork.platform_matrix.memory import read_memory

        return int(read_memory().limit * number / 100)
    return int(number * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def parse_strategy(value: str) -> str | None:
    """The name of a strategy; None for auto."""
    from prefork.platform_matrix.matrix import Strategy

    if value != "auto" and value not in list(Strategy):
        raise typer.BadParameter(f"--strategy takes auto, {', '.join(Strategy)}, not {value!r}")
    return None if value == "auto" else value


def parse_devices(value: str | None, option: str = "--devices") -> tuple[str, ...]:
    """Names of devices; none for what there is."""
    from prefork.platform_matrix.selection import parse_devices as parse

    try:
        return () if value is None else parse(value)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def make_batching(
    batch_size: BatchSize = None,
    max_num_elements: MaxElements = None,
    num_seqs_multiple_of: MultipleOf = None,
    max_bucket_size: MaxBucket = None,
    min_audio_len: MinAudio = None,
    max_audio_len: MaxAudio = None,
    drop_remainder: DropRemainder = False,
) -> Batching:
    """How segments are batched. What is not given is as `Batching` has it."""
    given = {
        "batch_size": batch_size,
        "max_num_elements": max_num_elements,
        "num_seqs_multiple_of": num_seqs_multiple_of,
        "max_bucket_size": max_bucket_size,
        "min_audio_len": min_audio_len,
        "max_audio_len": max_audio_len,
    }
    try:
        batching = Batching(
            **{name: value for name, value in given.items() if value is not None}, drop_remainder=drop_remainder
        )
        batching.check_for_jobs()
    except ValueError as error:
        text = re.sub(r"`([a-z_]+)`", lambda found: f"--{found[1].replace('_', '-')}", str(error))
        raise typer.BadParameter(text) from error
    return batching
