"""Loading: what a process that computes does before it can, whether others are forked from it or not."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import multiprocessing.spawn
import os
import pickle
import random
import time
import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from prefork.engines import registry
from prefork.engines.base import ELEMENTS_PER_SECOND, Engine, HostEngine, LoadError, Segment, Tensors
from prefork.engines.batching import Batcher, Batching
from prefork.memory.forecast import BASE
from prefork.platform_matrix.hazards import Hazard
from prefork.platform_matrix.imports import explain_import
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.wire.process import release_free_memory

if TYPE_CHECKING:
    from prefork.weights.arena import Arena
    from prefork.weights.device_memory import Export, Guard

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
_WINDOW = 4  # batches that may wait
# What torch's allocator says when it gets nothing: on Linux and macOS, on Windows, and where C++ does not say more.
_ALLOCATOR = ("can't allocate memory", "not enough memory: you tried to allocate", "std::bad_alloc")
_MOST_UNUSED = 0.1  # of a GPU's memory that torch may keep between two segments
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
    manifest: a pickled arena.Manifest of weights that another process has put there. batching: what the user wants of
    batches. remote: the models are in another process, which is asked.
    """

    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    load: bytes | None = None
    plan: Plan | None = None
    preparation: Mapping[str, Any] | None = None
    survey: bool = False
    checkpoints: bool = False
    arena: str | None = None
    manifest: bytes | None = None
    batching: Batching = Batching()  # noqa: RUF009  frozen, so one may serve all
    remote: bool = False


