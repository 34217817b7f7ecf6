"""What the outputs of a run depend on besides its inputs: the settings of every stage, of later phases too."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from prefork.engines import registry
from prefork.engines.base import LoadError
from prefork.fingerprint import complete, note_files
from prefork.platform_matrix.matrix import Plan, Request
from prefork.pool.pipeline import Pipeline
from prefork.pool.requests import make_plan
from prefork.run.computer import Computer
from prefork.run.planning import survey
from prefork.wire.specification import Specification

if TYPE_CHECKING:
    pass

Noted = Mapping[str, Mapping[str, Any]]  # by engine: what it says of itself, its files as they are now
Fingerprint = Mapping[str, Any]  # of all stages, as the journal has it


def note_models(pipeline: Pipeline, runtime: Computer | None, force_cpu: bool, no_mps: bool) -> Noted:
    """Models that are not loaded yet are opened by a process of their own. Raises LoadError."""
    known = dict(runtime.fingerprints) if runtime is not None else {}
    for stage in pipeline:
        if stage.is_remote and stage.engine not in known:
            known[stage.engine] = note_files(registry.create_service(stage.engine, stage.options).fingerprint())
    others = {stage.engine: stage.options for stage in pipeline if stage.engine not in known}
    if others:
        known_plan = runtime.supervisor.plan if runtime is not None else None
        plan = known_plan or _make_plan(others, force_cpu, no_mps)
        known |= survey(Specification(others, plan=plan)).fingerprints
    return known


def _make_plan(engines: Iterable[str], force_cpu: bool, no_mps: bool) -> Plan:
    """For looking at models without loading them. Raises LoadError if nothing can be run here."""
    plan = make_plan(Request(tuple(engines), force_cpu=force_cpu, no_mps=no_mps))
    if plan.refusal:
        raise LoadError(plan.refusal)
    return plan


def complete_all(pipeline: Sequence[str], known: Noted) -> Fingerprint:
    """pipeline: the names of its engines. Reads what was never digested. Raises LoadError."""
    return {"stages": [complete(name, known[name]) for name in pipeline]}


def start_completing(pipeline: Sequence[str], known: Noted, inputs: Mapping[str, Any]) -> Future[Fingerprint]:
    """A thread digests the files that are new here; a run into a new folder does not wait for it. inputs: what of the
    inputs is used, if outputs depend on that."""
    future: Future[Fingerprint] = Future()

    def digest() -> None:
        try:
            future.set_result({**complete_all(pipeline, known), **inputs})
        except BaseException as error:  # noqa: BLE001  it is raised where the fingerprint is wanted
            future.set_exception(error)

    threading.Thread(target=digest, name="prefork-digest", daemon=True).start()
    return future
