"""The matrix: what may be shared how on which machine, why, and what that means for one run. Pure: asks nobody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from platform_matrix.facts import Facts
from platform_matrix.memory import keep_back

GIGABYTE = 1e9
# Bytes, as long as nobody knows better:
LIBRARIES = 750_000_000  # torch, torchaudio, transformers and stanza once imported: 714 MB were measured
PRIVATE = 150_000_000  # of a worker's own while it computes: 57-140 MB were measured


class Verdict(StrEnum):
    """May a process that has loaded its models on this device fork workers that use them?"""

    SAFE = "safe"
    CAVEATS = "with caveats"
    REFUSED = "refused"


class Strategy(StrEnum):
    """How workers come by the weights."""

    FORK = "fork"  # inherited copy-on-write from one process that has loaded them
    IPC = "ipc"  # one copy in GPU memory, mapped through CUDA IPC
    SERVER = "server"  # one process has the model, the workers ask it
    SPAWN = "spawn"  # fresh processes; on the CPU they map one copy, elsewhere each has its own


BUILT = (Strategy.FORK, Strategy.SPAWN)  # what this version can do


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a plan or a verdict is what it is. source: where that is known from; empty if it follows from the facts."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of machine. strategies: in order of preference, those that this version lacks included.

    engines: those it holds for; None for any whose canary lives, none of them if it is empty.
    """

    system: str  # as in Facts, or `wsl`
    device: str  # cpu, cuda, rocm, mps
    title: str
    verdict: Verdict
    strategies: tuple[Strategy, ...]
    constraints: tuple[str, ...]
    claims: tuple[Reason, ...]
    engines: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What the user wants of this machine, and what has been found out about it since.

    memory_limit: bytes that all processes together may take, None for what there is. copies: a copy of the weights for
    each worker even where they could be shared, to compare. weights: bytes, None as long as nobody has looked. private:
    bytes of a worker's own at its peak beside the libraries, libraries: bytes of these; None as long as nobody knows.
    unsafe: why the process that has loaded the models must not fork; empty as long as it has not shown that.
    """

    engines: tuple[str, ...] = ()
    strategy: Strategy | None = None
    workers: int | None = None
    threads: int | None = None
    force_cpu: bool = False
    no_mps: bool = False
    memory_limit: int | None = None
    copies: bool = False
    weights: int | None = None
    private: int | None = None
    libraries: int | None = None
    unsafe: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """Where the memory goes, in bytes. once: needed however many workers there are; each: for one more; least: without
    which not even one can do anything."""

    available: int
    reserve: int
    once: int
    each: int
    least: int
    terms: tuple[str, str]  # what `once` and `each` are made of

    @property
    def room(self) -> int:
        return max(0, self.available - self.reserve)

    @property
    def cap(self) -> int:
        """How many workers fit."""
        return max(0, self.room - self.once) // self.each

    def describe(self, workers: int) -> str:
        need = self.once + workers * self.each
        parts = [term for term in (self.terms[0], f"{workers} x ({self.terms[1]})") if term]
        return (
            f"{' + '.join(parts)} = {_gigabytes(need)} of {_gigabytes(self.room)} "
            f"({_gigabytes(self.available)} available less a reserve of {_gigabytes(self.reserve)})"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The verdict for one run, with its numbers and every reason.

    refusal: why nothing can run and what to do about it; empty if it can. shared: one copy of the weights for all.
    hidden: the kinds of device that the models do not get to see; unused: of the reasons, those why devices are hidden
    that are there. capped: why there are fewer workers than were wanted, with the arithmetic; empty if there are not.
    """

    facts: Facts
    request: Request
    row: Row
    device: str
    strategy: Strategy
    shared: bool
    workers: int
    threads: int
    budget: Budget
    hidden: tuple[str, ...]
    unused: tuple[Reason, ...] = ()
    capped: str = ""
    reasons: tuple[Reason, ...] = ()
    refusal: str = ""

    def learn(
        self,
        weights: int | None = None,
        private: int | None = None,
        libraries: int | None = None,
        unsafe: str = "",
    ) -> Plan:
        """What to do now that more is known: see Request. What is None or empty is as it was."""
        news = {"weights": weights, "private": private, "libraries": libraries, "unsafe": unsafe or None}
        known = {name: value for name, value in news.items() if value is not None}
        return decide(self.facts, replace(self.request, **known))  # type: ignore[arg-type]


