"""The pytest plugin: a marker and a fixture `fork_safe`, which examine a test's model as `prefork check` does.

    @pytest.mark.fork_safe(load=load_model, infer=infer)
    def test_my_model(): ...

    def test_my_model(fork_safe):
        fork_safe(load_model, infer)

load: a top-level function that returns the model. infer: one that gets the model, and whose result can be compared.
deadline: seconds that a forked child may take for one inference, by default 20 times what its parent took. force_cpu:
hide every GPU from the model, as --force-cpu does; on a Mac, this is what allows to fork. fork: "prefork", "plain" or
"both", as --fork. Nothing heavy is imported, and nothing is forked, in pytest's own process. Where the platform matrix
lets nothing fork (Windows, MPS), the test is skipped.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

_MARKER = (
    "fork_safe(load, infer, deadline=None, force_cpu=False, fork='prefork'): the test's model must be safe to share by "
    "forked processes"
)

ForkSafe = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    marker = item.get_closest_marker("fork_safe")
    if marker is not None:
        require_fork_safe(*marker.args, **marker.kwargs)


@pytest.fixture
def fork_safe() -> ForkSafe:
    """A function of (load, infer, deadline=None, force_cpu=False, fork="prefork") that fails the test unless the model
    is safe to share by fork."""
    return require_fork_safe


def require_fork_safe(
    load: Callable[[], Any],
    infer: Callable[[Any], Any],
    deadline: float | None = None,
    force_cpu: bool = False,
    fork: str = "prefork",
) -> None:
    """Fails the running test, with the whole table, unless the model is shown to be safe; skips it where no process is
    ever forked."""
    __tracebackhide__ = True
    from rich.console import Console

    from prefork.check.report import check
    from prefork.check.steps import Finding, Fork
    from prefork.check.targets import Reference, Target
    from prefork.engines.base import LoadError
    from prefork.platform_matrix.matrix import Request, Strategy
    from prefork.pool.requests import make_plan

    shown = io.StringIO()
    try:
        target = Target(load.__qualname__, load=Reference.of(load), infer=Reference.of(infer))
    except LoadError as error:
        pytest.fail(str(error), pytrace=False)
    if fork not in (*Fork, "both"):
        pytest.fail(f"fork is 'prefork', 'plain' or 'both', not {fork!r}", pytrace=False)
    forks = list(Fork) if fork == "both" else [Fork(fork)]
    plan = make_plan(Request(force_cpu=force_cpu))
    (examined,) = check([target], plan, deadline, Console(file=shown, width=120), False, forks, forks)
    if Strategy.FORK not in plan.row.strategies:
        pytest.skip(examined.verdicts[0].steps[0].text)
    if examined.finding is not Finding.SAFE:
        pytest.fail(shown.getvalue(), pytrace=False)
