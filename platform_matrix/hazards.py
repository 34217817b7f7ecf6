"""What makes a fork unsafe in this process as it is now. Reads, never changes; never imports torch.

What is known to hang or corrupt a child is unsafe. What cannot be known from outside is suspect: a canary decides.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from types import ModuleType
from typing import Any

from prefork.platform_matrix.cuda import finds_no_gpu, is_initialised
from prefork.platform_matrix.holders import Tracked, name_holder
from prefork.platform_matrix.inherited import Identity, Shared, list_connections, list_shared
from prefork.platform_matrix.openings import Openings
from prefork.platform_matrix.systems import SYSTEM
from prefork.platform_matrix.threads import Thread, count_native, list_threads

_CUDA_MEMORY = "/dev/nvidia-uvm"  # opened by cuInit, not by NVML
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_END_IT = "end it before the models are loaded, or load the model in spawned workers"


class Severity(StrEnum):
    HARMLESS = "harmless"  # known not to matter in a forked child
    SUSPECT = "suspect"  # may matter; a canary has to prove that it does not
    UNSAFE = "unsafe"  # a child forked now may hang or crash


@dataclass(frozen=True, slots=True)
class Hazard:
    """Something that a forked child would inherit and may not survive."""

    name: str
    severity: Severity
    what: str  # what is true of this process
    remedy: str


@dataclass(frozen=True, slots=True)
class _Library:
    """What the resting threads of a library mean to a forked child."""

    pattern: str  # of its file name
    name: str
    what: str
    severity: Severity
    remedy: str


_JEMALLOC = "jemalloc"  # which is linked into other libraries, as pyarrow's, and names its threads
# Tried in this order. libgomp, OpenBLAS and tokenizers: tests/platform_matrix/test_threads.py forks with each.
_LIBRARIES = (
    _Library(
        r"libgomp\b",
        "openmp",
        "OpenMP's pool, which does not survive a fork: a child that computes with more than one thread hangs",
        Severity.UNSAFE,
        "set OMP_NUM_THREADS=1, or call torch.set_num_threads(1) before the first computation",
    ),
    _Library(r"libi?omp", "openmp", "LLVM's OpenMP pool, made anew in a child", Severity.SUSPECT, _END_IT),
    _Library(r"openblas", "blas", "OpenBLAS's pool, ended before a fork and made anew", Severity.HARMLESS, _END_IT),
    _Library(r"libmkl|libblis", "blas", "a BLAS pool", Severity.SUSPECT, "set MKL_NUM_THREADS=1, BLIS_NUM_THREADS=1"),
    _Library(
        r"^tokenizers\b",
        "tokenizers",
        "tokenizers' pool, which a child does without",
        Severity.HARMLESS,
        "set TOKENIZERS_PARALLELISM=false",
    ),
    _Library(
        r"cygrpc|libgrpc", "grpc", "gRPC's own", Severity.SUSPECT, "close its channels before the models are loaded"
    ),
    _Library(r"libcuda", "cuda", "CUDA's own", Severity.UNSAFE, "load the model on the CPU (--force-cpu)"),
    _Library(
        r"libtorch|libc10", "torch", "torch's own pool", Severity.SUSPECT, "call torch.set_num_threads(1) first of all"
    ),
    _Library(r"hf_xet", "download", "Hugging Face's downloads", Severity.SUSPECT, "download the models beforehand"),
    _Library(  # its src/background_thread.c and src/jemalloc.c: pthread_atfork takes its locks and gives them back
        rf"^{_JEMALLOC}$",
        "allocator",
        "whose locks are taken before a fork and given back after it",
        Severity.HARMLESS,
        "set MALLOC_CONF, for pyarrow JE_ARROW_MALLOC_CONF, to background_thread:false",
    ),
    _Library(r"", "thread", "an unknown pool", Severity.SUSPECT, _END_IT),
)


def find_hazards(ours: Collection[int] = ()) -> list[Hazard]:
    """Every hazard of this process; without an unsafe one it may fork. ours: file descriptors not to be reported."""
    threads = list_threads()
    hazards = [*_find_torch_hazards(), *_find_driver_hazards(), *judge_threads(threads)]
    if not SYSTEM.tells_threads:
        hazards += judge_native_count(count_native(), threading.active_count())
    if any(thread.python for thread in threads):
        hazards += [*_find_imports(), *_find_locks()]
    return [*hazards, *map(to_hazard, list_connections(ours))]


def judge_threads(threads: Iterable[Thread]) -> list[Hazard]:
    """A resting thread simply does not exist in the child; a running one may hold a lock that stays locked there."""
    hazards = [_judge_python(thread) for thread in threads if thread.python]
    named = (replace(t, origin=_JEMALLOC) if t.name.startswith("jemalloc_bg") else t for t in threads if not t.python)
    native = sorted(named, key=lambda t: (t.origin, bool(t.waiting), t.tid))
    for (origin, waiting), group in groupby(native, key=lambda t: (t.origin, bool(t.waiting))):
        library = next(library for library in _LIBRARIES if re.search(library.pattern, origin))
        members = list(group)
        names = ", ".join(f"{thread.name} ({thread.tid})" for thread in members)
        hazards.append(
            Hazard(
                library.name,
                library.severity if waiting else Severity.UNSAFE,
                f"{len(members)} native thread{'s' if len(members) > 1 else ''} {'waiting' if waiting else 'running'}: "
                f"{names}; started by {origin or 'an unknown library'}, {library.what}",
                library.remedy,
            )
        )
    return hazards


def _judge_python(thread: Thread) -> Hazard:
    state = {True: "waiting", False: "running", None: "in a state that this system does not tell"}[thread.waiting]
    severity = Severity.UNSAFE if thread.waiting is False else Severity.SUSPECT
    if thread.waiting and thread.ending:
        severity, state = Severity.HARMLESS, "waiting to end, its executor gone"
    origin = f", started to run {thread.origin}," if thread.origin else ""
    return Hazard("thread", severity, f"Python thread {thread.name} ({thread.tid}){origin} is {state}", _END_IT)


def judge_native_count(threads: int, python: int) -> list[Hazard]:
    """macOS: Objective-C aborts a child whose parent had threads, if a class was being initialised at the fork."""
    if (others := threads - python) <= 0:
        return []
    return [
        Hazard(
            "objc",
            Severity.SUSPECT,
            f"{others} native thread{'s' if others > 1 else ''} beside Python's {python}; "
            "a child that uses Objective-C may be aborted (objc_initializeAfterForkError)",
            "load the model in spawned workers",
        )
    ]


def judge_mps(signs: Sequence[str]) -> list[Hazard]:
    """signs: what shows that Metal was used by this process."""
    if not signs:
        return []
    return [
        Hazard(
            "mps",
            Severity.UNSAFE,
            f"MPS was initialised by this process (pid {os.getpid()}): {', '.join(signs)}; it does not survive a fork",
            "load the model on the CPU (--force-cpu)",
        )
    ]


def judge_driver(initialized: bool, inherited: bool) -> list[Hazard]:
    """CUDA's driver, which is loaded. inherited: its device is open, and not because it was asked for GPUs here while
    all were hidden: then whoever forked us has initialised it."""
    if initialized:
        return [_cuda_hazard(f"was initialised by this process (pid {os.getpid()}, through the driver API)")]
    return [_cuda_hazard(f"was initialised by the process that forked this one (pid {os.getpid()})")] * inherited


def _cuda_hazard(how: str) -> Hazard:
    return Hazard(
        "cuda",
        Severity.UNSAFE,
        f"CUDA {how}; its runtime does not survive a fork",
        "load the model on the CPU (--force-cpu)",
    )


def _find_torch_hazards() -> list[Hazard]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    hazards = []
    if (count := torch.get_num_threads()) != 1:
        hazards.append(
            Hazard(
                "openmp",
                Severity.UNSAFE,
                f"torch computes with {count} threads; OpenMP's pool does not survive a fork, and a child hangs in it",
                "call torch.set_num_threads(1) before the first tensor operation, and nothing that raises it again",
            )
        )
    if torch.cuda._is_in_bad_fork():  # torch.cuda.is_initialized() says no there
        hazards.append(_cuda_hazard(f"was initialised by the process that forked this one (pid {os.getpid()})"))
    elif torch.cuda.is_initialized():
        hazards.append(_cuda_hazard(f"was initialised by this process (pid {os.getpid()}, via torch.cuda)"))
    if SYSTEM.has_metal:
        hazards += judge_mps(_find_mps(torch))
    return hazards


def _find_mps(torch: ModuleType) -> list[str]:
    """Signs of Metal that can be read without initialising it."""
    signs = []
    if torch.mps._is_in_bad_fork():
        signs.append("inherited through a fork")
    if torch.mps._default_mps_generator is not None:
        signs.append("a random generator")
    with Tracked() as objects:
        tensors = sum(issubclass(type(thing), torch.Tensor) and thing.is_mps for thing in objects)  # asks no object
    if tensors:
        signs.append(f"{tensors} tensors")
    return signs


def _find_driver_hazards() -> list[Hazard]:
    """CUDA initialised behind torch's back."""
    initialised = is_initialised()
    if initialised is None:
        return []
    return judge_driver(initialised, _CUDA_MEMORY in SYSTEM.list_open_files() and not finds_no_gpu())


