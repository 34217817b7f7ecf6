"""The command line. Imports nothing heavy before a command needs it."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefork import pipeline as pipelines
from prefork.pipeline import Intake, Pipeline

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
Threads = Annotated[str, typer.Option(metavar="auto|N", help="Threads of each worker; auto: its share of the cores.")]
StrategyName = Annotated[
    str,
    typer.Option(
        "--strategy", metavar="auto|fork|spawn", help="How workers come by the weights; auto: see `prefork plan`."
    ),
]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="Where the results go: the same tree as IN.")]
Formats = list[str] | None  # which ones, depends on the command
_TIMED = ("chat", "textgrid", "srt", "vtt", "ctm", "rttm", "json")
_TAGGED = ("chat", "conllu", "json")
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


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(version("prefork"))
        raise typer.Exit()


@dataclass(frozen=True, slots=True)
class Hiding:
    """Which devices the models do not get to see, as the options before the command have it."""

    force_cpu: bool = False
    no_mps: bool = False

    def add(self, force_cpu: bool, no_mps: bool) -> Hiding:
        return Hiding(self.force_cpu or force_cpu, self.no_mps or no_mps)


@app.callback()
def configure(
    context: typer.Context,
    force_cpu: ForceCPU = False,
    no_mps: NoMPS = False,
    version: Annotated[  # noqa: ARG001  its callback does it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Hiding(force_cpu, no_mps)


plan_app = typer.Typer(help="Show what a command would do here, and why; run nothing.", no_args_is_help=True)
app.add_typer(plan_app, name="plan")


def _run_jobs(
    context: typer.Context,
    source: Path,
    target: Target,
    formats: Formats = None,
    media: Media = None,
    workers: Workers = "auto",
    threads: Threads = "auto",
    strategy: StrategyName = "auto",
    residency: ResidencyName = "all",
    memory_limit: MemoryLimit = None,
    mem_guard: MemoryGuard = False,
    memory_checkpoints: MemoryCheckpoints = False,
    hang_limit: HangSeconds = 60.0,
    redo: Redo = False,
    quiet: Quiet = False,
    as_json: JSONLines = False,
    force_cpu: ForceCPU = False,
    no_mps: NoMPS = False,
    *,
    pipeline: Callable[[], Pipeline],
    intake: Intake,
    usual: str,
    known: Sequence[str],
) -> None:
    """What every command that makes outputs takes, and does. usual: the output format, empty if that depends on what
    goes in. known: those that there are."""
    from prefork.run import Request
    from prefork.tasks import PER_AUDIO_SECOND, PER_TEXT_SECOND, HangLimit

    pace = PER_TEXT_SECOND if intake is Intake.TEXTS else PER_AUDIO_SECOND
    names = tuple(name for text in formats or usual.split() for name in text.replace(",", " ").split())
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"--format takes {', '.join(known)}, not {', '.join(map(repr, unknown))}")
    if residency not in list(pipelines.Residency):
        raise typer.BadParameter(f"--residency takes {' or '.join(pipelines.Residency)}, not {residency!r}")
    hiding: Hiding = context.obj.add(force_cpu, no_mps)
    with explain():
        request = Request(
            source=source,
            target=target,
            command=str(context.info_name),
            pipeline=pipeline(),
            intake=intake,
            residency=pipelines.Residency(residency),
            formats=names,
            media=media,
            workers=parse_count("--workers", workers),
            threads=parse_count("--threads", threads),
            strategy=parse_strategy(strategy),
            force_cpu=hiding.force_cpu,
            no_mps=hiding.no_mps,
            memory_limit=parse_size("--memory-limit", memory_limit),
            mem_guard=mem_guard,
            memory_checkpoints=memory_checkpoints,
            hang_limit=HangLimit(parse_seconds("--hang-limit", hang_limit), pace),
            redo=redo,
        )
    raise typer.Exit(_run(request, quiet, as_json))


def _plan_jobs(
    context: typer.Context,
    source: Path,
    media: Media = None,
    workers: Workers = "auto",
    threads: Threads = "auto",
    strategy: StrategyName = "auto",
    memory_limit: MemoryLimit = None,
    facts: FactsFile = None,
    refresh: Refresh = False,
    as_json: AsJSON = False,
    force_cpu: ForceCPU = False,
    no_mps: NoMPS = False,
    *,
    pipeline: Callable[[], Pipeline],
    intake: Intake,
    usual: str,  # noqa: ARG001  nothing is written
    known: Sequence[str],  # noqa: ARG001
) -> None:
    """The same, but nothing is run."""
    import json

    from rich.console import Console

    from platform_matrix.matrix import Request, Strategy
    from prefork.machine import show_plan, to_dict
    from prefork.planning import plan_run

    hiding: Hiding = context.obj.add(force_cpu, no_mps)
    chosen = parse_strategy(strategy)
    with explain():
        request = Request(
            strategy=Strategy(chosen) if chosen else None,
            workers=parse_count("--workers", workers),
            threads=parse_count("--threads", threads),
            force_cpu=hiding.force_cpu,
            no_mps=hiding.no_mps,
            memory_limit=parse_size("--memory-limit", memory_limit),
        )
        command = str(context.info_name)
        plan, work = plan_run(command, source, media, pipeline(), request, facts, refresh, intake)
        if as_json:
            print(json.dumps(to_dict(plan), indent=2))
        else:
            show_plan(Console(), plan, work)
    raise typer.Exit(2 if plan.refusal else 0)


Declaration = Callable[..., Pipeline]


def _command(intake: Intake, usual: str, known: Sequence[str]) -> Callable[[Declaration], Declaration]:
    """Makes `prefork NAME` and `prefork plan NAME` of a function of that name, which says by which pipeline and with
    which options of its own. usual: the output format, empty if that depends on what goes in. known: those that there
    are."""

    def register(declare: Declaration) -> Declaration:
        source = Annotated[Path, typer.Argument(metavar="IN", help=f"A folder of {intake}.")]
        listed = f"{', '.join(known[:-1])} or {known[-1]}; may be given again."
        written = Annotated[Formats, typer.Option("--format", metavar="NAME", help=listed)]
        own = inspect.signature(declare, eval_str=True).parameters
        for group, act in ((app, _run_jobs), (plan_app, _plan_jobs)):
            common = inspect.signature(act, eval_str=True).parameters
            unused = {"media"} if intake is not Intake.PAIRS else set()
            shared = [p for p in common.values() if p.kind is not p.KEYWORD_ONLY and p.name not in unused]
            special = {"source": source, "formats": written}
            shared = [p.replace(annotation=special.get(p.name, p.annotation)) for p in shared]
            first = [p for p in shared if p.default is p.empty]
            signature = inspect.Signature([*first, *own.values(), *(p for p in shared if p not in first)])

            def call(*, _act: Callable[..., None] = act, **values: Any) -> None:
                options = {name: values.pop(name) for name in own}
                _act(**values, pipeline=partial(declare, **options), intake=intake, usual=usual, known=known)

            call.__signature__ = signature  # type: ignore[attr-defined]
            call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
            doc = inspect.getdoc(declare) or ""
            call.__doc__ = doc if act is _run_jobs else f"{_PLANNED}\n\n{doc.partition(chr(10))[0]}"
            group.command(declare.__name__)(call)
        return declare

    return register


_PLANNED = "Strategy, workers, threads and memory, and every reason. Exit code: 0 if it would run, 2 if not."


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
        from platform_matrix.memory import read_memory

        return int(read_memory().limit * number / 100)
    return int(number * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def parse_strategy(value: str) -> str | None:
    """The name of a strategy; None for auto."""
    from platform_matrix.matrix import Strategy

    if value != "auto" and value not in list(Strategy):
        raise typer.BadParameter(f"--strategy takes auto, {', '.join(Strategy)}, not {value!r}")
    return None if value == "auto" else value


def _run(request: Request, quiet: bool, as_json: bool) -> int:
    from prefork.run import run

    with explain():
        return run(request, lambda: _make_report(quiet, as_json))


@contextmanager
def explain() -> Iterator[None]:
    """Ends the program with one line for what makes the whole command impossible."""
    from engines.base import InputError, LoadError

    try:
        yield
    except (InputError, LoadError) as error:
        from prefork.report import show

        print(f"prefork: {show(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    except (
        BrokenPipeError
    ) as error:  # whoever read what we print has gone; the interpreter must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error


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

    from platform_matrix.matrix import Request, decide
    from prefork.machine import find_facts, show_matrix

    hiding: Hiding = context.obj
    with explain():
        found = find_facts(facts, refresh)
        if as_json:
            print(found.to_json())
        else:
            show_matrix(Console(), found, decide(found, Request(force_cpu=hiding.force_cpu, no_mps=hiding.no_mps)))


@app.command()
def check(
    context: typer.Context,
    engines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ENGINE ...]", help="By default all whose models are on this machine."),
    ] = None,
    model: Model = None,
    load: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your own: a function that returns a model.")
    ] = None,
    infer: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your own: a function that gets it, and computes.")
    ] = None,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a forked child may take for one inference.")
    ] = 30.0,
    as_json: AsJSON = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a JUnit report there.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the examined code prints.")] = False,
    force_cpu: ForceCPU = False,
    no_mps: NoMPS = False,
) -> None:
    """Fork for real, infer for real: are these models safe to be shared by forked workers on this machine?

    Exit code: 0 safe, 1 unsafe, 2 cannot tell.
    """
    from rich.console import Console

    from platform_matrix.matrix import Request
    from prefork import check, check_report
    from prefork.runtime import make_plan

    hiding: Hiding = context.obj.add(force_cpu, no_mps)
    seconds = parse_seconds("--deadline", deadline)
    if (load is None) != (infer is None):
        raise typer.BadParameter("--load and --infer go together: one returns the model, the other gets it")
    if load is not None and (engines or model is not None):
        raise typer.BadParameter("--load takes the place of engines and --model")
    with explain():
        if load is not None and infer is not None:
            functions = check.Reference.parse(load), check.Reference.parse(infer)
            targets = [check.Target(load, load=functions[0], infer=functions[1])]
        else:
            targets = check.find_targets(engines or [], {"model": model} if model is not None else {})
        names = tuple(target.engine for target in targets if target.engine)
        plan = make_plan(Request(engines=names, force_cpu=hiding.force_cpu, no_mps=hiding.no_mps))
        console = Console(stderr=as_json)
        examined = check_report.check(targets, plan, seconds, console, verbose)
        finding = check.sum_up([result.finding for result in examined])
        if as_json:
            print(check_report.to_json(examined, finding))
        if junit is not None:
            check_report.write_junit(junit, examined)
        for line in check_report.annotate(examined):
            print(line)
    raise typer.Exit(check.EXIT_CODES[finding])


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

    from prefork.memlog import read_log, sum_up
    from prefork.memlog_picture import check_picture, draw_picture, show_figures, to_json

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
