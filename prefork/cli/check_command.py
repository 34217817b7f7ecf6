"""`prefork check`: which targets it examines on which devices, and where the verdict goes."""

from __future__ import annotations

from dataclasses import replace

import typer

from prefork.cli.job_commands import explain
from prefork.cli.options import CheckOptions, Hiding, flatten
from prefork.cli.parsing import parse_devices, parse_forks, parse_seconds
from prefork.cli.terminal import make_console


@flatten(CheckOptions)
def check(context: typer.Context, options: CheckOptions) -> None:
    """Test with real forks whether forked workers can safely share these models on this machine.

    Exit code: 0 safe, 1 unsafe, 2 cannot tell. With --baseline: 0 nothing new, 1 something unsafe or suspect is new, 2
    cannot tell.
    """
    from prefork.installation import require

    with explain():
        require((options.engines or None) if options.load is None else ())

    from prefork.check import baseline, steps, targets
    from prefork.check import report as check_report
    from prefork.check.machine_report import write_report
    from prefork.engines.base import LoadError
    from prefork.platform_matrix.matrix import Request, decide
    from prefork.pool.requests import make_plan

    hiding: Hiding = context.obj.add(options.force_cpu, options.no_mps)
    seconds = parse_seconds("--deadline", options.deadline) if options.deadline is not None else None
    forks, counted = ([steps.Fork(name) for name in names] for names in parse_forks(options.fork))
    devices = parse_devices(options.device, "--device")
    if (options.load is None) != (options.infer is None):
        raise typer.BadParameter("--load and --infer go together: one returns the model, the other gets it")
    if options.load is not None and (options.engines or options.model is not None):
        raise typer.BadParameter("--load takes the place of engines and --model")
    with explain():
        known = baseline.read(options.baseline) if options.baseline is not None else None
        if options.load is not None and options.infer is not None:
            functions = targets.Reference.parse(options.load), targets.Reference.parse(options.infer)
            chosen = [targets.Target(options.load, load=functions[0], infer=functions[1])]
        else:
            settings = {"model": options.model} if options.model is not None else {}
            chosen = targets.find_targets(options.engines or [], settings)
        names = tuple(target.engine for target in chosen if target.engine)
        plan = make_plan(Request(names, force_cpu=hiding.force_cpu, no_mps=hiding.no_mps, devices=devices))
        if devices and plan.refusal and not plan.devices:
            raise LoadError(plan.refusal.replace("--devices", "--device"))
        if plan.device == "cuda" and not devices:  # a run forks no model that is there: a verdict would be of no use
            plan = decide(plan.facts, replace(plan.request, devices=("cpu",)))
        console = make_console(stderr=options.as_json)
        examined = check_report.check(chosen, plan, seconds, console, options.verbose, forks, counted)
        finding = steps.sum_up([result.finding for result in examined])
        if options.as_json:
            print(baseline.to_json(examined, finding))
        places: set[steps.Place] = set()
        if known is not None:
            found = baseline.list_items(examined)
            new = baseline.find_new(known, found)
            finding, places = baseline.judge(new), baseline.list_known(known, found)
            check_report.show_news(console, options.baseline, new, baseline.find_new(found, known))
        if options.junit is not None:
            check_report.write_junit(options.junit, examined, places)
        if options.report is not None:
            write_report(options.report, plan, examined, finding)
        for line in check_report.annotate(examined, places):
            print(line)
    raise typer.Exit(steps.EXIT_CODES[finding])