def _find_imports() -> Iterator[Hazard]:
    """Imports under way in other threads. Only modules' own locks: Python frees the global one in a child."""
    own = threading.get_ident()
    locks: dict[str, Callable[[], Any]] = sys.modules["_frozen_importlib"]._module_locks
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is not None and lock.owner not in (None, own):
            yield Hazard(
                "import",
                Severity.UNSAFE,
                f"another thread is importing {name}; a child that imports it waits for ever",
                "import it before the models are loaded, in the main thread",
            )


def _find_locks() -> Iterator[Hazard]:
    """Locks that a thread holds: a child has them locked, and nobody there to release them."""
    with Tracked() as objects:
        held = [thing for thing in objects if type(thing) in (_LOCK, _RLOCK) and _is_held(thing)]
        objects.clear()
        holders = [(thing, {id(part) for part in gc.get_referents(thing)}) for thing in gc.get_referrers(*held)]
        for lock in held:
            referrers = [thing for thing, parts in holders if id(lock) in parts and thing is not held]
            if any(isinstance(thing, deque) for thing in referrers):  # a thread that waits on a Condition
                continue
            is_plain = type(lock) is _LOCK
            names = sorted({name_holder(thing, lock) for thing in referrers} - {""})
            if any(name.endswith("._tstate_lock") for name in names):  # held while a thread lives, until Python 3.12
                continue
            yield Hazard(
                "lock",
                Severity.SUSPECT if is_plain else Severity.UNSAFE,
                f"{', also '.join(names) or 'a lock without a name'} is locked"
                f"{'' if is_plain else ' by another thread'}; a child that asks for it waits for ever",
                "release it before the models are loaded, or end the thread that holds it",
            )


def _is_held(lock: Any) -> bool:
    """Whether a plain lock is locked, by whomever, or an RLock by another thread; only its repr says by which."""
    if type(lock) is _LOCK:
        return bool(lock.locked())
    owner = re.search(r"owner=(\d+)", repr(lock))
    return owner is not None and int(owner[1]) not in (0, threading.get_ident())


def find_shared(ours: Collection[Identity] = (), openings: Openings | None = None) -> list[Hazard]:
    """What children share with this process beside memory, each once: none is known to be unsafe, some is harmless."""
    return list(dict.fromkeys(map(to_hazard, list_shared(ours, openings))))


def to_hazard(shared: Shared) -> Hazard:
    return Hazard(shared.kind, Severity.HARMLESS if shared.harmless else Severity.SUSPECT, shared.what, shared.remedy)
