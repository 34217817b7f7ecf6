"""What a runtime asks of the machine, and the plan for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefork.engines import registry
from prefork.installation import require
from prefork.platform_matrix.devices import Devices
from prefork.platform_matrix.driver import look_again
from prefork.platform_matrix.facts import read_facts
from prefork.platform_matrix.matrix import Plan, Request, Strategy, decide
from prefork.pool.pipeline import Pipeline


def make_request(
    pipeline: Pipeline,
    strategy: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    devices: Sequence[str] = (),
    force_cpu: bool = False,
    no_mps: bool = False,
    memory_limit: int | None = None,
) -> Request:
    """What a runtime of these engines asks of the machine. Raises LoadError."""
    local = {stage.engine: stage.options for stage in pipeline if not stage.is_remote}
    return Request(
        engines=tuple(local),
        strategy=Strategy(strategy) if strategy else None,
        workers=workers,
        threads=threads,
        force_cpu=force_cpu,
        no_mps=no_mps,
        memory_limit=memory_limit,
        devices=tuple(devices),
        cannot=registry.list_obstacles(local),
    )


def plan_at_start(request: Request) -> Plan:
    """In the supervisor's thread: what takes a while does not hold up who makes a Runtime. Raises LoadError."""
    if not request.engines:  # else it was looked for before
        require(())
    return make_plan(request)


def make_plan(request: Request) -> Plan:
    """What the matrix says for this machine. Devices that are to be hidden need not be asked; GPUs that are to compute
    are asked once more what they are doing now."""
    facts = read_facts(Devices() if request.force_cpu or request.devices == ("cpu",) else None)
    plan = decide(facts, request)
    if not plan.wants_gpus:
        return plan
    return decide(replace(facts, devices=look_again(facts.devices, request.devices)), request)
