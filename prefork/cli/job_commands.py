"""What the commands that run jobs have in common: `prefork align` and its like, and `prefork plan align`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefork.cli.options import (
    AsJSON,
    DeviceList,
    FactsFile,
    ForceCPU,
    Formats,
    HangSeconds,
    Hiding,
    JSONLines,
    Media,
    MemoryCheckpoints,
    MemoryGuard,
    MemoryLimit,
    NoMPS,
    Quiet,
    Redo,
    Refresh,
    ResidencyName,
    StrategyName,
    Target,
    Threads,
    Workers,
    make_batching,
    parse_count,
    parse_devices,
    parse_seconds,
    parse_size,
    parse_strategy,
)
from prefork.engines.batching import Batching
from prefork.installation import require
from prefork.pool import pipeline as pipelines
from prefork.pool.pipeline import Intake, Pipeline

if TYPE_CHECKING:
    from prefork.run.runner import Request
    from prefork.run.summary import Report

Declaration = Callable[..., Pipeline]
_PLANNED = "Strategy, workers, threads and memory, and every reason. Exit code: 0 if it would run, 2 if not."


def make_commands(
    app: typer.Typer, plan_app: typer.Typer, intake: Intake, usual: str, known: Sequence[str]
) -> Callable[[Declaration], Declaration]:
    """Makes `prefork NAME` and `prefork plan NAME` of a function of that name, which says by which pipeline and with
    which options of its own. usual: the output format, empty if that depends on what goes in. known: those that there
    are."""

    def register(declare: Declaration) -> Declaration:
        source = Annotated[Path, typer.Argument(metavar="IN", help=f"A folder of {intake}.")]
        listed = f"{', '.join(known[:-1])} or {known[-1]}; may be given again."
        written = Annotated[Formats, typer.Option("--format", metavar="NAME", help=listed)]
        own = inspect.signature(declare, eval_str=True).parameters
        batch = inspect.signature(make_batching, eval_str=True).parameters
        for group, act in ((app, _run_jobs), (plan_app, _plan_jobs)):
            common = inspect.signature(act, eval_str=True).parameters
            unused = {"media"} if intake is not Intake.PAIRS else set()
            shared = [p for p in common.values() if p.kind is not p.KEYWORD_ONLY and p.name not in unused]
            special = {"source": source, "formats": written}
            shared = [p.replace(annotation=special.get(p.name, p.annotation)) for p in shared]
            first = [p for p in shared if p.default is p.empty]
            rest = [p for p in shared if p not in first]
            signature = inspect.Signature([*first, *own.values(), *rest, *batch.values()])

            def call(*, _act: Callable[..., None] = act, **values: Any) -> None:
                pipeline = partial(declare, **{name: values.pop(name) for name in own})
                batching = make_batching(**{name: values.pop(name) for name in batch})
                _act(**values, pipeline=pipeline, batching=batching, intake=intake, usual=usual, known=known)

            call.__signature__ = signature  # type: ignore[attr-defined]
            call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
            doc = inspect.getdoc(declare) or ""
            call.__doc__ = doc if act is _run_jobs else f"{_PLANNED}\n\n{doc.partition(chr(10))[0]}"
            group.command(declare.__name__)(call)
        return declare

    return register


def _run_jobs(
    context: typer.Context,
    source: Path,
    target: Target,
    formats: Formats = None,
    media: Media = None,
    workers: Workers = "auto",
    threads: Threads = "auto",
    strategy: StrategyName = "auto",
    devices: DeviceList = None,
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
    batching: Batching,
    intake: Intake,
    usual: str,
    known: Sequence[str],
) -> None:
    """What every command that makes outputs takes, and does. usual: the output format, empty if that depends on what
    goes in. known: those that there are."""
    with explain():
        stages = pipeline()
        require(stage.engine for stage in stages if not stage.is_remote)
    from prefork.pool.tasks import PER_AUDIO_SECOND, PER_TEXT_SECOND, HangLimit
    from prefork.run.runner import Request  # a second and a half, with all that it imports

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
            pipeline=stages,
            intake=intake,
            residency=pipelines.Residency(residency),
            formats=names,
            media=media,
            workers=parse_count("--workers", workers),
            threads=parse_count("--threads", threads),
            strategy=parse_strategy(strategy),
            devices=parse_devices(devices),
            batching=batching,
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
    devices: DeviceList = None,
    memory_limit: MemoryLimit = None,
    facts: FactsFile = None,
    refresh: Refresh = False,
    as_json: AsJSON = False,
    force_cpu: ForceCPU = False,
    no_mps: NoMPS = False,
    *,
    pipeline: Callable[[], Pipeline],
    batching: Batching,
    intake: Intake,
    usual: str,  # noqa: ARG001  nothing is written
    known: Sequence[str],  # noqa: ARG001
) -> None:
    """The same, but nothing is run."""
    import json

    from rich.console import Console

    from prefork.cli.machine import show_plan, to_dict
    from prefork.platform_matrix.matrix import Request, Strategy
    from prefork.run.planning import describe_batches, plan_run

    hiding: Hiding = context.obj.add(force_cpu, no_mps)
    chosen = parse_strategy(strategy)
    with explain():
        request = Request(
            strategy=Strategy(chosen) if chosen else None,
            devices=parse_devices(devices),
            workers=parse_count("--workers", workers),
            threads=parse_count("--threads", threads),
            force_cpu=hiding.force_cpu,
            no_mps=hiding.no_mps,
            memory_limit=parse_size("--memory-limit", memory_limit),
        )
        command = str(context.info_name)
        plan, work = plan_run(command, source, media, pipeline(), request, facts, refresh, intake)
        if as_json:
            print(json.dumps(to_dict(plan) | {"batches": describe_batches(batching, plan)}, indent=2))
        else:
            show_plan(Console(), plan, work, describe_batches(batching, plan))
    raise typer.Exit(2 if plan.refusal else 0)


def _run(request: Request, quiet: bool, as_json: bool) -> int:
    from prefork.run.runner import run

    with explain():
        return run(request, lambda: _make_report(quiet, as_json))


@contextmanager
def explain() -> Iterator[None]:
    """Ends the program with one line for what makes the whole command impossible."""
    from prefork.engines.base import InputError, LoadError

    try:
        yield
    except (InputError, LoadError) as error:
        from prefork.wording import show

        print(f"prefork: {show(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    except (
        BrokenPipeError
    ) as error:  # whoever read what we print has gone; the interpreter must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error


def _make_report(quiet: bool, as_json: bool) -> Report:
    from rich.console import Console

    from prefork.cli.report import JSONReport, LiveReport, PlainReport, QuietReport

    if as_json:
        return JSONReport()
    if quiet:
        return QuietReport()
    console = Console()
    return LiveReport(console) if console.is_terminal else PlainReport(console)