_GITHUB = "https://github.com"
_OPENMP = Reason(
    "OpenMP's threads do not survive a fork, and a child waits for them for ever; so the process that forks has torch "
    "on one thread before its first operation, is looked over for others, and proves itself with a canary",
    "https://gcc.gnu.org/legacy-ml/gcc-patches/2014-02/msg00813.html",
)
_CUDA = Reason(
    "CUDA's runtime does not survive a fork: once a process has initialised it, its children cannot use it",
    "https://docs.pytorch.org/docs/stable/notes/multiprocessing.html",
)
_DRIVER = Reason(
    "a library can initialise CUDA without torch knowing; the driver itself is asked before a fork",
    f"{_GITHUB}/vllm-project/vllm/pull/44252",
)
_CHILD = Reason(
    "a process that is itself a forked child of one that has initialised CUDA cannot use it either; so whatever "
    "computes is started by exec",
    f"{_GITHUB}/vllm-project/vllm/pull/50638",
)
_NO_FORK = Reason(
    "Windows has no fork: every worker is a fresh process", "https://docs.python.org/3/library/os.html#os.fork"
)
_NO_IPC = Reason(
    "PyTorch documents that CUDA IPC is not supported on Windows",
    "https://docs.pytorch.org/docs/stable/notes/windows.html#cuda-ipc-operations",
)
_ACCELERATE = Reason(
    "Accelerate's BLAS runs on libdispatch, whose threads do not survive a fork: a matrix product may fault in a child",
    f"{_GITHUB}/skyfielders/python-skyfield/issues/1024",
)
_OBJECTIVE_C = Reason(
    "Objective-C ends a forked child that initialises one of its classes if its parent had threads at the fork",
    f"{_GITHUB}/dvarrazzo/py-setproctitle/issues/138",
)
_MACOS_SPAWN = Reason(
    "Apple's system libraries may start threads; Python therefore spawns by default on macOS",
    "https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods",
)
_MAPPED = "spawned workers map one copy of the weights, but each has its own copy of the libraries"
_ONE_AT_A_TIME = "workers load one after the other, so that no more than one copy is ever held twice"

_ANY_GPU = "no engine of this version computes on this device: it is hidden, and the row for the CPU holds"
_NONE: tuple[str, ...] = ()
_FORK = (Strategy.FORK, Strategy.SERVER, Strategy.SPAWN)
_GPU = (Strategy.SERVER, Strategy.SPAWN)

