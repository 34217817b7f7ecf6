"""Tensors that go from one process to another through memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prefork.work.exchange import pack, unpack


def count_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_tensors_come_out_as_they_went_in() -> None:
    tensors = {
        "samples": torch.arange(7, dtype=torch.float32)[::2],
        "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "none": torch.zeros(3, 0, dtype=torch.int64),
        "one": torch.tensor(42),
    }
    found = unpack(*pack(tensors))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("tensors", [{}, {"none": torch.zeros(0)}])
def test_nothing_at_all_can_be_sent(tensors: dict[str, torch.Tensor]) -> None:
    assert list(unpack(*pack(tensors))) == list(tensors)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_no_descriptor_is_left_once_the_tensors_are_gone() -> None:
    before = count_open()
    for _ in range(20):
        unpack(*pack({"samples": torch.ones(100)}))
    assert count_open() == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_no_descriptor_is_left_by_what_cannot_be_packed() -> None:
    before = count_open()
    sparse = torch.eye(3).to_sparse()
    for _ in range(3):
        with pytest.raises((RuntimeError, NotImplementedError)):
            pack({"samples": torch.ones(3), "sparse": sparse})
    assert count_open() == before


def test_what_was_sent_twice_is_one_memory() -> None:
    fd, layout = pack({"samples": torch.ones(4)})
    first, second = unpack(os.dup(fd), layout), unpack(fd, layout)
    assert torch.equal(first["samples"], second["samples"])
