"""`prefork check`: whether an engine, or anybody's model, survives being forked here. Never imports torch itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prefork.check.messages import ForkOrder
from prefork.check.processes import follow, go_through, specify
from prefork.check.steps import STEPS, Finding, Step
from prefork.check.targets import Target
from prefork.platform_matrix.matrix import Plan, Strategy, Verdict
from prefork.wire.environment import make_environment


def examine(target: Target, plan: Plan, deadline: float, log: Callable[[str], None] = lambda _: None) -> Iterator[Step]:
    """One step after the other, as they are done; all of STEPS, in that order.

    deadline: seconds that a canary may take. log: gets what the examined code prints.
    """
    yield from go_through(STEPS, judge(plan), _examine(target, plan, deadline, log))


def judge(plan: Plan) -> Step:
    """Whether the platform matrix lets this machine fork. Want of memory says nothing about forking."""
    text = f"{plan.row.title}: fork is {plan.row.verdict}"
    claims = tuple(reason.text for reason in plan.row.claims)
    if plan.strategy is not Strategy.FORK:
        return Step("matrix", Finding.UNSAFE, text, details=claims)
    if plan.refusal:
        return Step("matrix", Finding.UNKNOWN if plan.budget.cap < 1 else Finding.UNSAFE, plan.refusal)
    return Step("matrix", Finding.SAFE, text, details=claims if plan.row.verdict is Verdict.CAVEATS else ())


def _examine(target: Target, plan: Plan, deadline: float, log: Callable[[str], None]) -> Iterator[Step]:
    order = ForkOrder(specify(target, plan), target, deadline, max(2, plan.threads))
    yield from follow("check.examination", make_environment(plan), order, log)
