"""What the commands that run jobs have in common: `prefork align` and its like, and `prefork plan align`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefork.cli.options import (
    BatchingOptions,
    DataOptions,
    Hiding,
    PlanOptions,
    RunOptions,
    SubtitleOptions,
    list_parameters,
    pick,
    set_signature,
)
from prefork.cli.parsing import (
    make_batching,
    make_cache_request,
    make_layout,
    make_row_options,
    parse_count,
    parse_devices,
    parse_language,
    parse_seconds,
    parse_selection,
    parse_shard,
    parse_size,
    parse_strategy,
)
from prefork.engines.batching import Batching
from prefork.installation import require
from prefork.platform_matrix.systems import SYSTEM
from prefork.pool import pipeline as pipelines
from prefork.pool.pipeline import Intake, Pipeline

if TYPE_CHECKING:
    from prefork.engines.parquet.options import RowOptions
    from prefork.engines.text.cues import CueLayout
    from prefork.platform_matrix.matrix import Request
    from prefork.run.request import RunRequest
    from prefork.run.summary import Report

Declaration = Callable[..., Pipeline]
_PLANNED = (
    "Show strategy, workers, threads, memory and every reason. Exit code: 0 the command would run, 2 it would not."
)
# As --help lists them, behind the command's own; others follow.
_ORDER = (
    *(
        "formats",
        "media",
        "track",
        "channel",
        "follow_links",
        "workers",
        "threads",
        "strategy",
        "devices",
        "residency",
        "memory_limit",
        "mem_guard",
    ),
    *(
        "memory_checkpoints",
        "hang_limit",
        "redo",
        "cache",
        "cache_limit",
        "cache_keep",
        "shard",
        "cluster",
        "tls",
        "quiet",
        "facts",
        "refresh",
        "as_json",
        "force_cpu",
        "no_mps",
    ),
)


_PIPE_CLOSED = 141  # 128 + SIGPIPE, as of other programs whose reader has gone


@dataclass(frozen=True, slots=True)
class JobCommand:
    """A command that runs jobs. usual: the output format, empty if that depends on what goes in. known: those that
    there are. declare: makes the pipeline of the command's own options, its parameters."""

    intake: Intake
    usual: str
    known: Sequence[str]
    declare: Declaration

    @property
    def own(self) -> list[inspect.Parameter]:
        """The command's own options."""
        return list(inspect.signature(self.declare, eval_str=True).parameters.values())

    def list_parameters(self, options: type[RunOptions | PlanOptions]) -> list[inspect.Parameter]:
        """All arguments and options, in the order of --help."""
        listed = f"{', '.join(self.known[:-1])} or {self.known[-1]}; may be repeated."
        special = {
            "source": Annotated[Path, typer.Argument(metavar="IN", help=f"A folder of {self.intake}.")],
            "formats": Annotated[list[str] | None, typer.Option("--format", metavar="NAME", help=listed)],
        }
        unused = {
            Intake.PAIRS: set[str](),
            Intake.RECORDINGS: {"media"},
            Intake.TEXTS: {"media", "track", "channel"},
        }[self.intake]
        shared = [p for p in list_parameters(options, special) if p.name not in unused]
        required = [p for p in shared if p.default is p.empty]
        others = [p for p in shared if p.default is not p.empty]
        others.sort(key=lambda p: _ORDER.index(p.name) if p.name in _ORDER else len(_ORDER))
        shown = list_parameters(SubtitleOptions) if options is RunOptions and "srt" in self.known else []
        data = list_parameters(DataOptions) if options is RunOptions else []
        return [*required, *self.own, *others, *shown, *data, *list_parameters(BatchingOptions)]


