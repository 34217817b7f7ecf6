"""What a command would do here, found out without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines import registry
from engines.base import LoadError
from platform_matrix.matrix import Plan, Request, decide
from prefork.child import ChildProcess
from prefork.corpus import find_jobs
from prefork.governor import Governor
from prefork.loading import Specification, make_environment
from prefork.machine import find_facts
from prefork.report import clock

_SURVEY_SECONDS = 600.0  # a hub may have to be asked


def plan_run(
    command: str,
    source: Path,
    media: Path | None,
    options: Mapping[str, Any],
    request: Request,
    facts: Path | None,
    refresh: bool,
) -> tuple[Plan, list[tuple[str, str]]]:
    """The plan, and what it would be for: names and values. Raises InputError, LoadError."""
    (engine,) = request.engines
    registry.find(engine)
    corpus = find_jobs(source, None, media=media)
    seconds = [job.seconds for job in corpus.jobs]
    work = [
        (
            "files",
            f"{len(seconds)}, and {len(corpus.problems)} that cannot be used" if corpus.problems else f"{len(seconds)}",
        ),
        ("audio", f"{clock(sum(seconds))}, the longest {clock(max(seconds, default=0.0))}"),
    ]
    plan = decide(find_facts(facts, refresh), request)
    weights, private = survey(Specification({engine: dict(options)}, plan=plan))
    plan = Governor.make(command, engine, options).recall(plan.learn(weights, private))
    size = f"{weights / 1e6:.0f} MB of weights" if weights is not None else "weights of a size that only loading shows"
    return plan, [("engine", f"{engine}, {size}"), *work]


def survey(specification: Specification) -> tuple[int | None, int | None]:
    """Bytes of the weights, and of a worker's own, as a process says that opens the models and does not load them.
    Raises LoadError."""
    assert specification.plan is not None
    child = ChildProcess("zygote", make_environment(specification.plan))
    try:
        child.channel.post(replace(specification, survey=True))
        kind, *answer = child.receive(_SURVEY_SECONDS)
    except (EOFError, TimeoutError) as error:
        words = child.last_words.decode(errors="replace").strip().rpartition("\n")[2]
        raise LoadError(f"the process that looks at the models ended without an answer: {words}") from error
    finally:
        child.kill()
        child.end(1.0)
    if kind != "surveyed":
        raise LoadError(answer[0])
    weights, private = answer
    return weights, private
