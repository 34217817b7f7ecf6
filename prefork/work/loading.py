"""Loading: what a process that computes does before it can, whether others are forked from it or not."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.spawn
import os
import pickle
import sys
import time
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from prefork.engines import registry
from prefork.engines.base import Engine, LoadError, Segment
from prefork.fingerprint import note_files
from prefork.memory.forecast import BASE
from prefork.memory.probe import measure_self
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.failures import Failure
from prefork.platform_matrix.hazards import Hazard
from prefork.platform_matrix.imports import explain_import
from prefork.platform_matrix.matrix import Strategy
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.exceptions import describe_error
from prefork.wire.messages import LoadFailed
from prefork.wire.process import flush_output
from prefork.wire.specification import LOADED, Inventory, Specification
from prefork.wording import describe_os_error
from prefork.work.loaded import _USUAL_SECONDS, Loaded
from prefork.work.torch_state import hide_mps

if TYPE_CHECKING:
    from prefork.weights.arena import Arena
    from prefork.weights.walk import NamedTensors


def open_engines(specification: Specification) -> dict[str, Engine]:
    """The engines with their host-side tables. The first thing that a process does: imports torch, and what must be
    said to it before anything else does."""
    import torch

    SYSTEM.release_mapped_files()  # of torch's libraries, two thirds are read once: while they are linked
    plan = specification.plan
    assert plan is not None
    if "mps" in plan.hidden:
        hide_mps()
    torch.set_num_threads(1)  # before the first tensor operation: from then on OpenMP has a pool
    _silence()
    engines = {name: registry.create(name, options) for name, options in specification.engines.items()}
    for engine in engines.values():
        engine.suggest_dtype(plan.fast_dtype)
        engine.setup()
    return engines


def take_fingerprints(engines: Mapping[str, Engine]) -> dict[str, Mapping[str, Any]]:
    """What each says of itself, the files that its model is read from as they are now. Raises LoadError."""
    return {name: note_files(engine.fingerprint()) for name, engine in engines.items()}


def survey(specification: Specification, engines: Mapping[str, Engine]) -> int | None:
    """Bytes that the weights will take, from the models' headers; None if that is not known before they are loaded."""
    distinct = {_find_model_key(name, engine): engine for name, engine in engines.items()}
    sizes = [engine.count_weights() for engine in distinct.values()]
    known = [size for size in sizes if size is not None]
    return None if specification.load is not None or len(known) < len(sizes) else sum(known)


def estimate_private(engines: Mapping[str, Engine]) -> int | None:
    """Bytes of a worker's own while it runs a segment of usual length, or as many as an engine takes in one go; None
    if there are no engines to say it."""
    sizes = [
        engine.estimate_memory(Segment(0, 0.0, max(_USUAL_SECONDS, engine.batch_seconds)))
        for engine in engines.values()
    ]
    return BASE + max(sizes) if sizes else None


def load(specification: Specification) -> Loaded:
    """Everything the specification names, its weights shared, used once and read-only. Raises LoadError."""
    try:
        return replace(_load(specification), initializer=specification.initializer)
    except Exception:
        raise
    except BaseException as error:  # sys.exit, in a script without its guard or in `load`: to load again is no use
        raise LoadError(describe_error(error, "load")) from error


def _load(specification: Specification) -> Loaded:
    engines = open_engines(specification)
    assert specification.plan is not None
    fingerprints = take_fingerprints(engines)
    if specification.remote:
        loaded = Loaded(engines, {}, None, "cpu", specification.checkpoints, specification.batching, remote=True)
        loaded = replace(loaded, fingerprints=fingerprints)
        _settle(loaded)
        return loaded
    weights = survey(specification, engines)
    if weights is not None and (refusal := specification.plan.learn(weights=weights).refusal):
        raise LoadError(refusal)
    models = _load_models(engines)
    if specification.preparation is not None:
        _import_main(specification.preparation)
    if specification.load is not None:
        models[LOADED] = _call_load(specification.load)
    plan = specification.plan
    owned = plan.strategy is Strategy.IPC  # each worker finds them on its device
    device = "cpu" if owned else plan.device
    shares = plan.shared and device == "cpu"
    named = _walk(models) if shares or LOADED in models else {}
    tensors: dict[str, str] = {}
    if LOADED in models:
        _check_private([name for name, _ in named[LOADED]], specification.private)
        tensors = {name: _describe_tensor(tensor) for name, tensor in named[LOADED]}
        if specification.expected is not None:
            _compare(specification.expected, tensors)
    arena = _share(specification, models, named) if shares else None
    del named
    if device != "cpu":
        models = {name: _move(name, model, device) for name, model in models.items()}
        find_kind(device).speed_up()
    options = (specification.checkpoints, specification.batching)
    loaded = Loaded(engines, models, arena, device, *options, devices=plan.devices, fingerprints=fingerprints)
    loaded = replace(loaded, tensors=tensors)
    plan = plan.learn(weights=loaded.count_weights())
    if plan.allowance is not None:
        find_kind(device).limit_memory(plan.allowance)
    loaded = replace(loaded, batch_memory=plan.batch_memory)
    if not owned:  # else it happens in forked children: libraries ask CUDA things, and keep the answers
        loaded.verify_examples()
    _settle(loaded)
    return loaded


def _move(name: str, model: Any, device: str) -> Any:
    """A model on a device, if it can be moved. Raises LoadError for weights that the device cannot hold."""
    import torch

    if not hasattr(model, "to"):
        return model
    lacks = {getattr(torch, dtype) for dtype in find_kind(device).lacks}
    if lacks and isinstance(model, torch.nn.Module):
        for weight, tensor in chain(model.named_parameters(), model.named_buffers()):
            if tensor.dtype in lacks:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise LoadError(
                    f"{name}: its tensor {weight} is {dtype}, which {device} cannot hold; load the model in float32, "
                    "or run with --force-cpu"
                )
    return model.to(device)