def make_commands(
    app: typer.Typer, plan_app: typer.Typer, intake: Intake, usual: str, known: Sequence[str], example: str
) -> Callable[[Declaration], Declaration]:
    """Makes `prefork NAME` and `prefork plan NAME` of a function of that name, which says by which pipeline and with
    which options of its own. usual, known: as JobCommand has them. example: a command line of it, for its help."""

    def register(declare: Declaration) -> Declaration:
        job = JobCommand(intake, usual, known, declare)
        doc = inspect.getdoc(declare) or ""

        def run_jobs(context: typer.Context, **values: Any) -> None:
            layout = make_layout(pick(SubtitleOptions, values))
            language = parse_language(values.get("lang"))
            wanted = make_row_options(values.get("formats"), pick(DataOptions, values), pick(BatchingOptions, values))
            _run_jobs(context, job, pick(RunOptions, values), layout, language, wanted, *_make_work(job, values))

        def plan_jobs(context: typer.Context, **values: Any) -> None:
            _plan_jobs(context, job, pick(PlanOptions, values), *_make_work(job, values))

        set_signature(run_jobs, job.list_parameters(RunOptions))
        set_signature(plan_jobs, job.list_parameters(PlanOptions))
        name, summary = declare.__name__, doc.partition(chr(10))[0]
        app.command(name, help=doc, short_help=summary, epilog=f"Example: {example}")(run_jobs)
        planned = f"Example: prefork plan {name} {example.split()[2]}"
        plan_app.command(name, help=f"{_PLANNED}\n\n{summary}", short_help=f"Plan: {summary}", epilog=planned)(
            plan_jobs
        )
        return declare

    return register


def _make_work(job: JobCommand, values: dict[str, Any]) -> tuple[Callable[[], Pipeline], Batching]:
    """What a command's values say is to be run: the pipeline, not yet made, and how segments are batched."""
    pipeline = partial(job.declare, **{parameter.name: values[parameter.name] for parameter in job.own})
    return pipeline, make_batching(pick(BatchingOptions, values))


def _run_jobs(
    context: typer.Context,
    job: JobCommand,
    options: RunOptions,
    layout: CueLayout,
    language: str | None,
    rows: RowOptions | None,
    pipeline: Callable[[], Pipeline],
    batching: Batching,
) -> None:
    """What every command that makes outputs does."""
    with explain():
        stages = pipeline()
        require(stage.engine for stage in stages if not stage.is_remote)
    from prefork.pool.tasks import PER_AUDIO_SECOND, PER_TEXT_SECOND, HangLimit
    from prefork.run.request import RunRequest  # a second and a half, with all that it imports

    pace = PER_TEXT_SECOND if job.intake is Intake.TEXTS else PER_AUDIO_SECOND
    names = tuple(name for text in options.formats or job.usual.split() for name in text.replace(",", " ").split())
    if unknown := [name for name in names if name not in job.known]:
        raise typer.BadParameter(f"--format takes {', '.join(job.known)}, not {', '.join(map(repr, unknown))}")
    if options.residency not in list(pipelines.Residency):
        raise typer.BadParameter(f"--residency takes {' or '.join(pipelines.Residency)}, not {options.residency!r}")
    hiding: Hiding = context.obj.add(options.force_cpu, options.no_mps)
    with explain():
        request = RunRequest(
            source=SYSTEM.extend(options.source),
            target=SYSTEM.extend(options.target),
            command=str(context.info_name),
            pipeline=stages,
            intake=job.intake,
            residency=pipelines.Residency(options.residency),
            formats=names,
            media=SYSTEM.extend(options.media) if options.media is not None else None,
            workers=parse_count("--workers", options.workers),
            threads=parse_count("--threads", options.threads),
            strategy=parse_strategy(options.strategy),
            devices=parse_devices(options.devices),
            batching=batching,
            force_cpu=hiding.force_cpu,
            no_mps=hiding.no_mps,
            memory_limit=parse_size("--memory-limit", options.memory_limit),
            mem_guard=options.mem_guard,
            memory_checkpoints=options.memory_checkpoints,
            hang_limit=HangLimit(parse_seconds("--hang-limit", options.hang_limit), pace),
            redo=options.redo,
            selection=parse_selection(options.track, options.channel),
            follow_links=options.follow_links,
            layout=layout,
            language=language,
            rows=rows,
            cache=make_cache_request(options, batching.max_audio_len),
            shard=parse_shard(options.shard, rows),
        )
    raise typer.Exit(_run(request, options))