@dataclass(frozen=True, slots=True)
class ServerOrder:
    """What a model server is told before it begins. threads: that it computes on, on the CPU. groups: batches, of
    requests as `prefork.pool.blame` knows them, to be run before all others, as they are. limit: what is left of the
    usual size of a batch."""

    specification: Specification
    threads: int
    groups: Sequence[tuple[tuple[int, int], ...]] = ()
    limit: float = 1.0


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
    warnings: tuple[str, ...] = ()  # of what the user has asked for


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded, and where its weights are.

    arena: None where weights cannot be shared. remote: the models are in another process. batch_memory: bytes of a GPU
    for the batches of one process; None on the CPU. exports: the weights in the memory of devices, for children to
    attach to. guard: of a child that has, says whether they are still what they were.
    """

    engines: Mapping[str, Engine]
    models: Mapping[str, Any]
    arena: Arena | None
    device: str
    checkpoints: bool = False
    batching: Batching = Batching()  # noqa: RUF009  frozen, so one may serve all
    remote: bool = False
    batch_memory: int | None = None
    devices: tuple[str, ...] = ()
    exports: tuple[Export, ...] = ()
    guard: Guard | None = None

    def attach(self, place: int) -> Loaded:
        """In a forked child: the same with its weights on a device, where their owner has put them, if there is one.

        place: of the device among those of the plan. Raises DeviceError, WeightsChanged, LoadError.
        """
        if not self.exports:
            return self
        from prefork.weights.device_memory import attach, make_memory

        assert self.arena is not None
        export, device = self.exports[place], "cpu"
        if export.kind == "cuda":
            # Read when CUDA is initialised, which here is for the first time.
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices[place]
            device = "cuda"
        guard = attach(self.arena, self.models, make_memory(export.kind), export)
        speed_up(device)
        return replace(self, device=device, arena=None, guard=guard, exports=())

    def compute(self, name: str, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """An engine's `infer`, where its weights are."""
        import torch

        with torch.inference_mode():
            return self.engines[name].infer(self.models[name], batch)

    def infer(self, name: str, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """The same; what goes in and comes out is on the CPU. Raises WeightsChanged if they were not what they are to
        be: then nothing comes out."""
        if self.device == "cpu":
            outputs = self.compute(name, batch)
        else:
            there = [{key: tensor.to(self.device) for key, tensor in tensors.items()} for tensors in batch]
            outputs = [{key: t.cpu() for key, t in tensors.items()} for tensors in self.compute(name, there)]
        if self.guard is not None:
            self.guard.check()
        return outputs

    def choose_batching(self, name: str) -> tuple[Batching, int, list[str]]:
        """How an engine's segments are batched on this device, how many elements of them may wait, and warnings.

        On the CPU a batch is no faster than its segments one after the other, unless the engine says so: it has one.
        """
        engine = self.engines[name]
        if self.batching.batch_size is not None or self.batching.max_num_elements is not None:
            batching, warnings = self.batching.resolve(0)
        elif self.batch_memory is not None:
            batching, warnings = self.batching.resolve(self.batch_memory)[0], []
        elif engine.batch_seconds:
            most = max(round(engine.batch_seconds * ELEMENTS_PER_SECOND), self.batching.max_audio_len or 0)
            return replace(self.batching, max_num_elements=most, num_seqs_multiple_of=1), most, []
        else:
            return replace(self.batching, batch_size=1), 1, []
        if batching.batch_size is not None:
            return batching, batching.batch_size * round(_USUAL_SECONDS * ELEMENTS_PER_SECOND), warnings
        return batching, _WINDOW * (batching.max_num_elements or 1), warnings

    def make_batcher(self, name: str) -> Batcher[Any]:
        batching, window, _ = self.choose_batching(name)
        return Batcher(batching, window)

    def list_batches(self) -> dict[str, float]:
        """By engine: seconds of audio that it takes in one go, 0 for one segment after the other."""
        if self.remote:
            return {}
        batches = {}
        for name, engine in self.engines.items():
            batching, window, _ = self.choose_batching(name)
            most = 0 if batching.batch_size == 1 else batching.max_num_elements or window
            batches[name] = 0.0 if isinstance(engine, HostEngine) else most / ELEMENTS_PER_SECOND
        return batches

    def list_warnings(self) -> list[str]:
        """Of what the user wants of batches."""
        if self.remote:
            return []
        return list(dict.fromkeys(text for name in self.engines for text in self.choose_batching(name)[2]))

    def try_examples(self) -> dict[str, Tensors]:
        """What each engine makes of its example; those without one are left out, and all if the models are not here."""
        if self.remote:
            return {}
        examples = {name: engine.example() for name, engine in self.engines.items()}
        return {name: self.infer(name, [example])[0] for name, example in examples.items() if example is not None}

    def count_weights(self) -> int:
        """Bytes."""
        if self.arena is not None:
            return self.arena.size
        from prefork.weights.arena import measure_weights

        return measure_weights(self.models)


def hide_gpus(plan: Plan) -> dict[str, str]:
    """What the environment of a process must say beside that, from which workers are forked: it must not initialise
    CUDA, not even to ask whether there are GPUs, or its children could not use them."""
    return {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if plan.devices else {}


def reseed(seed: int) -> None:
    """Seeds every generator there is: without it, all workers would draw the zygote's numbers.

    torch's on the CPU alone: torch.manual_seed looks for every other device first, 3 of a fork's 13 ms.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)


def release(device: str) -> None:
    """Gives back what nobody uses; of a GPU's memory what torch keeps, once that is a tenth of all: the next segment
    would have to ask for it again, and that takes longer than on the CPU."""
    import torch

    release_free_memory()
    if device != "cpu":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if unused > _MOST_UNUSED * torch.cuda.mem_get_info()[1]:
            torch.cuda.empty_cache()


def is_for_memory(error: BaseException) -> bool:
    """Whether it was raised for want of memory: Python's own, the allocator's of torch on the CPU, CUDA's."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR)


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
    assert specification.plan is not None
    if specification.remote:
        loaded = Loaded(engines, {}, None, "cpu", specification.checkpoints, specification.batching, remote=True)
        _settle(loaded)
        return loaded
    weights = survey(specification, engines)
    if weights is not None and (refusal := specification.plan.learn(weights=weights).refusal):
        raise LoadError(refusal)
    models = _load_models(engines)
    if specification.preparation is not None:
        _import_main(specification.preparation)
    if specification.load is not None:
        models["load"] = _call_load(specification.load)
    plan = specification.plan
    owned = plan.strategy is Strategy.IPC  # each worker finds them on its device
    device = "cpu" if owned else plan.device
    arena = _share(specification, models) if plan.shared and device == "cpu" else None
    if device != "cpu":
        models = {name: model.to(device) if hasattr(model, "to") else model for name, model in models.items()}
        speed_up(device)
    options = (specification.checkpoints, specification.batching)
    loaded = Loaded(engines, models, arena, device, *options, devices=plan.devices)
    if plan.devices:
        loaded = replace(loaded, batch_memory=plan.learn(weights=loaded.count_weights()).batch_memory)
    for name, output in loaded.try_examples().items():
        engines[name].verify(output)
    _settle(loaded)
    return loaded


def _settle(loaded: Loaded) -> None:
    """Everything is there: from here on others may share it."""
    gc.collect()
    gc.freeze()  # the collector writes into every object it looks at, and a write copies the page
    if loaded.arena is not None:
        loaded.arena.seal()
    release_free_memory()  # what a worker would else give back, and what was never its own


def speed_up(device: str) -> None:
    """What a GPU can do and torch does not do by itself: matrix products of float32 in TF32, where it has that."""
    if device != "cuda":
        return
    import torch

    if torch.cuda.get_device_capability()[0] >= 8:  # Ampere
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


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
    from prefork.weights.arena import Arena

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
        names=tuple(loaded.models or loaded.engines),
        tf32=_uses_tf32(loaded.device),
        private=estimate_private(loaded.engines),
        suspicions={} if loaded.remote else _list_suspicions(loaded.engines),
        batches=loaded.list_batches(),
        warnings=tuple(loaded.list_warnings()),
        manifest=pickle.dumps(loaded.arena.describe()) if loaded.arena is not None and loaded.arena.path else None,
    )


def _list_suspicions(engines: Mapping[str, Engine]) -> dict[str, str]:
    return {name: engine.suspicion for name, engine in engines.items() if engine.suspicion}


def _uses_tf32(device: str) -> bool | None:
    if device != "cuda":
        return None
    import torch

    return bool(torch.backends.cuda.matmul.allow_tf32)


def explain(error: Exception) -> tuple[str, str]:
    """A sentence, and a traceback where that says more."""
    if isinstance(error, LoadError):
        return str(error), ""
    if line := explain_import(error):
        return line, ""
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
