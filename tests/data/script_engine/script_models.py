"""Models as users make them, and what each computes: the same in a worker as where it was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class Reader(torch.nn.Module):
    """Reads a line of a file that it holds open, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.file = Path(__file__).open("rb")  # noqa: SIM115  as long as the model lives

    def read(self, line: int) -> bytes:
        self.file.seek(0)
        lines = [self.file.readline() for _ in range(line + 1)]
        return lines[-1]


def load_in_inference_mode() -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.inference_mode():
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).eval()


def load_exported() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval()
    module: torch.nn.Module = torch.export.export(model, (torch.ones(1, 4),)).module()
    return module


def load_reader() -> Reader:
    return Reader()


def compute(model: torch.nn.Module, value: float) -> list[float]:
    with torch.no_grad():
        result: list[float] = model(torch.full((1, 4), value)).flatten().tolist()
    return result


def read_often(model: Reader, line: int) -> tuple[int, set[bytes]]:
    """The process, and all that it has read of one line."""
    return os.getpid(), {model.read(line) for _ in range(500)}


LOADS: dict[str, Any] = {"inference mode": load_in_inference_mode, "export": load_exported}
