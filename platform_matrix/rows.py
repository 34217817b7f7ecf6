"""The rows of the matrix: kinds of machine, what may be shared how on each, and why. Nothing but data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from prefork.platform_matrix.facts import Facts


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

    @property
    def forks(self) -> bool:
        """Whether workers are forked, so that what their parent has is theirs too."""
        return self is not Strategy.SPAWN


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a plan or a verdict is what it is. source: where that is known from; empty if it follows from the facts."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of machine. strategies: in order of preference.

    engines: those it holds for; None for any, none of them if it is empty. constraints: what else must be, or is meant.
    """

    system: str  # as in Facts, or `wsl`
    device: str  # cpu, cuda, rocm, mps
    title: str
    verdict: Verdict
    strategies: tuple[Strategy, ...]
    constraints: tuple[str, ...]
    claims: tuple[Reason, ...]
    engines: tuple[str, ...] | None = None


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
_WSL_IPC = Reason(
    "CUDA IPC is documented for WSL2, and reported not to work there; it is not relied on",
    f"{_GITHUB}/sgl-project/sglang/issues/35385",
)
WITHOUT_IPC = (_NO_IPC, _WSL_IPC)  # why a row with an NVIDIA GPU goes without it
_MAPPED = "spawned workers map one copy of the weights, but each has its own copy of the libraries"
_ONE_AT_A_TIME = "workers load one after the other, so that no more than one copy is ever held twice"

_ONE_OWNER = "the process that has the model on the GPU is started by exec; workers are forked from one without CUDA"
_SERVER_FIRST = (
    "server comes before ipc: one CUDA context instead of one for each worker, batches filled from all workers' files, "
    "and a worker that dies takes nothing on the GPU with it; --strategy ipc where inference shall not wait for others"
)
_UNTRIED = "nobody could try this device with this version: it is hidden, and the row for the CPU holds"
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
        (Strategy.SERVER, Strategy.IPC, Strategy.SPAWN),
        (_ONE_OWNER, _SERVER_FIRST),
        (_CUDA, _DRIVER, _CHILD),
    ),
    Row(
        "linux",
        "rocm",
        "Linux, AMD GPU",
        Verdict.REFUSED,
        _GPU,
        (_UNTRIED,),
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
        ("a canary has to live before any worker is forked; it infers the longest segments too",),
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
    Row(
        "windows",
        "cuda",
        "Windows, NVIDIA GPU",
        Verdict.REFUSED,
        (Strategy.SPAWN,),
        (_UNTRIED,),
        (_NO_FORK, _NO_IPC),
        _NONE,
    ),
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
        (_ONE_OWNER,),
        (_CUDA, _WSL_IPC),
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


def find_row(facts: Facts, device: str) -> Row:
    """The row of a machine and one of its devices; for systems that nobody has looked at, one that shares nothing."""
    system = "wsl" if facts.wsl else facts.system
    found = [row for row in ROWS if (row.system, row.device) == (system, device)]
    if found:
        return found[0]
    engines = None if device == "cpu" else _NONE
    return replace(_UNKNOWN, system=system, device=device, title=f"{system} {device}", engines=engines)
