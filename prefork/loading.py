"""Loading: what a process that computes does before it can, whether others are forked from it or not."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.spawn
import os
import pickle
import time
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from engines import registry
from engines.base import Engine, LoadError, Segment, Tensors
from platform_matrix.hazards import Hazard
from platform_matrix.matrix import Plan
from prefork.forecast import BASE
from prefork.process import release_free_memory

if TYPE_CHECKING:
    from prefork.arena import Arena

# Read by libraries when they are first imported: no pool of threads may exist before a fork, and no progress bar
# belongs into a worker.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYANNOTE_METRICS_ENABLED": "0",
    "MPLBACKEND": "Agg",  # pyannote imports matplotlib, which may look for a display
    # oneDNN keeps what it has prepared for each shape it has seen, 1,024 of them; every recording brings new ones. Over
    # 20 recordings: 237 MB in a worker, 52 MB with 16 kept, 34 MB with malloc_trim after each; equally fast.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    # So does what lies between torch and oneDNN, for each shape of a convolution: 36 kB for every segment, 0.2 with 16.
    "LRU_CACHE_CAPACITY": "16",
}
_USUAL_SECONDS = 20.0  # of a segment
_keep: list[Any] = []
_HIDING = {
    "cuda": {"CUDA_VISIBLE_DEVICES": ""},
    "rocm": {"HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": ""},
    "mps": {},  # torch has no variable for it: see hide_mps
}


@dataclass(frozen=True, slots=True)
class Specification:
    """What a process loads. engines: name -> options. load: a pickled function without arguments, or None.

    plan: what has been decided for this machine; None only as long as it has not. preparation: what multiprocessing
    needs to import the user's script again; None if it is not needed. survey: look at the models, do not load them.
    arena: the file that takes the weights, for processes that are not forked; None for memory without a name.
    manifest: a pickled arena.Manifest of weights that another process has put there.
    """

    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    load: bytes | None = None
    plan: Plan | None = None
    preparation: Mapping[str, Any] | None = None
    survey: bool = False
    checkpoints: bool = False
    arena: str | None = None
    manifest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a process says of itself once everything is loaded and sealed."""

    weights: int  # bytes in the arena
    seconds: float  # from the start of the process to here
    fingerprints: Mapping[str, Mapping[str, Any]]  # by engine
    hazards: tuple[Hazard, ...] = ()  # none of them unsafe, or there would be no inventory
    names: tuple[str, ...] = ()
    tf32: bool | None = None  # whether matrix products use it; None on devices that do not have it
    private: int | None = None  # bytes that a worker's own are estimated to be at its peak
    manifest: bytes | None = None  # for processes that are to share these weights
    suspicions: Mapping[str, str] = field(default_factory=dict)  # by engine: why one may doubt that this can fork
    batches: Mapping[str, float] = field(default_factory=dict)  # by engine: seconds of audio that it takes in one go


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded, and where its weights are; no arena where weights cannot be shared."""

    engines: Mapping[str, Engine]
    models: Mapping[str, Any]
    arena: Arena | None
    device: str
    checkpoints: bool = False

    def infer(self, name: str, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """An engine's `infer`, wherever its weights are; what goes in and comes out is on the CPU."""
        import torch

        with torch.inference_mode():
            if self.device == "cpu":
                return self.engines[name].infer(self.models[name], batch)
            there = [{key: tensor.to(self.device) for key, tensor in tensors.items()} for tensors in batch]
            outputs = self.engines[name].infer(self.models[name], there)
            return [{key: tensor.cpu() for key, tensor in tensors.items()} for tensors in outputs]

    def try_examples(self) -> dict[str, Tensors]:
        """What each engine makes of its example; those without one are left out."""
        examples = {name: engine.example() for name, engine in self.engines.items()}
        return {name: self.infer(name, [example])[0] for name, example in examples.items() if example is not None}

    def count_weights(self) -> int:
        """Bytes."""
        if self.arena is not None:
            return self.arena.size
        from prefork.arena import measure_weights

        return measure_weights(self.models)


