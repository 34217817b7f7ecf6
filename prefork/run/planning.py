"""What a command would do here, found out without doing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefork.engines import registry
from prefork.engines.audio.selection import Selection
from prefork.engines.base import ELEMENTS_PER_SECOND, LoadError
from prefork.engines.batching import Batching, BatchingStrategy
from prefork.engines.parquet.options import RowOptions
from prefork.engines.parquet.row_path import SUFFIX
from prefork.installation import find_obstacle
from prefork.memory.governor import Governor
from prefork.platform_matrix.driver import look_again
from prefork.platform_matrix.matrix import Plan, Request, decide
from prefork.platform_matrix.memory import format_gigabytes
from prefork.pool.pipeline import Intake, Pipeline, choose_languages
from prefork.run.corpus import find_jobs, find_languages
from prefork.run.data_files import find_files, read_lengths
from prefork.run.facts import find_facts
from prefork.wire.child import ChildProcess
from prefork.wire.environment import make_environment
from prefork.wire.messages import FromZygote, LoadFailed, Surveyed
from prefork.wire.specification import Specification
from prefork.wording import format_duration

_SURVEY_SECONDS = 600.0  # a hub may have to be asked


def plan_run(
    command: str,
    source: Path,
    media: Path | None,
    pipeline: Pipeline,
    request: Request,
    facts: Path | None,
    refresh: bool,
    intake: Intake = Intake.PAIRS,
    selection: Selection | None = None,
    follow_links: bool = False,
) -> tuple[Plan, list[tuple[str, str]]]:
    """The plan, and what it would be for: names and values. Raises InputError, LoadError."""
    for stage in pipeline:
        if not stage.is_remote:
            registry.find(stage.engine)
    work = _describe_work(source, media, intake, selection, follow_links)
    pipeline = choose_languages(pipeline, partial(find_languages, source, follow_links=follow_links))
    engines = {stage.engine: stage.options for stage in pipeline if not stage.is_remote}
    conflict = find_obstacle(engines)
    cannot = registry.list_obstacles(engines)
    request = replace(request, engines=tuple(engines), cannot=cannot, broken=str(conflict) if conflict else "")
    plan = decide(find_facts(facts, refresh), request)
    if facts is None and plan.wants_gpus:
        plan = decide(replace(plan.facts, devices=look_again(plan.facts.devices, request.devices)), request)
    names = " -> ".join(stage.engine for stage in pipeline)
    if request.broken or (plan.refusal and plan.budget.cap):  # then the size of the weights changes nothing
        return plan, [("engine", names), *work]
    found = survey(Specification(engines, plan=plan))
    plan = Governor(command=command, engines=engines).recall(plan.learn(found.weights, found.private))
    size = "weights whose size is unknown until they are loaded"
    if found.weights is not None:
        size = f"{found.weights / 1e6:.0f} MB of weights{_describe_dtypes(engines, found, plan)}"
    return plan, [("engine", f"{names}, {size}"), *work]


def _describe_dtypes(engines: Mapping[str, Mapping[str, Any]], found: Surveyed, plan: Plan) -> str:
    """What the weights are held in that nobody has said it of, if it is not float32."""
    chosen = [name for name, options in engines.items() if "dtype" not in options]
    if plan.fast_dtype != "int8" or "int8" not in [found.fingerprints.get(name, {}).get("dtype") for name in chosen]:
        return ""
    return f" in int8, which this processor multiplies ({plan.facts.instructions[0]}); --dtype float32 changes that"


def _describe_work(
    source: Path, media: Path | None, intake: Intake, selection: Selection | None, follow_links: bool
) -> list[tuple[str, str]]:
    """Names and values. Raises InputError."""
    if source.suffix == SUFFIX or (source.is_dir() and any(source.rglob(f"*{SUFFIX}"))):
        files, _ = find_files(source, None, RowOptions(), intake, follow_links)
        return [("rows", f"{sum(file.rows for file in files):,}"), *_describe_audio(read_lengths(files), intake)]
    corpus = find_jobs(source, None, media=media, intake=intake, selection=selection, follow_links=follow_links)
    seconds = [job.seconds for job in corpus.jobs]
    unusable = f", and {len(corpus.problems)} that cannot be used" if corpus.problems else ""
    return [("files", f"{len(seconds)}{unusable}"), *_describe_audio(seconds, intake)]


def _describe_audio(seconds: Sequence[float], intake: Intake) -> list[tuple[str, str]]:
    if intake is Intake.TEXTS:
        return []
    return [("audio", f"{format_duration(sum(seconds))}, the longest {format_duration(max(seconds, default=0.0))}")]


def describe_batches(batching: Batching, plan: Plan) -> str:
    """Which segments go through the model together."""
    if batching.strategy is BatchingStrategy.STATIC:
        return f"STATIC, {batching.batch_size} segment{'s' * (batching.batch_size != 1)} each"
    if batching.max_num_elements is None and plan.batch_memory is None:
        return _describe_usual(batching, plan.device)
    warnings: list[str] = []
    if batching.max_num_elements is None:
        memory = format_gigabytes(plan.batch_memory or 0)
        text = f"{batching.strategy.name}, as many segments as the engine estimates for {memory}, and then measures"
    else:
        batching, warnings = batching.resolve(0)
        most = batching.max_num_elements or 0
        text = f"{batching.strategy.name}, up to {most:,} elements ({most / ELEMENTS_PER_SECOND:.0f} s of audio)"
    if batching.max_bucket_size is not None:
        text += f" and {batching.max_bucket_size} segments"
    if batching.num_seqs_multiple_of > 1:
        text += f", above {batching.num_seqs_multiple_of} segments in multiples of {batching.num_seqs_multiple_of}"
    if batching.max_audio_len is not None:
        text += f", none longer than {batching.max_audio_len / ELEMENTS_PER_SECOND:.0f} s"
    return "; ".join([text, *warnings])


def _describe_usual(batching: Batching, device: str) -> str:
    """Where neither the user nor a GPU's memory determines the size of batches; see `Loaded.choose_batching`."""
    name = {"cpu": "the CPU", "mps": "MPS"}.get(device, device)
    text = f"one segment at a time on {name}, unless the engine takes more at once"
    if batching.max_audio_len is not None:
        text += f", none longer than {batching.max_audio_len / ELEMENTS_PER_SECOND:.0f} s"
    return f"{text}; --batch-size or --max-num-elements change that"


def survey(specification: Specification) -> Surveyed:
    """What a process finds out that opens the models and does not load them. Raises LoadError."""
    assert specification.plan is not None
    child = ChildProcess("work.zygote", make_environment(specification.plan))
    try:
        child.channel.post(replace(specification, survey=True))
        answer: FromZygote = child.receive(_SURVEY_SECONDS)
    except (EOFError, TimeoutError) as error:
        last_line = child.stderr_tail.decode(errors="replace").strip().rpartition("\n")[2]
        raise LoadError(f"the process that inspects the models ended without an answer: {last_line}") from error
    finally:
        child.kill()
        child.end(1.0)
    match answer:
        case Surveyed():
            return answer
        case LoadFailed(reason):
            raise LoadError(reason)
    raise LoadError(f"the process that inspects the models has sent {type(answer).__name__}, and no survey")
