"""Models that write to their own buffers as they compute, and what they are called."""

from __future__ import annotations

import os
import time

import torch


class Decoder(torch.nn.Module):
    """Keeps what it has seen in a buffer, counts in another, and normalises as in training."""

    kv_cache: torch.Tensor
    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("kv_cache", torch.zeros(8, 4))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.linear(value))
        self.kv_cache[self.steps % 8] = hidden[0]
        self.steps += 1
        return self.kv_cache.sum(0)


class Holder:
    """The model is in a list, and beside it is a cache that is in no module."""

    def __init__(self, shared: bool) -> None:
        self.models = [Decoder().train()]
        self.past = {"keys": torch.zeros(3)}
        if shared:
            self.past["keys"].untyped_storage().share_memory_()


PRIVATE = ("*.kv_cache", "*.steps", "*.norm.running_*", "*.num_batches_tracked")


def load_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().train()


def load_holder(shared: bool = False) -> Holder:
    torch.manual_seed(0)
    return Holder(shared)


def step(model: Decoder, seconds: float = 0.0) -> tuple[int, int, list[float]]:
    """The process, how often it has computed, and the result."""
    time.sleep(seconds)
    with torch.no_grad():
        found = model(torch.arange(8.0).reshape(2, 4))
    return os.getpid(), int(model.steps), found.tolist()


def count(holder: Holder, seconds: float) -> tuple[int, float]:
    time.sleep(seconds)
    holder.past["keys"].add_(1)
    return os.getpid(), float(holder.past["keys"][0])


def write_weight(model: Decoder) -> None:
    model.linear.weight.data.zero_()
