"""GPUs, as torch sees them. Asked in a short-lived process, so that no driver is initialised in this one."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib.util
import json
import os
import platform
import re
import reprlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, TypeVar, get_args, get_origin, get_type_hints

import psutil

from prefork.platform_matrix.cache import Cache
from prefork.platform_matrix.canary import describe_exit
from prefork.platform_matrix.cuda import is_initialised
from prefork.platform_matrix.imports import explain_import
from prefork.platform_matrix.systems import SYSTEM

KINDS = ("cuda", "rocm", "mps")
MODES = ("", "exclusive", "prohibited")
MOST_BYTES = 1 << 60  # more than any machine has
_METAL_DRIVERS = (
    b"AGXMetal",
    b"MTLDriver",
    b"AMDMTL",
)  # of Apple, Intel and AMD GPUs, loaded by the first use of Metal
_MOST_ANSWERS = 16  # in the cache: environments that are used in turn
_VARIABLES = (  # that change which devices torch finds
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HSA_OVERRIDE_GFX_VERSION",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
)
_NODES = ("nvidia*", "nvidia-caps/*", "dxg", "kfd", "dri/*")  # below /dev
_WORDS: dict[type, str] = {str: "a string", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or an instance of one. memory, free: bytes; for mps what Metal recommends that it takes of the machine's.

    free: when it was asked, in this run; 0 if an earlier run asked (only that of mps is always known).
    capability: "9.0" of cuda, "gfx90a" of rocm. uuid: without what NVIDIA writes before it. busy: why it could not be
    used when it was asked, in this run; empty if it could, or nobody asked. mode: "exclusive" if only one process may
    compute on it, "prohibited" if none, "" if many may, or nobody asked. visible: what CUDA_VISIBLE_DEVICES calls it,
    where that does not follow from the uuid. multi_process_service: NVIDIA's MPS, whose server is that one process for
    all others. failed: why it was given up in this run.
    """

    kind: str
    name: str
    memory: int
    free: int
    capability: str = ""
    uuid: str = ""
    mig: bool = False
    mode: str = ""
    busy: str = ""
    visible: str = ""
    multi_process_service: bool = False
    failed: str = ""

    @property
    def is_exclusive(self) -> bool:
        """Whether only one process may compute on it."""
        return self.mode == "exclusive" and not self.multi_process_service

    def find_fault(self) -> str:
        """What cannot be true of any device; empty if nothing."""
        if self.kind not in KINDS:
            return f"kind is {reprlib.repr(self.kind)}, none of {', '.join(KINDS)}"
        if self.mode not in MODES:
            return f"mode is {reprlib.repr(self.mode)}, none of {', '.join(map(repr, MODES))}"
        return find_excess("memory", self.memory, 1, MOST_BYTES) or find_excess("free", self.free, 0, self.memory)


