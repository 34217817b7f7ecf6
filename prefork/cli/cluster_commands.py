"""`prefork join` and `prefork cluster`: machines that compute for a run elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prefork.cli.job_commands import explain, require_cluster
from prefork.cli.options import TLS, Hiding, JoinOptions
from prefork.cli.parsing import parse_count, parse_devices, parse_size, parse_strategy

cluster_app = typer.Typer(
    help="Make the certificates of a cluster, start its scheduler, and stop it.", no_args_is_help=True
)


@cluster_app.command("init", short_help="Make certificates.", epilog="Example: prefork cluster init ~/prefork-tls")
def make_certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the certificates, which is made.")],
) -> None:
    """Make the certificates of a cluster, readable by you alone.

    Whoever can read them can run anything on the cluster's machines. All of these need them, in a shared folder or as a
    copy.
    """
    with explain():
        require_cluster()
        from prefork.cluster.security import make_certificates as make
        from prefork.wording import make_printable

        for path in make(folder):
            print(make_printable(str(path)))


@cluster_app.command(
    "start",
    short_help="Start a scheduler.",
    epilog="Example: prefork cluster start /shared/scheduler.json --tls ~/prefork-tls",
)
def start(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write the address to, which machines read.")],
    tls: TLS = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen at. Default: all of this machine.")
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0: any that is free.")] = 0,
) -> None:
    """Run the scheduler of a cluster, until Ctrl-C, SIGTERM or `prefork cluster stop FILE`."""
    with explain():
        require_cluster()
        from prefork.cluster.processes import run_scheduler

        run_scheduler(file, host, port, tls, _note)


@cluster_app.command(
    "stop", short_help="Stop a cluster.", epilog="Example: prefork cluster stop /shared/scheduler.json"
)
def stop(
    place: Annotated[str, typer.Argument(metavar="FILE|ADDRESS", help="The file or the address of the scheduler.")],
    tls: TLS = None,
) -> None:
    """Stop a scheduler, and all machines that have joined it."""
    with explain():
        require_cluster()
        from prefork.cluster.processes import stop_scheduler

        stop_scheduler(place, tls)


def join_cluster(context: typer.Context, options: JoinOptions) -> None:
    """Offer this machine to the runs of a cluster (`prefork align IN OUT --cluster FILE`), until its scheduler ends.

    Options hold for this machine, whatever a run asks of all. Exit code: 0, or 2 if there is no scheduler.
    """
    hiding: Hiding = context.obj.add(options.force_cpu, options.no_mps)
    strategy = parse_strategy(options.strategy)
    workers, threads = parse_count("--workers", options.workers), parse_count("--threads", options.threads)
    devices = parse_devices(options.devices)
    limit = parse_size("--memory-limit", options.memory_limit)
    if not 0 <= options.wait < float("inf"):
        raise typer.BadParameter(f"--wait takes a number of seconds, not {options.wait}")
    with explain():
        require_cluster()
        from prefork.cluster.messages import MachineOptions
        from prefork.cluster.processes import join

        own = MachineOptions(workers, threads, strategy, devices, hiding.force_cpu, hiding.no_mps, limit)
        join(options.place, options.tls, own, options.name, options.wait, _note)


def _note(text: str) -> None:
    from prefork.wording import make_printable

    print(make_printable(text), file=sys.stderr, flush=True)
