"""`prefork check --device`: what holds on a GPU, where a process that has loaded a model must never fork.

Examined is what is done there instead: children forked from a process without CUDA, which compute by themselves, map
one copy of the weights, or ask the process that has the model. Never imports torch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from prefork.check.messages import DeviceOrder
from prefork.check.processes import follow, go_through, specify
from prefork.check.steps import STEPS, Finding, Step
from prefork.check.targets import Target
from prefork.platform_matrix.matrix import Plan, Strategy, decide
from prefork.wire.environment import hide_gpus, make_environment

CHILD_SECONDS = 30.0  # for a forked child, if nobody has given a deadline
WORKERS = 2  # at once
TOGETHER = 4  # segments that each asks the server for

DEVICE_STEPS = {
    "device": "the platform matrix lets this machine compute there",
    "load": STEPS["load"],
    "naive": "a child that is forked after CUDA was initialised fails, and says so",
    "clean": "the process that forks has not initialised CUDA, and a child of it can",
    "close": "what the device computes is what the CPU computes",
    "child": "a forked child creates its own CUDA context and computes the same result",
    "ipc": f"{WORKERS} forked children compute on one copy of the weights, the same bit for bit",
    "written": "overwritten weights are detected before a result is kept",
    "server": f"a server answers {WORKERS} forked children, and batches give the same results as single segments",
}


def part(plan: Plan) -> list[Plan]:
    """The same for each of the plan's GPUs alone."""
    if len(plan.labels) < 2:
        return [plan]
    return [decide(plan.facts, replace(plan.request, devices=(label,))) for label in plan.labels]


def examine(
    target: Target, plan: Plan, deadline: float | None, log: Callable[[str], None] = lambda _: None
) -> Iterator[Step]:
    """One step after the other, as they are done; all of DEVICE_STEPS, in that order.

    plan: for one GPU. deadline: seconds for a forked child, which has to initialise CUDA. log: as for
    fork_check.examine.
    """
    yield from go_through(DEVICE_STEPS, judge(plan), _examine(target, plan, deadline or CHILD_SECONDS, log))


def judge(plan: Plan) -> Step:
    """What the platform matrix says of the device: UNKNOWN if it does not allow computing there."""
    if plan.refusal:
        return Step("device", Finding.UNKNOWN, plan.refusal)
    obstacles = {strategy: find_obstacle(plan, strategy) for strategy in plan.row.strategies}
    offered = ", ".join(strategy for strategy, obstacle in obstacles.items() if not obstacle)
    missing = tuple(f"no {strategy}: {obstacle}" for strategy, obstacle in obstacles.items() if obstacle)
    name = f", {plan.chosen[0].name}" if plan.chosen else ""
    return Step("device", Finding.SAFE, f"{plan.row.title}{name}: {offered}", details=missing)


def find_obstacle(plan: Plan, strategy: Strategy) -> str:
    """Why a strategy cannot be had on the plan's device; empty if it can."""
    other = _choose(plan, strategy)
    return other.refusal or (other.fallback if other.strategy is not strategy else "")


def _choose(plan: Plan, strategy: Strategy) -> Plan:
    return decide(plan.facts, replace(plan.request, strategy=strategy, workers=WORKERS))


def _examine(target: Target, plan: Plan, deadline: float, log: Callable[[str], None]) -> Iterator[Step]:
    device = plan.devices[0] if plan.devices else ""
    alone = replace(_choose(plan, Strategy.SPAWN), workers=1)
    order = DeviceOrder(
        specification=specify(target, alone),
        target=target,
        deadline=deadline,
        threads=max(2, plan.threads),
        device=device,
        kind="cuda" if plan.device == "cuda" else "host",
    )
    visible = {"CUDA_VISIBLE_DEVICES": device} if device else {}
    expected = yield from _follow({**make_environment(alone), **visible}, order, log)
    if expected is None:  # it does not even load there
        return
    # As under this strategy: on the CPU, in a file, wherever the weights go from there.
    owned = replace(plan, strategy=Strategy.IPC)
    order = replace(
        order,
        specification=specify(target, owned),
        expected=expected,
        served=specify(target, _choose(plan, Strategy.SERVER)),
        no_ipc=find_obstacle(plan, Strategy.IPC),
        no_server=find_obstacle(plan, Strategy.SERVER),
    )
    yield from _follow({**make_environment(owned), **hide_gpus(owned)}, order, log)


def _follow(
    environment: dict[str, str], order: DeviceOrder, log: Callable[[str], None]
) -> Generator[Step, None, bytes | None]:
    return follow("check.device_examination", environment, order, log)