@dataclass(frozen=True, slots=True)
class Devices:
    """What torch can compute on besides the CPU. torch: its version, empty if it is not installed.

    built: the backends it was built with. error: why it could not be asked, a line. limited: what of the environment
    says which GPUs of NVIDIA are seen at all; empty if nothing does. architectures: of NVIDIA's GPUs that it has code
    for, as `torch.cuda.get_arch_list` gives them; none if nobody knows.
    """

    torch: str = ""
    built: tuple[str, ...] = ()
    present: tuple[Device, ...] = ()
    error: str = ""
    limited: str = ""
    architectures: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Whether one was given up in this run, and another computes than was planned at first."""
        return any(device.failed for device in self.present)

    def find_fault(self) -> str:
        """What cannot be true of any machine; empty if nothing."""
        unknown = [kind for kind in self.built if kind not in KINDS]
        return f"built has {reprlib.repr(unknown[0])}, none of {', '.join(KINDS)}" if unknown else ""


_answers: dict[str, Devices] = {}  # of this run, by key


def ask_devices(refresh: bool = False, timeout: float = 60.0) -> Devices:
    """What another process finds out from torch; never raises. timeout: seconds that it may take.

    Answers are kept for the run and, if torch could be asked, on disk for as long as nothing has changed that they
    depend on. refresh: asks again.
    """
    torch = _find_torch()
    if not torch:
        return Devices()
    key = _make_key(torch)
    if not refresh:
        known = _answers.get(key) or _load(key)
        if known:
            return _answers.setdefault(key, known)
    devices = _ask(timeout)
    if devices.error and not devices.torch:
        devices = replace(devices, torch=_find_version(torch))
    _answers[key] = devices
    if not devices.error:
        _open_cache().store(key, asdict(devices))
    return devices


def initialised_drivers() -> tuple[str, ...]:
    """Drivers that this process has already initialised, itself or through any library: "cuda" (HIP too), "mps".

    Asked of torch if it is imported, of CUDA's driver (on Linux) and of macOS. Initialises nothing.
    """
    torch = sys.modules.get("torch")
    cuda = (torch is not None and torch.cuda.is_initialized()) or is_initialised() is True
    return ("cuda",) * cuda + ("mps",) * _is_metal_loaded()


def main() -> None:
    """The process that asks torch. Arguments: where prefork is, seconds until it ends itself.

    The answer goes to stdout, which torch and what it loads do not get to see.
    """
    answer = prepare_answer()
    try:
        devices = _look()
    except BaseException as error:  # noqa: BLE001  whatever torch raises, SystemExit included, is the answer
        devices = Devices(error=explain_import(error) or _make_line(f"{type(error).__name__}: {error}"))
    answer(asdict(devices))


def prepare_answer() -> Callable[[object], NoReturn]:
    """In a process that was started to ask: what gives the answer and ends it."""
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)  # nobody else may be left to end it
    out = os.dup(1)
    os.dup2(2, 1)

    def answer(content: object) -> NoReturn:
        os.write(out, json.dumps(content).encode())
        os._exit(0)  # a driver's clean-up can hang too

    return answer


Made = TypeVar("Made", bound="_Checked")


class _Checked(Protocol):
    def find_fault(self) -> str: ...


def build(kind: type[Made], content: object, place: str = "") -> Made:
    """A dataclass from its decoded JSON. place: where in a file. Raises ValueError with the field and the reason."""
    if not isinstance(content, dict):
        raise ValueError(f"{place or 'the content'} is {reprlib.repr(content)}, not an object")
    prefix = f"{place}." if place else ""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in content:
        if name not in known:
            raise ValueError(f"{prefix}{reprlib.repr(name)[1:-1]} is not a field; fields are {', '.join(known)}")
    for name, field in known.items():
        if name not in content and field.default is MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    hints = get_type_hints(kind)
    made = kind(**{name: _convert(hints[name], value, f"{prefix}{name}") for name, value in content.items()})
    if fault := made.find_fault():
        raise ValueError(f"{prefix}{fault}")
    return made


def find_excess(name: str, value: int, least: int, most: int) -> str:
    """Words for a number out of its range; empty if it is in it."""
    return "" if least <= value <= most else f"{name} is {reprlib.repr(value)}, not from {least} to {most}"


def read_text(file: Path) -> str:
    """Empty if there is no such file, or none that can be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _convert(kind: Any, value: object, place: str) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{place} is {reprlib.repr(value)}, not a list")
        return tuple(_convert(get_args(kind)[0], item, f"{place}[{index}]") for index, item in enumerate(value))
    if is_dataclass(kind):
        return build(kind, value, place)  # type: ignore[type-var, arg-type]
    if type(value) is not kind:  # True is no number here
        raise ValueError(f"{place} is {reprlib.repr(value)}, not {_WORDS[kind]}")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{place} is {reprlib.repr(value)}, with characters that cannot be printed")
    return value


def _find_torch() -> str:
    """Where torch would be imported from, without importing it; empty if it is not installed."""
    try:
        spec = importlib.util.find_spec("torch")
    except ValueError:  # something in sys.modules that calls itself torch and was never imported
        return ""
    return spec.origin or "" if spec else ""


def _find_version(torch: str) -> str:
    """What it is called by the file that torch.__version__ comes from."""
    found = re.search(r"""__version__ = ['"](.+?)['"]""", read_text(Path(torch).with_name("version.py")))
    return found[1] if found else "unknown"


def _make_key(torch: str) -> str:
    """Stands for everything that the answer depends on: torch, the environment, the system and its devices."""
    folder = Path("/dev")
    surroundings = [
        sys.executable,
        torch,
        read_text(Path(torch).with_name("version.py")),  # has the versions of CUDA and HIP as well
        Path(torch).stat().st_mtime_ns if Path(torch).exists() else 0,
        {name: os.environ.get(name) for name in _VARIABLES},
        platform.release(),
        SYSTEM.identify_boot() or int(psutil.boot_time()) // 60,  # it wavers
        SYSTEM.identify_driver(),
        sorted(str(node) for pattern in _NODES for node in folder.glob(pattern)),
    ]
    return hashlib.sha256(json.dumps(surroundings).encode()).hexdigest()


def _open_cache() -> Cache:
    return Cache("devices.json", _MOST_ANSWERS)


def _load(key: str) -> Devices | None:
    """An earlier run's answer, without what may have changed since."""
    try:
        devices = build(Devices, _open_cache().load(key))
    except ValueError:  # none yet, or one of another version
        return None
    present = [replace(d, free=d.memory if d.kind == "mps" else 0, busy="") for d in devices.present]
    return replace(devices, present=tuple(present))


