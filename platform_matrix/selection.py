"""Which GPUs compute: what the user named, or the one with the most memory free. Pure: asks nobody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prefork.platform_matrix.budget import measure_free
from prefork.platform_matrix.devices import Device, Devices

_SYNTAX = re.compile(
    r"cpu|mps|cuda|cuda:\d{1,4}|GPU-[0-9a-fA-F-]{4,}|MIG-[0-9a-fA-F-]{4,}|MIG-GPU-[\da-fA-F-]+/\d+/\d+"
)
_ALONE = ("cpu", "mps", "cuda")  # the last one is all of its kind
_HOW = "cpu, cuda for all GPUs, cuda:0,cuda:1 for some, or UUIDs as `nvidia-smi -L` shows them (GPU-..., MIG-...)"


@dataclass(frozen=True, slots=True)
class Selection:
    """NVIDIA GPUs to compute on. labels: as the user may call them. names: for CUDA_VISIBLE_DEVICES. refusal: why there
    are none, and what to do; empty if there are. note: why these; empty if there was no choice."""

    devices: tuple[Device, ...] = ()
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    note: str = ""
    refusal: str = ""


def parse_devices(text: str) -> tuple[str, ...]:
    """Names of devices from a list with commas. Raises ValueError with the rule and the value.

    >>> parse_devices("cuda:0, cuda:1")
    ('cuda:0', 'cuda:1')
    """
    names = tuple(name.strip() for name in text.split(","))
    names = tuple(name.lower() if name.lower().partition(":")[0] in _ALONE else name for name in names)
    names = tuple(f"cuda:{int(name[5:])}" if re.fullmatch(r"cuda:\d+", name) else name for name in names)
    for name in names:
        if not _SYNTAX.fullmatch(name):
            raise ValueError(f"devices are {_HOW}, not {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"device {name} is named twice in {text!r}; name each once")
        if name in _ALONE and len(names) > 1:
            raise ValueError(f"device {name} cannot go together with others in {text!r}; devices are {_HOW}")
    return names


def select(devices: Devices, asked: Sequence[str] = ()) -> Selection:
    """Of NVIDIA's GPUs. asked: as parse_devices gives them, `cpu` and `mps` excluded; nothing for the best one."""
    known = {f"cuda:{number}": d for number, d in enumerate(d for d in devices.present if d.kind == "cuda")}
    what = f"--devices {','.join(asked)}"
    if not known:
        reason, remedy = explain_absence(devices)
        return Selection(refusal=f"{what}: {reason}; {remedy}")
    if not asked:
        return _select_best(known, devices)
    labels = list(known) if asked[0] == "cuda" else []
    for name in asked if not labels else ():
        found = [label for label, device in known.items() if name == label or _is(device, name)]
        if len(found) != 1:
            reason = f"stands for {' and '.join(found)}" if found else "there is no such GPU"
            which = f"{name}: " if len(asked) > 1 else ""
            return Selection(refusal=f"{what}: {which}{reason}; {_list(known, devices.limited)}")
        if found[0] in labels:
            return Selection(refusal=f"{what}: {name} is {found[0]}, which is named twice; name each once")
        labels += found
    for label in labels:
        if obstacle := find_obstacle(known[label], devices):
            return Selection(refusal=f"{what}: {_describe(label, known[label])} cannot be used: {obstacle}")
    return _make(known, labels)


def find_obstacle(device: Device, devices: Devices) -> str:
    """Why a GPU cannot be used now, and what to do; empty if it can."""
    if not has_code(device.capability, devices.architectures):
        return (
            f"torch {devices.torch} has no code for its compute capability {device.capability}, only for "
            f"{', '.join(devices.architectures)}; take another GPU, install a torch that has, or take --devices cpu"
        )
    if device.failed:
        return f"it has failed in this run ({device.failed}); take another, or --devices cpu"
    if device.mode == "prohibited":
        return "its compute mode is `prohibited`; take another, or have `nvidia-smi -c DEFAULT` change it"
    if not device.busy:
        return ""
    mode = " and its compute mode is `exclusive process`" if device.is_exclusive else ""
    return f"{device.busy}{mode}; take another, or end what uses it (`nvidia-smi` shows that)"


