"""What the forked children of `prefork check --device` do, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prefork.check.device_check import TOGETHER
from prefork.check.difference import Numbers, flatten
from prefork.check.messages import ChildRefused, ChildResult
from prefork.engines.base import Job, Segment
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.systems import SYSTEM
from prefork.weights.device_memory import DeviceError, WeightsChanged
from prefork.wire.channel import Channel
from prefork.wire.messages import ConnectServer
from prefork.work.comparison import encode
from prefork.work.inference import Refused, RemoteInference
from prefork.work.loaded import Loaded
from prefork.work.worker import settle

_WRITTEN = 65_536  # of the weights' bytes, in their middle

Infer = Callable[[Loaded], Any]


def live(parent: int, loaded: Loaded, threads: int, action: Callable[[Loaded], Any]) -> bytes:
    """A child's life: as a worker's begins, on its device if there is something for it. parent: the process that
    forks it."""
    SYSTEM.begin_child(parent)
    SYSTEM.restore_signals()
    try:
        return pickle.dumps(ChildResult(action(settle(loaded, threads))))
    except DeviceError as error:
        if error.refuses_ipc:
            return pickle.dumps(ChildRefused(str(error)))
        raise


def initialise(device: str, _: Loaded) -> None:
    """Makes a GPU visible and initialises CUDA."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    torch.cuda.init()  # type: ignore[no-untyped-call]


def infer_on_cpu(infer: Infer, loaded: Loaded) -> Numbers:
    """Once, in float32: a CPU takes minutes for what a GPU does in half precision."""
    for name, model in loaded.models.items():
        if name in loaded.engines and hasattr(model, "float"):  # a function of the user's may make half inputs
            model.float()
    return flatten(infer(loaded))


def infer_there(infer: Infer, loaded: Loaded) -> tuple[bytes, Numbers]:
    """Once: what is computed, in full and as numbers."""
    result = infer(loaded)
    return encode(result), flatten(result)


def infer_alone(infer: Infer, device: str, loaded: Loaded) -> tuple[bytes, Numbers]:
    """With weights of its own on the device."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read when CUDA is initialised, here for the first time
        models = {name: model.to("cuda") if hasattr(model, "to") else model for name, model in loaded.models.items()}
        find_kind("cuda").speed_up()
        loaded = replace(loaded, models=models, device="cuda", arena=None)
    return infer_there(infer, loaded)


def infer_on_signal(infer: Infer, ready: int, start: int, loaded: Loaded) -> str | None:
    """What was noticed; None if nothing was."""
    os.write(ready, b"!")
    os.read(start, 1)
    try:
        infer(loaded)
        assert loaded.guard is not None
        loaded.guard.check()  # after every batch the engine does this; a function of the user's does not
    except WeightsChanged as error:
        return str(error)
    return None


def write_to(loaded: Loaded) -> None:
    if loaded.guard is None:
        with Path(loaded.devices[0]).open("r+b") as file:
            file.seek(Path(loaded.devices[0]).stat().st_size // 2)
            file.write(bytes([255]) * _WRITTEN)
        return
    weights = loaded.guard.view.tensor
    weights[len(weights) // 2 :][:_WRITTEN] ^= 1
    torch.cuda.synchronize()


def ask(engine: str, link: int, loaded: Loaded) -> list[Numbers]:
    """What a server makes of the engine's example: once alone, then of as many as go into a batch."""
    here, _there = socket.socketpair()  # the supervisor's end, unused: no server is replaced here
    remote = RemoteInference(Channel(here), loaded)
    remote.take_order(ConnectServer({engine: 1 << 40}, TOGETHER), [os.dup(link)])
    remote.open(engine)
    example = loaded.engines[engine].example()
    assert example is not None
    job, segment = Job("example", Path("example")), Segment(0, 0.0, 2.0)
    answers: dict[int, Mapping[str, torch.Tensor]] = {}
    for numbers in (range(1), range(1, 1 + TOGETHER)):
        for number in numbers:
            remote.submit(number, job, segment, example)
        while remote.is_busy:
            for number, output in remote.collect():
                if isinstance(output, Refused):
                    raise pickle.loads(output.error)
                answers[number] = output
    return [flatten({engine: answers[number]}) for number in sorted(answers)]