class NoAnswer(Exception):
    """A process that was to ask a driver has not answered. Says why, in a line."""


def interrogate(whom: str, module: str, timeout: float, environment: Mapping[str, str] | None = None) -> Any:
    """What a module's `main`, run in a process of its own, says as JSON. Raises NoAnswer, ValueError for what is no
    JSON. whom: in messages. environment: in place of this process's own."""
    try:
        with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
            return _run(whom, module, timeout, environment, (answer, words))
    except OSError as error:
        raise NoAnswer(f"no process can be started to ask {whom}: {error.strerror}") from error


def _run(
    whom: str, module: str, timeout: float, environment: Mapping[str, str] | None, files: tuple[IO[bytes], IO[bytes]]
) -> Any:
    """files: for what the process writes to stdout and stderr; a pipe could be held open by what it starts."""
    code = f"import sys; sys.path.append(sys.argv[1]); from {module} import main; main()"
    python = SYSTEM.find_python()
    command = [python.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(timeout + 10)]
    answer, words = files
    surroundings = {**(os.environ if environment is None else environment), **python.environment}
    asking = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=answer, stderr=words, env=surroundings)
    try:
        status = asking.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{whom} gave no answer within {timeout:g} s") from error
    finally:
        asking.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a broken driver can keep it in the kernel for ever
            asking.wait(1)
    answer.seek(0)
    words.seek(0)
    if status != 0:
        said = _make_line(words.read().decode(errors="replace"))
        raise NoAnswer(f"the process that asked {whom} {describe_exit(status)}{': ' * bool(said)}{said}")
    return json.loads(answer.read())


def _ask(timeout: float) -> Devices:
    try:
        return build(Devices, interrogate("torch", "prefork.platform_matrix.devices", timeout))
    except NoAnswer as error:
        return Devices(error=str(error))
    except ValueError as error:
        return Devices(error=_make_line(f"torch gave an answer that makes no sense: {error}"))


def _make_line(text: str) -> str:
    """The first line, without what cannot be printed."""
    line = (text.strip().splitlines() or [""])[0]
    return "".join(character for character in line if character.isprintable())


def _leave_out_advice(text: str) -> str:
    """What torch warns of, without what it says of remedies and of its own source: that fills half a screen.

    >>> _leave_out_advice("The driver is too old (found 11040). Please update it from https://x (Triggered at y:1.)")
    'The driver is too old (found 11040)'
    """
    return re.split(r" (?=Please |Alternatively|\(Triggered internally)", text)[0].rstrip(". ")


def _look() -> Devices:
    """In the process that asks. Raises what torch raises."""
    import torch

    built = []
    if torch.version.hip or torch.version.cuda:
        built.append("rocm" if torch.version.hip else "cuda")
    if torch.backends.mps.is_built():
        built.append("mps")
    names = os.environ.get("CUDA_VISIBLE_DEVICES") if built[:1] == ["cuda"] else None
    limited = "" if names is None else f"CUDA_VISIBLE_DEVICES={reprlib.repr(names)}"
    devices = Devices(str(torch.__version__), tuple(built), limited=limited)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count and warned and built[:1] in (["cuda"], ["rocm"]):  # as of a driver too old; of none it says nothing
        return replace(devices, error=_leave_out_advice(_make_line(str(warned[0].message))))
    if count and built[:1] == ["cuda"]:
        devices = replace(devices, architectures=tuple(torch.cuda.get_arch_list()))
    present = [_describe_gpu(torch, index, built[0]) for index in range(count)]
    if torch.backends.mps.is_available():
        memory = min(torch.mps.recommended_max_memory(), psutil.virtual_memory().total)
        present.append(Device("mps", f"Apple GPU ({platform.machine()})", memory, memory))
    return replace(devices, present=tuple(present))


def _describe_gpu(torch: Any, index: int, kind: str) -> Device:
    found = torch.cuda.get_device_properties(index)
    try:
        free, busy = torch.cuda.mem_get_info(index)[0], ""
    except RuntimeError as error:  # another process has it for itself alone
        free, busy = 0, _make_line(str(error))
    capability = f"{found.major}.{found.minor}" if kind == "cuda" else found.gcnArchName.partition(":")[0]
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    name = names[index] if index < len(names) else ""
    mig = "MIG" in found.name.split() or name.startswith("MIG-")
    uuid = str(getattr(found, "uuid", ""))
    visible = name if name.startswith("MIG-") or not uuid else ""
    memory = found.total_memory
    return Device(kind, found.name, memory, min(free, memory), capability, uuid, mig, busy=busy, visible=visible)


def _is_metal_loaded() -> bool:
    """Metal loads the GPU's driver into the process that uses it first."""
    return any(driver in image for image in SYSTEM.list_libraries() for driver in _METAL_DRIVERS)
