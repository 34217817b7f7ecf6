"""What a command would do here, found out without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines import registry
from engines.base import LoadError
from platform_matrix.matrix import Plan, Request, decide
from prefork.child import ChildProcess
from prefork.corpus import find_jobs, find_languages
from prefork.governor import Governor
from prefork.loading import Specification, make_environment
from prefork.machine import find_facts
from prefork.pipeline import Intake, Pipeline, choose_languages
from prefork.report import clock

_SURVEY_SECONDS = 600.0  # a hub may have to be asked


@dataclass(frozen=True, slots=True)
class Survey:
    """What models say of themselves before they are loaded. Bytes of the weights and of a worker's own, None if they
    cannot say; what outputs depend on, by engine."""

    weights: int | None
    private: int | None
    fingerprints: Mapping[str, Mapping[str, Any]]


def plan_run(
    command: str,
    source: Path,
    media: Path | None,
    pipeline: Pipeline,
    request: Request,
    facts: Path | None,
    refresh: bool,
    intake: Intake = Intake.PAIRS,
) -> tuple[Plan, list[tuple[str, str]]]:
    """The plan, and what it would be for: names and values. Raises InputError, LoadError."""
    for stage in pipeline:
        if not stage.is_remote:
            registry.find(stage.engine)
    corpus = find_jobs(source, None, media=media, intake=intake)
    pipeline = choose_languages(pipeline, partial(find_languages, source))
    engines = {stage.engine: stage.options for stage in pipeline if not stage.is_remote}
    seconds = [job.seconds for job in corpus.jobs]
    work = [
        (
            "files",
            f"{len(seconds)}, and {len(corpus.problems)} that cannot be used" if corpus.problems else f"{len(seconds)}",
        ),
    ]
    if intake is not Intake.TEXTS:
        work.append(("audio", f"{clock(sum(seconds))}, the longest {clock(max(seconds, default=0.0))}"))
    plan = decide(find_facts(facts, refresh), replace(request, engines=tuple(engines)))
    found = survey(Specification(engines, plan=plan))
    plan = Governor(command=command, engines=engines).recall(plan.learn(found.weights, found.private))
    size = "weights of a size that only loading shows"
    if found.weights is not None:
        size = f"{found.weights / 1e6:.0f} MB of weights"
    return plan, [("engine", f"{' -> '.join(stage.engine for stage in pipeline)}, {size}"), *work]


def survey(specification: Specification) -> Survey:
    """What a process says that opens the models and does not load them. Raises LoadError."""
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
    return Survey(*answer)