ROWS = (
    Row("linux", "cpu", "Linux, CPU", Verdict.SAFE, _FORK, ("the process that forks has hidden all GPUs",), (_OPENMP,)),
    Row(
        "linux",
        "cuda",
        "Linux, NVIDIA GPU",
        Verdict.REFUSED,
        (Strategy.IPC, *_GPU),
        (_ANY_GPU,),
        (_CUDA, _DRIVER, _CHILD),
        _NONE,
    ),
    Row(
        "linux",
        "rocm",
        "Linux, AMD GPU",
        Verdict.REFUSED,
        _GPU,
        (_ANY_GPU,),
        (
            Reason(
                "HIP must not be initialised before a fork that is not followed by exec; torch treats it as CUDA",
                f"{_GITHUB}/ROCm/rocm-systems/pull/8119",
            ),
        ),
        _NONE,
    ),
    Row(
        "darwin",
        "cpu",
        "macOS, CPU only",
        Verdict.CAVEATS,
        (Strategy.FORK, Strategy.SPAWN),
        ("MPS must be hidden, with --force-cpu or --no-mps", "a canary has to live before any worker is forked"),
        (_ACCELERATE, _OBJECTIVE_C, _MACOS_SPAWN),
    ),
    Row(
        "darwin",
        "mps",
        "macOS, MPS",
        Verdict.REFUSED,
        (Strategy.SPAWN,),
        ("every worker has a whole copy of the weights: as many as fit in memory",),
        (
            Reason(
                "Metal does not survive a fork: a forked child that computes with MPS hangs or crashes without a word",
                f"{_GITHUB}/pytorch/pytorch/pull/178037",
            ),
            _OBJECTIVE_C,
        ),
    ),
    Row("windows", "cpu", "Windows, CPU", Verdict.REFUSED, (Strategy.SPAWN,), (_MAPPED, _ONE_AT_A_TIME), (_NO_FORK,)),
    Row("windows", "cuda", "Windows, NVIDIA GPU", Verdict.REFUSED, _GPU, (_ANY_GPU,), (_NO_FORK, _NO_IPC), _NONE),
    Row(
        "wsl",
        "cpu",
        "WSL2, CPU",
        Verdict.SAFE,
        _FORK,
        ("the process that forks has hidden all GPUs",),
        (_OPENMP,),
    ),
    Row(
        "wsl",
        "cuda",
        "WSL2, NVIDIA GPU",
        Verdict.REFUSED,
        _GPU,
        (_ANY_GPU,),
        (
            _CUDA,
            Reason(
                "CUDA IPC is documented for WSL2, and reported not to work there; it is not relied on",
                f"{_GITHUB}/sgl-project/sglang/issues/35385",
            ),
        ),
        _NONE,
    ),
)
_UNKNOWN = Row(
    "",
    "",
    "",
    Verdict.REFUSED,
    (Strategy.SPAWN,),
    (_MAPPED, _ONE_AT_A_TIME),
    (Reason("nobody has tried this system: nothing is forked there"),),
)


@dataclass(slots=True)
class _Reasons:
    """What has been found out on the way to a plan."""

    found: list[Reason] = field(default_factory=list)
    refusal: str = ""

    def add(self, text: str, source: str = "") -> None:
        self.found.append(Reason(text, source))

    def refuse(self, text: str) -> None:
        self.refusal = self.refusal or text


