"""The tensors of a model's safetensors files, looked at before they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from prefork.engines.checkpoints.hub import shorten

_SCALE = "_scale"


class StoredTensors:
    """By name; a model that was saved without its output has no "model." before the names. One in int8 has
    a scale for each row beside it, as NAME_scale.

    refuse: raises for a reason, with the error behind it if there is one. shapes: of each tensor that is no such scale,
    as the files' headers say.
    """

    def __init__(self, files: Iterable[Path], refuse: Callable[..., NoReturn]) -> None:
        self._raise = refuse
        self._files: dict[str, tuple[Any, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        quantised: list[str] = []
        for path in files:
            try:
                file: Any = safe_open(path, framework="pt")
                for stored in file.keys():  # noqa: SIM118
                    name = stored.removeprefix("model.")
                    if name in self._files:
                        self._refuse(f"{name} is there twice, the second time in {path.name}")
                    self._files[name] = (file, stored)
                    part = file.get_slice(stored)
                    self.shapes[name] = tuple(part.get_shape())
                    if part.get_dtype() == "I8":
                        quantised.append(name)
            except (OSError, SafetensorError) as error:
                self._refuse(shorten(error), error)
        for name in quantised:
            self.shapes.pop(name + _SCALE, None)

    def read(self, name: str) -> torch.Tensor:
        """The tensor, of a floating type. Refuses what is of another type, or has no usable scales."""
        tensor = self._read(name)
        if tensor.is_floating_point():
            return tensor
        if tensor.dtype != torch.int8:
            self._refuse(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, and neither floating nor int8")
        scale = name + _SCALE
        if scale not in self._files:
            self._refuse(f"{name} is int8, and there is no {scale}")
        scales = self._read(scale)
        if scales.shape != tensor.shape[:1] or not bool((scales >= 0).all() & scales.isfinite().all()):
            self._refuse(f"{scale} is not a number of at least 0 for each row")
        return tensor * scales.view(-1, *[1] * (tensor.ndim - 1))

    def are_equal(self, name: str, other: str) -> bool:
        return self.shapes.get(name) == self.shapes.get(other) and torch.equal(self.read(name), self.read(other))

    def _read(self, name: str) -> torch.Tensor:
        file, stored = self._files[name]
        try:
            return file.get_tensor(stored)  # type: ignore[no-any-return]
        except (OSError, SafetensorError) as error:
            self._refuse(shorten(error), error)

    def _refuse(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        self._raise(f"its weights cannot be loaded ({reason})", cause)