def make_environment(plan: Plan) -> dict[str, str]:
    """What the environment of a process that computes must say, beside what it inherits."""
    hiding = {name: value for kind in plan.hidden for name, value in _HIDING[kind].items()}
    return {**_ENVIRONMENT, **hiding}


def hide_mps() -> None:
    """Has torch say that there is no MPS, to everything that is imported after it, and refuse to put tensors there.

    torch has no switch for it. A torch that was built without MPS is left alone.
    """
    import torch

    if not torch._C._has_mps:
        return
    core: Any = torch._C
    core._has_mps = False
    core._mps_is_available = lambda: False
    core._accelerator_getAccelerator = lambda: None
    torch.backends.mps.is_available.cache_clear()
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for operator in ("empty.memory_format", "empty_strided"):  # what makes a tensor comes through these
        library.impl(operator, _refuse_mps, "MPS", allow_override=True)
    _keep.append(library)  # what it says holds as long as it lives


def _refuse_mps(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("MPS is hidden (--force-cpu, --no-mps): load this on the CPU")


def open_engines(specification: Specification) -> dict[str, Engine]:
    """The engines with their host-side tables. The first thing that a process does: imports torch, and what must be
    said to it before anything else does."""
    import torch

    plan = specification.plan
    assert plan is not None
    if "mps" in plan.hidden:
        hide_mps()
    torch.set_num_threads(1)  # before the first tensor operation: from then on OpenMP has a pool
    _silence()
    engines = {name: registry.create(name, options) for name, options in specification.engines.items()}
    for engine in engines.values():
        engine.setup()
    return engines


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
    engines = open_engines(specification)
    weights = survey(specification, engines)
    assert specification.plan is not None
    if weights is not None and (refusal := specification.plan.learn(weights=weights).refusal):
        raise LoadError(refusal)
    models = _load_models(engines)
    if specification.preparation is not None:
        _import_main(specification.preparation)
    if specification.load is not None:
        models["load"] = _call_load(specification.load)
    device = specification.plan.device
    arena = _share(specification, models) if specification.plan.shared else None
    if device != "cpu":
        models = {name: model.to(device) if hasattr(model, "to") else model for name, model in models.items()}
    loaded = Loaded(engines, models, arena, device, specification.checkpoints)
    for name, output in loaded.try_examples().items():
        engines[name].verify(output)
    gc.collect()
    gc.freeze()  # the collector writes into every object it looks at, and a write copies the page
    if arena is not None:
        arena.seal()
    release_free_memory()  # what a worker would else give back, and what was never its own
    return loaded


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
    model = pickle.loads(load)()
    if os.getpid() != pid:
        os._exit(1)
    return model


def _share(specification: Specification, models: Mapping[str, Any]) -> Arena:
    from prefork.arena import Arena

    try:
        if specification.manifest is not None:
            return Arena.adopt(models, pickle.loads(specification.manifest))
        return Arena.pack(models, specification.arena)
    except ValueError as error:
        raise LoadError(str(error)) from error


def describe(loaded: Loaded, started: float, hazards: tuple[Hazard, ...] = ()) -> Inventory:
    """started: time.monotonic() when the process began."""
    return Inventory(
        weights=loaded.count_weights(),
        seconds=time.monotonic() - started,
        fingerprints={name: dict(engine.fingerprint()) for name, engine in loaded.engines.items()},
        hazards=hazards,
        names=tuple(loaded.models),
        tf32=_uses_tf32(loaded.device),
        private=estimate_private(loaded.engines),
        suspicions={name: engine.suspicion for name, engine in loaded.engines.items() if engine.suspicion},
        batches={name: engine.batch_seconds for name, engine in loaded.engines.items()},
        manifest=pickle.dumps(loaded.arena.describe()) if loaded.arena is not None and loaded.arena.path else None,
    )


def _uses_tf32(device: str) -> bool | None:
    if device != "cuda":
        return None
    import torch

    return bool(torch.backends.cuda.matmul.allow_tf32)


def explain(error: Exception) -> tuple[str, str]:
    """A sentence, and a traceback where that says more."""
    if isinstance(error, LoadError):
        return str(error), ""
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))


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
