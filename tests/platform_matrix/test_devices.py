"""Devices: asked of real processes, of torch as it is installed and of packages that call themselves torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from prefork.platform_matrix import devices
from prefork.platform_matrix.devices import Device, Devices, ask_devices, initialised_drivers
from tests.prefork.command import find_children

CPU_ONLY = """
from types import SimpleNamespace as Name
__version__ = "9.9"
version = Name(cuda=None, hip=None)
cuda = Name(is_available=lambda: False)
backends = Name(mps=Name(is_built=lambda: False, is_available=lambda: False))
"""
TWO_GPUS = (
    CPU_ONLY
    + """
version.cuda = "13.0"
GPUS = [
    Name(name="NVIDIA H200", total_memory=150 << 30, major=9, minor=0, uuid="4b-1"),
    Name(name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", total_memory=5 << 30, major=8, minor=0, uuid="4b-2"),
]
cuda = Name(
    is_available=lambda: True,
    device_count=lambda: len(GPUS),
    get_arch_list=lambda: ["sm_80", "compute_90"],
    get_device_properties=GPUS.__getitem__,
    mem_get_info=lambda index: (1 << 30, GPUS[index].total_memory),
)
"""
)
ROCM = (
    TWO_GPUS
    + """
version.cuda, version.hip = None, "6.4"
del GPUS[1:]
GPUS[0].name, GPUS[0].gcnArchName = "AMD Instinct MI300X", "gfx942:sramecc+:xnack-"
"""
)
MPS = (
    CPU_ONLY
    + """
backends.mps.is_built = backends.mps.is_available = lambda: True
mps = Name(recommended_max_memory=lambda: 3 << 20)
"""
)
COUNTED = """
from pathlib import Path
with Path(__file__).with_name("imports").open("a") as file:
    file.write("x")
"""
Install = Callable[[str], Path]


_CRASHED = "crashed with status 0xc0000005" if sys.platform == "win32" else "killed by SIGSEGV"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a run that is the first of its user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_answers", {})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Makes a package torch of this source the one that is found, here and in processes that are started."""

    def write(source: str) -> Path:
        folder = tmp_path / "packages" / "torch"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(source)
        (folder / "version.py").write_text("__version__ = '9.9'\n")
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.setenv("PYTHONPATH", str(folder.parent))
        monkeypatch.syspath_prepend(str(folder.parent))
        return folder

    return write


def _begin_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_answers", {})


def _count_imports(torch: Path) -> int:
    return len((torch / "imports").read_text())


def test_the_torch_that_is_installed_answers_and_is_not_imported_here() -> None:
    code = (
        "import json, sys; from dataclasses import asdict\n"
        "from prefork.platform_matrix.devices import ask_devices\n"
        "print(json.dumps([asdict(ask_devices()), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    answer, imported = json.loads(done.stdout)
    assert (answer["torch"].partition("+")[0], answer["error"]) == (version("torch").partition("+")[0], "")
    assert not imported


def test_every_cuda_device_is_described_and_a_mig_instance_known_as_one(install: Install) -> None:
    install(TWO_GPUS)
    assert ask_devices() == Devices(
        "9.9",
        ("cuda",),
        (
            Device("cuda", "NVIDIA H200", 150 << 30, 1 << 30, "9.0", "4b-1"),
            Device("cuda", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5 << 30, 1 << 30, "8.0", "4b-2", mig=True),
        ),
        architectures=("sm_80", "compute_90"),
    )


def test_what_limits_the_gpus_is_told_and_names_those_that_torch_cannot_name(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TWO_GPUS + "del GPUS[0].uuid\nGPUS.append(Name(**vars(GPUS[1])))\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, MIG-5,7")
    found = ask_devices()
    assert [(device.visible, device.mig) for device in found.present] == [("3", False), ("MIG-5", True), ("", True)]
    assert found.limited == "CUDA_VISIBLE_DEVICES='3, MIG-5,7'"


def test_an_environment_that_hides_every_gpu_is_told(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(CPU_ONLY + "version.cuda = '13.0'\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ask_devices() == Devices("9.9", ("cuda",), limited="CUDA_VISIBLE_DEVICES=''")


def test_a_rocm_device_is_not_called_cuda(install: Install) -> None:
    install(ROCM)
    found = ask_devices()
    assert found.built == ("rocm",)
    assert found.present == (Device("rocm", "AMD Instinct MI300X", 150 << 30, 1 << 30, "gfx942", "4b-1"),)


def test_mps_has_the_memory_that_metal_recommends(install: Install) -> None:
    install(MPS)
    found = ask_devices()
    assert found.built == ("mps",)
    assert [(device.kind, device.memory, device.free) for device in found.present] == [("mps", 3 << 20, 3 << 20)]
    devices._answers.clear()  # a later run's, from disk
    assert ask_devices() == found


def test_a_gpu_that_another_process_has_for_itself_has_nothing_free(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TWO_GPUS + "def refuse(index): raise RuntimeError('busy or unavailable')\ncuda.mem_get_info = refuse\n")
    assert [(device.free, device.busy) for device in ask_devices().present] == [(0, "busy or unavailable")] * 2
    monkeypatch.setattr(devices, "_answers", {})
    assert [device.busy for device in ask_devices().present] == ["", ""], "that was then"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (
            "raise ImportError('libcudart.so.13: cannot open\\nmore')",
            "torch 9.9 cannot be imported: libcudart.so.13: cannot open; type: pip install --",
        ),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("import ctypes; ctypes.c_int.from_address(0).value", _CRASHED),  # os.kill would end it in order on Windows
        ("import os; os.write(2, b'abort: bad libc'); os._exit(3)", "exited with status 3: abort: bad libc"),
        ("import os; os._exit(0)", "an answer that makes no sense"),
        (CPU_ONLY + "version = None", "AttributeError"),
        (TWO_GPUS + "GPUS[0].total_memory = -1", "present[0].memory is -1, not from 1 to"),
        (
            CPU_ONLY + "import warnings\nversion.cuda = '13.0'\n"
            "cuda.is_available = lambda: warnings.warn("
            "'CUDA initialization: The NVIDIA driver is too old (found 11040). Please update your driver from the URL: "
            "http://x (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)')\n",
            "CUDA initialization: The NVIDIA driver is too old (found 11040)$",
        ),
    ],
    ids=["raises", "exits", "crashes", "aborts", "silent", "incomplete", "absurd", "driver too old"],
)
def test_what_goes_wrong_in_torch_is_told_and_not_kept_for_the_next_run(
    install: Install, tmp_path: Path, source: str, error: str
) -> None:
    install(source)
    found = ask_devices()
    assert error in f"{found.error}$"  # $: its end
    assert "\n" not in found.error
    assert (found.torch, found.present) == ("9.9", ())
    assert not (tmp_path / "cache").exists()
    assert ask_devices() is found, "kept for this run"


def test_a_torch_that_hangs_is_given_up_and_ended(install: Install) -> None:
    install("import signal\nsignal.pause()")
    assert ask_devices(timeout=0.5).error == "torch gave no answer within 0.5 s"
    assert not find_children(os.getpid())


def test_what_torch_prints_is_no_answer(install: Install) -> None:
    install(CPU_ONLY + "import os\nprint('{\"torch\": 1}', flush=True)\nos.write(1, b'garbage')\n")
    assert ask_devices() == Devices("9.9")


def test_without_torch_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert ask_devices() == Devices()


def test_torch_is_asked_once_and_again_when_anything_has_changed(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = install(COUNTED + TWO_GPUS)
    first = ask_devices()
    assert ask_devices() is first
    _begin_run(monkeypatch)
    later = ask_devices()
    assert _count_imports(torch) == 1
    assert [device.name for device in later.present] == [device.name for device in first.present]
    assert [device.free for device in later.present] == [0, 0], "what was free in another run is not known"
    ask_devices(refresh=True)
    assert _count_imports(torch) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    ask_devices()
    assert _count_imports(torch) == 3
    (torch / "version.py").write_text("__version__ = '10.0'\n")
    ask_devices()
    assert _count_imports(torch) == 4
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (torch / "version.py").write_text("__version__ = '9.9'\n")
    _begin_run(monkeypatch)
    ask_devices()
    assert _count_imports(torch) == 4, "an environment that comes back is known again"


@pytest.mark.parametrize("content", [b"", b'{"a', b"[]", b"\xff\x00", b"[" * 100_000], ids=range(5))
def test_a_broken_cache_is_replaced(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    torch = install(COUNTED + CPU_ONLY)
    file = tmp_path / "cache" / "prefork" / "devices.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert ask_devices() == Devices("9.9")
    _begin_run(monkeypatch)
    assert ask_devices() == Devices("9.9")
    assert _count_imports(torch) == 1


def test_an_answer_in_the_cache_that_is_absurd_is_not_believed(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(CPU_ONLY)
    ask_devices()
    file = tmp_path / "cache" / "prefork" / "devices.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: {"torch": 9}}))
    _begin_run(monkeypatch)
    assert ask_devices() == Devices("9.9")


def test_a_cache_that_cannot_be_written_does_no_harm(install: Install, tmp_path: Path) -> None:
    install(CPU_ONLY)
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert ask_devices() == Devices("9.9")


def test_the_cache_does_not_grow_for_ever(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(CPU_ONLY)
    ask_devices()
    file = tmp_path / "cache" / "prefork" / "devices.json"
    (entry,) = json.loads(file.read_text()).values()
    file.write_text(json.dumps({str(number): entry for number in range(16)}))
    ask_devices(refresh=True)
    known = list(json.loads(file.read_text()))
    assert known[:15] == [str(number) for number in range(1, 16)]
    assert len(known) == 16
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_nothing_is_initialised_in_a_process_that_has_asked(install: Install) -> None:
    install(TWO_GPUS)
    ask_devices()
    assert initialised_drivers() == ()


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is looked for on Linux only")
@pytest.mark.parametrize(("status", "found"), [(3, "()"), (0, "('cuda',)"), (100, "('cuda',)")])
def test_cuda_initialised_behind_the_back_of_torch_is_found(tmp_path: Path, status: int, found: str) -> None:
    """A library that answers as the driver does: 3 as long as nobody has initialised it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.999.1"
    source.write_text(f"int cuDeviceGetCount(int *count) {{ *count = 0; return {status}; }}")
    subprocess.run([compiler, "-shared", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    code = (
        "import ctypes, sys; from prefork.platform_matrix.devices import initialised_drivers\n"
        "print(initialised_drivers()); ctypes.CDLL(sys.argv[1]); print(initialised_drivers())"
    )
    done = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["()", found]


def test_processes_that_ask_at_once_share_the_cache(install: Install, tmp_path: Path) -> None:
    install(CPU_ONLY)
    code = "from prefork.platform_matrix.devices import ask_devices; print(ask_devices(refresh=True).torch)"
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": str(number)},
        )
        for number in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in asking] == ["9.9\n"] * 4
    answers = json.loads((tmp_path / "cache" / "prefork" / "devices.json").read_text())
    assert 1 <= len(answers) <= 4


@pytest.mark.parametrize("module", ["prefork.platform_matrix.devices", "prefork.platform_matrix.facts"])
def test_nothing_is_imported_that_windows_lacks(module: str) -> None:
    code = (
        "import sys, importlib; from tests.systems import become; become('win32')\n"
        "importlib.import_module(sys.argv[1])\n"
        "print({n for n in sys.modules if n == 'torch' or n.startswith('prefork.') and 'platform_matrix' not in n})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, module], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