def decide(facts: Facts, request: Request) -> Plan:
    """What to do on a machine with these facts. Never raises for a machine: a refusal is part of the plan."""
    reasons = _Reasons()
    hidden = _hide(facts, request)
    row = _choose_row(facts, request, hidden, reasons)
    unused = tuple(reasons.found)
    strategy = _choose_strategy(facts, request, row, reasons)
    shared = row.device == "cpu" and not (request.copies and strategy is Strategy.SPAWN)
    budget = plan_memory(facts, request, strategy, shared)
    workers = _count_workers(facts, request, budget, reasons)
    capped = reasons.found[-1].text if workers < (request.workers or facts.cores) else ""
    threads = request.threads or max(1, facts.cores // workers)
    everything = ("cuda", "rocm", "mps")
    return Plan(
        facts=facts,
        request=request,
        row=row,
        device=row.device,
        strategy=strategy,
        shared=shared,
        workers=workers,
        threads=threads,
        budget=budget,
        hidden=tuple(kind for kind in everything if row.device == "cpu" or kind in hidden),
        unused=unused,
        capped=capped,
        reasons=tuple(reasons.found),
        refusal=reasons.refusal,
    )


def find_row(facts: Facts, device: str) -> Row:
    """The row of a machine and one of its devices; for systems that nobody has looked at, one that shares nothing."""
    system = "wsl" if facts.wsl else facts.system
    found = [row for row in ROWS if (row.system, row.device) == (system, device)]
    if found:
        return found[0]
    engines = None if device == "cpu" else _NONE
    return replace(_UNKNOWN, system=system, device=device, title=f"{system} {device}", engines=engines)


def _hide(facts: Facts, request: Request) -> tuple[str, ...]:
    """The kinds of device that the user does not want to be seen."""
    if request.force_cpu or facts.devices.error:
        return ("cuda", "rocm", "mps")
    return ("mps",) if request.no_mps else ()


def _choose_row(facts: Facts, request: Request, hidden: Sequence[str], reasons: _Reasons) -> Row:
    """The row of the first device that is there, may be seen, and that the engines can use."""
    if facts.devices.error:
        reasons.add(f"the devices could not be asked ({facts.devices.error}); all GPUs are hidden from the models")
    if request.force_cpu:
        reasons.add("all GPUs are hidden from the models (--force-cpu)")
    for kind in dict.fromkeys(device.kind for device in facts.devices.present):
        row = find_row(facts, kind)
        if kind in hidden:
            if not request.force_cpu:
                reasons.add(f"{kind} is hidden from the models (--no-mps)")
        elif row.engines is not None and not (request.engines and set(request.engines) <= set(row.engines)):
            names = ", ".join(request.engines) or "whatever is loaded"
            reasons.add(f"{kind} is hidden from the models: {names} computes on the CPU in this version")
        else:
            return row
    return find_row(facts, "cpu")


def _choose_strategy(facts: Facts, request: Request, row: Row, reasons: _Reasons) -> Strategy:
    if request.unsafe:
        reasons.add(f"cannot fork: {request.unsafe}")
    can_fork = "fork" in facts.start_methods and not request.unsafe
    offered = [s for s in row.strategies if s in BUILT and (s is not Strategy.FORK or can_fork)]
    for claim in row.claims:
        reasons.add(claim.text, claim.source)
    for constraint in row.constraints:
        reasons.add(constraint)
    chosen = request.strategy or offered[0]
    if chosen not in BUILT:
        reasons.refuse(f"strategy {chosen} is not part of this version; take --strategy {offered[0]}")
    elif chosen not in offered and request.unsafe:
        reasons.refuse(f"cannot fork: {request.unsafe}; take --strategy {offered[0]}")
    elif chosen not in offered:
        why = row.claims[0].text if row.claims and Strategy.FORK not in row.strategies else "Python cannot fork here"
        other = " or --force-cpu" if row.device == "mps" else ""
        reasons.refuse(f"cannot {chosen} on {row.title}: {why}; take --strategy {offered[0]}{other}")
    before = row.strategies[: row.strategies.index(chosen)] if chosen in row.strategies else ()
    if missing := [strategy for strategy in before if strategy not in BUILT]:
        reasons.add(f"{' and '.join(missing)} would come first here, and are not part of this version")
    return chosen


def _count_workers(facts: Facts, request: Request, budget: Budget, reasons: _Reasons) -> int:
    wanted = request.workers or facts.cores
    if request.weights is None:
        reasons.add("how large the weights are shows when the model is looked at; the arithmetic is without them")
    if request.workers is None:
        reasons.add(f"one worker for each of the {facts.cores} cores that may be used")
    if budget.cap < 1 and budget.room < budget.once + budget.least:
        remedy = "take a smaller model" + (", or raise --memory-limit" if request.memory_limit else " or make room")
        reasons.refuse(f"not enough memory for one worker: {budget.describe(1)}; {remedy}")
    elif budget.cap < wanted:
        reasons.add(f"{wanted} workers would take {budget.describe(wanted)}; {budget.cap} fit")
    return max(1, min(wanted, budget.cap))


def plan_memory(facts: Facts, request: Request, strategy: Strategy, shared: bool) -> Budget:
    """The arithmetic of workers and memory."""
    most = math.inf if request.memory_limit is None else request.memory_limit
    available, reserve = int(min(facts.available, most)), keep_back(int(min(facts.memory, most)))
    weights = request.weights or 0
    libraries = LIBRARIES if request.libraries is None else request.libraries
    own = PRIVATE if request.private is None else request.private
    least = min(own, PRIVATE)
    names = f"weights {_gigabytes(weights)}", f"libraries {_gigabytes(libraries)}", f"{_gigabytes(own)} own"
    if strategy is Strategy.SPAWN and not shared:
        rest = weights + libraries
        return Budget(available, reserve, 0, rest + own, rest + least, ("", " + ".join(names)))
    if strategy is Strategy.SPAWN:
        once = f"{names[0]} once, and once more while a worker starts"
        terms = (once, f"{names[1]} + {names[2]}")
        return Budget(available, reserve, 2 * weights, libraries + own, libraries + least, terms)
    return Budget(available, reserve, libraries + weights, own, least, (f"{names[0]} + {names[1]}", names[2]))


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.2f} GB"