def has_code(capability: str, architectures: Sequence[str]) -> bool:
    """Whether a GPU of NVIDIA's can run what was compiled for these architectures; True if nobody knows.

    Machine code (sm_XY) runs from X.Y on within X, PTX (compute_XY) from X.Y on everywhere; with the suffix f within X,
    with a on X.Y alone: docs.nvidia.com/cuda/cuda-programming-guide, Compute Capabilities.

    >>> has_code("7.0", ["sm_75", "sm_80"]), has_code("8.9", ["sm_75", "sm_80"])
    (False, True)
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name) for name in architectures]
    found = re.fullmatch(r"(\d+)\.(\d+)", capability)
    if found is None or not any(known):
        return True
    own = int(found[1]), int(found[2])
    return any(_runs(own, *match.groups()) for match in known if match is not None)


def _runs(own: tuple[int, int], form: str, major: str, minor: str, suffix: str) -> bool:
    compiled = int(major), int(minor)
    if suffix == "a":
        return own == compiled
    return own >= compiled and (own[0] == compiled[0] or (form == "compute" and not suffix))


def explain_absence(devices: Devices) -> tuple[str, str]:
    """Why there is no GPU of NVIDIA's to compute on, and what to do."""
    cpu = "or take --devices cpu"
    if not devices.torch:
        return "torch is not installed, and nothing else is asked for GPUs", f"install it, {cpu}"
    if devices.error:
        remedy = "update NVIDIA's driver" if "driver" in devices.error else "mend that (`nvidia-smi` may say more)"
        return f"the GPUs could not be asked: {devices.error.rstrip('. ')}", f"{remedy}, {cpu}"
    if "rocm" in devices.built:
        return "the GPUs of this torch are AMD's, and nobody could try those with this version", "take --devices cpu"
    if "cuda" not in devices.built:
        return f"torch {devices.torch} is built without CUDA", f"install one that is built with it, {cpu}"
    if devices.limited:
        return f"{devices.limited} hides all GPUs", f"unset it or name a GPU in it, {cpu}"
    return "torch finds no GPU of NVIDIA's here", f"see whether `nvidia-smi -L` shows one, {cpu}"


def _select_best(known: dict[str, Device], devices: Devices) -> Selection:
    obstacles = {label: find_obstacle(device, devices) for label, device in known.items()}
    usable = [label for label, obstacle in obstacles.items() if not obstacle]
    if not usable:
        reasons = [f"{_describe(label, known[label])}: {obstacle}" for label, obstacle in obstacles.items()]
        return Selection(refusal=f"no GPU can be used: {', '.join(reasons)}")
    best = max(usable, key=lambda label: measure_free(known[label]))  # the first of several
    note = f"{best} has the most free memory of {len(known)} GPUs; --devices cuda takes all of them"
    return _make(known, [best], note if len(known) > 1 else "")


def _make(known: dict[str, Device], labels: Sequence[str], note: str = "") -> Selection:
    names = tuple(name_device(known[label], label.partition(":")[2]) for label in labels)
    return Selection(tuple(known[label] for label in labels), tuple(labels), names, note)


def describe_sharing(selection: Selection) -> list[str]:
    """What is special about who shares these GPUs."""
    texts = ["each MIG instance has a process of its own that owns the model: CUDA IPC does not reach across them"]
    if not any(device.mig for device in selection.devices):
        texts.clear()
    for label, device in zip(selection.labels, selection.devices, strict=True):
        if device.multi_process_service:
            texts.append(f"{label} is shared by NVIDIA's MPS: several processes compute on it in every compute mode")
    return texts


def name_device(device: Device, index: str) -> str:
    """What CUDA_VISIBLE_DEVICES must be for a process to see this GPU alone. index: among those seen here."""
    if device.visible or not device.uuid:
        return device.visible or index
    bare = re.sub(r"^(GPU|MIG)-", "", device.uuid)
    return f"{'MIG' if device.mig else 'GPU'}-{bare}"


def _is(device: Device, name: str) -> bool:
    """By as much of the UUID as the user gave."""
    return "-" in name and any(
        full.lower().startswith(name.lower()) for full in (name_device(device, ""), device.visible)
    )


def _list(known: dict[str, Device], limited: str) -> str:
    there = ", ".join(_describe(label, device) for label, device in known.items())
    return f"there {'is' if len(known) == 1 else 'are'} {there}{f', and {limited} hides others' if limited else ''}"


def _describe(label: str, device: Device) -> str:
    return f"{label} ({device.name})"
