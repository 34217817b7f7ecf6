"""What NVIDIA GPUs are doing right now, from CUDA's driver without torch: a quarter of a second, not four.

Asked in short-lived processes: each makes a context on every GPU, which is also how it finds out that it may not.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from prefork.platform_matrix.cuda import CUDADriver, CUDAError
from prefork.platform_matrix.devices import Device, Devices, NoAnswer, build, interrogate, prepare_answer

_MODES = {1: "exclusive", 2: "prohibited", 3: "exclusive"}  # CUcomputemode
_COMPUTE_MODE, _MAJOR, _MINOR, _MPS_ENABLED = 20, 75, 76, 133  # CUdevice_attribute
_UNAVAILABLE = 46  # CUDA_ERROR_DEVICE_UNAVAILABLE
_SECONDS = 30.0


def look_again(devices: Devices, asked: Sequence[str] = (), timeout: float = _SECONDS) -> Devices:
    """The devices with what their driver says now: free memory, compute mode, whether they can be used; never raises.

    asked: names that the user gave. MIG instances among them are looked for by name, because a process sees no more
    than one of them. What cannot be asked stays as it was.
    """
    known = [device for device in devices.present if device.kind == "cuda"]
    absent = [name for name in asked if name.startswith("MIG-") and _may_see(name) and not _find(name, known)]
    if "cuda" not in devices.built or not (known or absent):
        return devices
    everything = partial(_ask, timeout=timeout)
    with ThreadPoolExecutor() as pool:
        seen, *others = pool.map(everything, [None, *absent])
    found = [_merge(old, new) for old, new in zip(known, seen, strict=True)] if len(seen) == len(known) else known
    answers = zip(absent, others, strict=True)
    instances = [replace(device, mig=True, visible=name) for name, answer in answers for device in answer]
    rest = [device for device in devices.present if device.kind != "cuda"]
    return replace(devices, present=(*found, *instances, *rest))


def _may_see(name: str) -> bool:
    """Whether whoever started this process has left this instance to it."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names is None or name in [part.strip() for part in names.split(",")]


def _find(name: str, devices: Sequence[Device]) -> bool:
    return any(name in (device.visible, f"MIG-{device.uuid}") for device in devices)


def _merge(old: Device, new: Device) -> Device:
    """The driver's word, and torch's where that is all there is."""
    now = {name: getattr(new, name) for name in ("mode", "busy", "multi_process_service")}
    return replace(old, free=min(new.free, old.memory), uuid=new.uuid or old.uuid, **now)


def _ask(visible: str | None, timeout: float) -> list[Device]:
    """In CUDA's order; none if nobody can say. visible: for CUDA_VISIBLE_DEVICES, None for what it is."""
    environment = None if visible is None else {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    try:
        answer = interrogate("CUDA's driver", "prefork.platform_matrix.driver", timeout, environment)
        return [build(Device, content) for content in answer]
    except (NoAnswer, ValueError, TypeError):  # the models will find out, and say so
        return []


def main() -> None:
    """The process that asks the driver. Arguments and answer as those of devices.main."""
    answer = prepare_answer()
    try:
        found = read_devices(CUDADriver())
    except (CUDAError, AttributeError):  # no driver, or one that knows nothing of this
        found = []
    answer([asdict(device) for device in found])


def read_devices(driver: CUDADriver) -> list[Device]:
    """All that this process sees. Raises CUDAError."""
    driver.call("cuInit", 0)
    count = ctypes.c_int()
    driver.call("cuDeviceGetCount", ctypes.byref(count))
    return [_read_device(driver, ordinal) for ordinal in range(count.value)]


def _read_device(driver: CUDADriver, ordinal: int) -> Device:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.call("cuDeviceGet", ctypes.byref(handle), ordinal)
    driver.call("cuDeviceGetName", name, len(name), handle)
    driver.call("cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    mode, major, minor = (driver.read_attribute(which, handle) for which in (_COMPUTE_MODE, _MAJOR, _MINOR))
    free, busy = _measure_free(driver, handle)
    title = "".join(character for character in name.value.decode(errors="replace") if character.isprintable())
    return Device(
        "cuda", title, memory.value, min(free, memory.value), f"{major}.{minor}", _read_uuid(driver, handle),
        "MIG" in title.split(), _MODES.get(mode or 0, ""), busy,
        multi_process_service=is_served(driver, handle),
    )  # fmt: skip


def is_served(driver: CUDADriver, handle: ctypes.c_int) -> bool:
    """Whether contexts on a device are those of NVIDIA's Multi-Process Service (MPS): as the driver says since CUDA
    12.4; before, by the pipe of its daemon: docs.nvidia.com/deploy/mps, Environment Variables."""
    enabled = driver.read_attribute(_MPS_ENABLED, handle)
    if enabled is not None:
        return bool(enabled)
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps", "control").exists()


def _read_uuid(driver: CUDADriver, handle: ctypes.c_int) -> str:
    """Of a MIG instance, its own: that is what _v2 is for (since CUDA 11.4)."""
    octets = ctypes.create_string_buffer(16)
    try:
        driver.call("cuDeviceGetUuid_v2", octets, handle)
    except CUDAError:
        return ""
    return str(uuid.UUID(bytes=octets.raw))


def _measure_free(driver: CUDADriver, handle: ctypes.c_int) -> tuple[int, str]:
    """Bytes, and why the device cannot be used."""
    context, free, memory = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    try:
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        driver.call("cuCtxPushCurrent_v2", context)
        driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(memory))
        driver.call("cuCtxPopCurrent_v2", ctypes.byref(context))
        driver.call("cuDevicePrimaryCtxRelease_v2", handle)
    except CUDAError as error:
        return 0, "another process has it for itself" if error.code == _UNAVAILABLE else str(error)
    return free.value, ""