def _plan_jobs(
    context: typer.Context,
    job: JobCommand,
    options: PlanOptions,
    pipeline: Callable[[], Pipeline],
    batching: Batching,
) -> None:
    """The same, but nothing is run."""
    import json

    from prefork.cli.machine import show_plan, to_dict
    from prefork.cli.terminal import make_console
    from prefork.platform_matrix.matrix import Request, Strategy
    from prefork.run.planning import describe_batches, plan_run

    hiding: Hiding = context.obj.add(options.force_cpu, options.no_mps)
    chosen = parse_strategy(options.strategy)
    with explain():
        request = Request(
            strategy=Strategy(chosen) if chosen else None,
            devices=parse_devices(options.devices),
            workers=parse_count("--workers", options.workers),
            threads=parse_count("--threads", options.threads),
            force_cpu=hiding.force_cpu,
            no_mps=hiding.no_mps,
            memory_limit=parse_size("--memory-limit", options.memory_limit),
        )
        if options.cluster is not None:
            _plan_cluster(str(context.info_name), pipeline(), request, options)
        plan, work = plan_run(
            str(context.info_name),
            options.source,
            options.media,
            pipeline(),
            request,
            options.facts,
            options.refresh,
            job.intake,
            parse_selection(options.track, options.channel),
            options.follow_links,
        )
        if options.as_json:
            print(json.dumps(to_dict(plan) | {"batches": describe_batches(batching, plan)}, indent=2))
        else:
            show_plan(make_console(), plan, work, describe_batches(batching, plan))
    raise typer.Exit(2 if plan.refusal else 0)


def _plan_cluster(command: str, pipeline: Pipeline, request: Request, options: PlanOptions) -> None:
    """Of each machine of a cluster."""
    import json

    from prefork.cli.machine import show_machines
    from prefork.cli.terminal import make_console

    require_cluster()
    from prefork.cluster.messages import MachineOptions
    from prefork.cluster.run import plan_cluster

    assert options.cluster is not None
    names = ("workers", "threads", "devices", "force_cpu", "no_mps", "memory_limit")
    asked = MachineOptions(
        strategy=str(request.strategy) if request.strategy else None,
        **{name: getattr(request, name) for name in names},
    )
    plans = plan_cluster(pipeline, command, asked, options.cluster, options.tls)
    if options.as_json:
        print(json.dumps(plans, indent=2))
    else:
        show_machines(make_console(), plans)
    raise typer.Exit(2 if all(plan["refusal"] for plan in plans.values()) else 0)


def _run(request: RunRequest, options: RunOptions) -> int:
    from prefork.run.runner import run

    with explain():
        make_report = partial(_make_report, options.quiet, options.as_json)
        if options.cluster is None:
            return run(request, make_report)
        require_cluster()
        from prefork.cluster.run import run_on_cluster

        return run_on_cluster(request, options.cluster, options.tls, make_report)


def require_cluster() -> None:
    """Raises LoadError if what connects machines is not installed."""
    from importlib.util import find_spec

    from prefork.engines.base import LoadError

    if find_spec("distributed") is None or find_spec("cryptography") is None:
        raise LoadError("clusters need the packages distributed and cryptography: pip install 'prefork[cluster]'")


@contextmanager
def explain() -> Iterator[None]:
    """Ends the program with one line for what makes the whole command impossible."""
    from prefork.engines.base import InputError, LoadError

    try:
        yield
    except (InputError, LoadError) as error:
        from prefork.wording import make_printable

        print(f"prefork: {make_printable(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    except BrokenPipeError as error:  # whoever read what we print has gone
        _give_up_stdout()
        raise typer.Exit(_PIPE_CLOSED) from error
    except OSError as error:
        from prefork.wording import describe_os_error

        where = "" if error.filename is not None or _takes_output() else "stdout cannot be written: "
        print(f"prefork: {where}{describe_os_error(error)}", file=sys.stderr)
        raise typer.Exit(2) from error


def _takes_output() -> bool:
    """Whether stdout does; if not, nothing is written there any more."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        _give_up_stdout()
        return False
    return True


def _give_up_stdout() -> None:
    """The interpreter must not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_report(quiet: bool, as_json: bool) -> Report:
    from prefork.cli.report import JSONReport, LiveReport, PlainReport, QuietReport
    from prefork.cli.terminal import make_console, moves_cursor

    if as_json:
        return JSONReport()
    if quiet:
        return QuietReport()
    console = make_console()
    return LiveReport(console) if moves_cursor(console.is_terminal, os.environ) else PlainReport(console)
