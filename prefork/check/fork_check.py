"""`prefork check`: whether an engine, or anybody's model, survives being forked here, by prefork and by a plain fork.
Never imports torch itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prefork.check.messages import ForkOrder
from prefork.check.processes import follow, go_through, specify
from prefork.check.steps import PLAIN_STEPS, STEPS, Finding, Step
from prefork.check.targets import Target
from prefork.platform_matrix.matrix import Plan, Strategy, Verdict
from prefork.wire.environment import make_environment, make_plain_environment


def examine(
    target: Target, plan: Plan, deadline: float | None, log: Callable[[str], None] = lambda _: None
) -> Iterator[Step]:
    """One step after the other, as they are done; all of STEPS, in that order.

    deadline: seconds that a child may take for one inference; None for 20 times as long as the parent, at least 3 s.
    log: gets what the examined code prints.
    """
    yield from go_through(STEPS, judge(plan), _examine(target, plan, deadline, log))


def examine_plainly(
    target: Target, plan: Plan, deadline: float | None, log: Callable[[str], None] = lambda _: None
) -> Iterator[Step]:
    """The same for os.fork in a process that nothing has prepared for it; all of PLAIN_STEPS."""
    yield from go_through(PLAIN_STEPS, judge(plan), _examine_plainly(target, plan, deadline, log))


def judge(plan: Plan) -> Step:
    """Whether the platform matrix lets this machine fork. Want of memory says nothing about forking."""
    text = f"{plan.row.title}: fork is {plan.row.verdict}"
    claims = tuple(reason.text for reason in plan.row.claims)
    if plan.strategy is not Strategy.FORK:
        return Step("matrix", Finding.UNSAFE, text, details=claims)
    if plan.refusal:
        return Step("matrix", Finding.UNKNOWN if plan.budget.cap < 1 else Finding.UNSAFE, plan.refusal)
    return Step("matrix", Finding.SAFE, text, details=claims if plan.row.verdict is Verdict.CAVEATS else ())


def _examine(target: Target, plan: Plan, deadline: float | None, log: Callable[[str], None]) -> Iterator[Step]:
    yield from follow("check.examination", make_environment(plan), _order(target, plan, deadline), log)


def _examine_plainly(target: Target, plan: Plan, deadline: float | None, log: Callable[[str], None]) -> Iterator[Step]:
    yield from follow("check.plain_examination", make_plain_environment(plan), _order(target, plan, deadline), log)


def _order(target: Target, plan: Plan, deadline: float | None) -> ForkOrder:
    return ForkOrder(specify(target, plan), target, deadline, max(2, plan.threads))
