"""The other way to use a Mac: MPS, or forked workers on its CPU. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prefork.platform_matrix.matrix import Plan, decide
from prefork.platform_matrix.memory import format_gigabytes

# Bytes of weights from which a GPU is likely faster than all cores: below, to launch an operation takes longer than to
# compute it. A guess: nobody has measured it on a Mac.
_LARGE = 200_000_000


@dataclass(frozen=True, slots=True)
class Alternative:
    """plan: what would be done the other way. option: what makes it so. faster: whether it is likely faster, None if
    the weights are not known."""

    plan: Plan
    option: str
    faster: bool | None

    def describe(self) -> str:
        plan = self.plan
        if plan.refusal:
            return f"{self.option} cannot be: {plan.refusal}"
        likely = {True: "likely faster", False: "likely slower", None: "faster for large models alone"}[self.faster]
        size = plan.request.weights
        weights = f", with {format_gigabytes(size)} of weights" if size is not None else ""
        workers = f"{plan.workers} worker{'s' * (plan.workers != 1)} ({plan.strategy})"
        limit = f"; of the GPU {plan.video.describe(plan.workers)}" if plan.video is not None else ""
        return f"{self.option}: {likely}{weights}; {workers}: {plan.budget.describe(plan.workers)}{limit}"


def find_alternative(plan: Plan) -> Alternative | None:
    """None where there is no choice: no MPS, or what is to be run does not compute on it."""
    facts, request = plan.facts, plan.request
    if not any(device.kind == "mps" for device in facts.devices.present):
        return None
    size = request.weights
    if plan.device == "mps":
        other = decide(facts, replace(request, strategy=None, devices=(), force_cpu=True, no_mps=False))
        return Alternative(other, "--force-cpu", None if size is None else size < _LARGE)
    other = decide(facts, replace(request, strategy=None, devices=(), force_cpu=False, no_mps=False, unsafe=""))
    faster = None if size is None else size >= _LARGE
    return Alternative(other, "MPS (without --force-cpu and --no-mps)", faster) if other.device == "mps" else None