def _settle(loaded: Loaded) -> None:
    """Everything is there: from here on others may share it."""
    gc.collect()
    gc.freeze()  # the collector writes into every object it looks at, and a write copies the page
    if loaded.arena is not None:
        loaded.arena.seal()
    SYSTEM.release_free_memory()  # what a worker would else give back, and what was never its own


def _find_model_key(name: str, engine: Engine) -> Hashable:
    """Engines with the same one share a model."""
    identity = engine.identify_model()
    return name if identity is None else (identity,)


def _load_models(engines: Mapping[str, Engine]) -> dict[str, Any]:
    """By engine. Those that identify theirs alike get the same one, which the first of them loads."""
    loaded: dict[Hashable, Any] = {}
    models = {}
    for name, engine in engines.items():
        key = _find_model_key(name, engine)
        if key not in loaded:
            loaded[key] = engine.load()
        models[name] = loaded[key]
    return models


def _call_load(load: bytes) -> Any:
    """What the user's function returns, in the process that called it; one that it has forked gets no further."""
    pid = os.getpid()
    try:
        return pickle.loads(load)()
    finally:
        if os.getpid() != pid:
            _end_forked(sys.exc_info()[1])


def _end_forked(error: BaseException | None) -> NoReturn:
    """As the interpreter would have ended, without what others have registered for its end."""
    status = 1
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            traceback.print_exception(error)
        flush_output()
    finally:
        os._exit(status & 0xFF)


def _walk(models: Mapping[str, Any]) -> Mapping[str, NamedTensors]:
    from prefork.weights.walk import walk_all

    return walk_all(models)


def _check_private(names: Sequence[str], patterns: Sequence[str]) -> None:
    from prefork.weights.private import check_patterns

    try:
        check_patterns(names, patterns)
    except ValueError as error:
        raise LoadError(str(error)) from error


def _describe_tensor(tensor: Any) -> str:
    """Its shape, which a nested one has none of, and its type."""
    shape = "nested" if tensor.is_nested else tuple(tensor.shape)
    return f"{shape} {tensor.dtype}".replace("torch.", "")


def _compare(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises LoadError if a model is not like the one whose place it takes."""
    for name in dict.fromkeys((*expected, *found)):
        new, old = found.get(name, "not there"), expected.get(name, "not there")
        if new != old:
            raise LoadError(
                f"the tensor {name} is {new}, and was {old}; reload takes other weights of the same model: for another "
                "model, make a new Runtime"
            )


def _share(specification: Specification, models: Mapping[str, Any], named: Mapping[str, NamedTensors]) -> Arena:
    from prefork.weights.arena import Arena

    try:
        if specification.manifest is not None:
            return Arena.adopt(models, pickle.loads(specification.manifest), specification.private, named)
        return Arena.pack(models, specification.arena, specification.private, named)
    except ValueError as error:
        raise LoadError(str(error)) from error


def describe(loaded: Loaded, started: float, hazards: tuple[Hazard, ...] = ()) -> Inventory:
    """started: time.monotonic() when the process began."""
    return Inventory(
        weights=loaded.count_weights(),
        seconds=time.monotonic() - started,
        fingerprints=loaded.fingerprints,
        hazards=hazards,
        tf32=uses_tf32(loaded.device),
        private=estimate_private(loaded.engines),
        suspicions={} if loaded.remote else _list_suspicions(loaded.engines),
        batches=loaded.list_batches(),
        warnings=tuple(loaded.list_warnings()),
        manifest=pickle.dumps(loaded.arena.describe()) if loaded.arena is not None and loaded.arena.path else None,
        memory=measure_self(loaded.arena.size if loaded.arena is not None else 0),
        tensors=loaded.tensors,
    )


def _list_suspicions(engines: Mapping[str, Engine]) -> dict[str, str]:
    return {name: engine.suspicion for name, engine in engines.items() if engine.suspicion}


def uses_tf32(device: str) -> bool | None:
    if device != "cuda":
        return None
    import torch

    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")  # to read this one never raises


def explain(error: Exception) -> tuple[str, str]:
    """A sentence, and a traceback where that says more."""
    if isinstance(error, LoadError):
        return str(error), ""
    if line := explain_import(error):
        return line, ""
    reason = "; ".join([describe_error(error), *getattr(error, "__notes__", ())])
    if isinstance(error, OSError):
        reason = f"the models cannot be loaded: {describe_os_error(error)}"
    return reason, "".join(traceback.format_exception(error))


def refuse(error: Exception, specification: Specification) -> LoadFailed:
    """What to say of what went wrong while loading."""
    assert specification.plan is not None
    failure = None
    if specification.plan.devices and not isinstance(error, LoadError):
        failure = find_kind(specification.plan.device).classify(error, describe_error(error))
    return LoadFailed(*explain(error), device_failed=failure in (Failure.CONTEXT, Failure.DEVICE))


def _import_main(preparation: Mapping[str, Any]) -> None:
    """Imports the user's script, as multiprocessing's spawn does, so that its functions can be unpickled."""
    current = multiprocessing.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        multiprocessing.spawn.prepare(dict(preparation))
    finally:
        del current._inheriting  # type: ignore[attr-defined]


def _silence() -> None:
    """tqdm would start a thread to watch its bars."""
    with contextlib.suppress(ImportError):
        import tqdm  # type: ignore[import-untyped]

        tqdm.tqdm.monitor_interval = 0
