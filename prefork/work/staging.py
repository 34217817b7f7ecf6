"""Staging: batches on their way to the device that computes, and results on their way back.

On a GPU with streams both go through page-locked memory and are copied while it computes; on the CPU there is nothing
to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from prefork.engines.base import Tensors
from prefork.platform_matrix.device_kinds import find_kind
from prefork.platform_matrix.failures import Failure
from prefork.wire.exceptions import describe_error


class Results(Protocol):
    def wait(self) -> Sequence[Tensors]:
        """What was computed, on the CPU. Raises what went wrong on the device."""


class Staging(Protocol):
    def send(self, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """The batch on the device."""

    def fetch(self, outputs: Sequence[Tensors]) -> Results: ...


def open_staging(device: str) -> Staging:
    """device: as torch names it."""
    if find_kind(device).has_streams:
        return StreamStage(device)
    return HostStage() if device == "cpu" else DeviceStage(device)


@dataclass(frozen=True, slots=True)
class _Done:
    outputs: Sequence[Tensors]

    def wait(self) -> Sequence[Tensors]:
        return self.outputs


class HostStage:
    """The CPU computes."""

    def send(self, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return batch

    def fetch(self, outputs: Sequence[Tensors]) -> Results:
        return _Done(outputs)


@dataclass(frozen=True, slots=True)
class _Copied:
    outputs: Sequence[Tensors]
    event: Any

    def wait(self) -> Sequence[Tensors]:
        self.event.synchronize()
        return self.outputs


class DeviceStage:
    """A GPU computes whose copies wait for it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def send(self, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return [{name: tensor.to(self._device) for name, tensor in tensors.items()} for tensors in batch]

    def fetch(self, outputs: Sequence[Tensors]) -> Results:
        return _Done([{name: tensor.cpu() for name, tensor in tensors.items()} for tensors in outputs])


class StreamStage:
    """A GPU with streams computes. Copies to it are made on a stream of their own, so that those of the next batch go
    on while this one is computed; torch's allocator for page-locked memory reuses what earlier batches had."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._copies: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def send(self, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            staged = [{name: self._upload(tensor) for name, tensor in tensors.items()} for tensors in batch]
        current.wait_stream(self._copies)
        for tensors in staged:
            for tensor in tensors.values():
                tensor.record_stream(current)
        return staged

    def _upload(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, outputs: Sequence[Tensors]) -> Results:
        fetched = [{name: self._download(tensor) for name, tensor in tensors.items()} for tensors in outputs]
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return _Copied(fetched, event)

    def _download(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "cpu":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


def judge(error: BaseException, device: str) -> Failure | None:
    """What an error says of the device, which is tried if that is not clear; None if it can be used as before."""
    return find_kind(device).judge(error, describe_error(error), device)
