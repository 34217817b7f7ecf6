"""The Runtime of a machine, as a run asks for it: the user's own machine, or one of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from prefork.engines.batching import Batching
from prefork.platform_matrix.matrix import Plan
from prefork.pool.pipeline import Pipeline
from prefork.pool.requests import make_plan, make_request
from prefork.pool.runtime import Runtime
from prefork.pool.tasks import HangLimit


class MachineSettings(Protocol):
    """What may be another on each machine. As `Runtime` has them; devices: () for its default."""

    @property
    def workers(self) -> int | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def strategy(self) -> str | None: ...
    @property
    def devices(self) -> tuple[str, ...]: ...
    @property
    def force_cpu(self) -> bool: ...
    @property
    def no_mps(self) -> bool: ...
    @property
    def memory_limit(self) -> int | None: ...


class RunSettings(Protocol):
    """What is the same on all machines of a run."""

    @property
    def command(self) -> str: ...
    @property
    def batching(self) -> Batching | None: ...
    @property
    def hang_limit(self) -> HangLimit: ...
    @property
    def mem_guard(self) -> bool: ...
    @property
    def memory_checkpoints(self) -> bool: ...


def start_runtime(
    pipeline: Pipeline,
    machine: MachineSettings,
    run: RunSettings,
    memory_log: Path,
    notice: Callable[[str], None],
    log: Callable[[str], None],
) -> Runtime:
    """Raises what `Runtime` does."""
    return Runtime(
        pipeline,
        workers=machine.workers,
        threads=machine.threads,
        strategy=machine.strategy,
        devices=machine.devices or None,
        batching=run.batching,
        force_cpu=machine.force_cpu,
        no_mps=machine.no_mps,
        hang_limit=run.hang_limit,
        memory_limit=machine.memory_limit,
        mem_guard=run.mem_guard,
        memory_log=memory_log,
        memory_checkpoints=run.memory_checkpoints,
        command=run.command,
        notice=notice,
        log=log,
    )


def plan_runtime(pipeline: Pipeline, machine: MachineSettings) -> Plan:
    """As the Runtime will find it before it has loaded anything. Raises LoadError."""
    asked = (machine.strategy, machine.workers, machine.threads, machine.devices)
    return make_plan(make_request(pipeline, *asked, machine.force_cpu, machine.no_mps, machine.memory_limit))
