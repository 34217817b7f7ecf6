"""The tensors of a model's safetensors files, looked at before they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from prefork.engines.checkpoints.hub import shorten

_SCALE = "_scale"
_ROWS = 4096  # read at a time


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

    def read(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor, some thousand rows at a time, of a floating type: an embedding is 80 MB and more, which nobody
        needs whole. Refuses what is of another type, or has no usable scales."""
        rows = self.shapes[name][0]
        for start in range(0, rows, _ROWS):
            part = self._read(name, start)
            if part.dtype == torch.int8:
                part = part * self._read_scales(name, start, len(part)).view(-1, *[1] * (part.ndim - 1))
            if not part.is_floating_point():
                self._refuse(f"{name} is {str(part.dtype).removeprefix('torch.')}, and neither floating nor int8")
            yield part

    def are_equal(self, name: str, other: str) -> bool:
        if self.shapes.get(name) != self.shapes.get(other):
            return False
        return all(torch.equal(*parts) for parts in zip(self.read(name), self.read(other), strict=True))

    def _read_scales(self, name: str, start: int, count: int) -> torch.Tensor:
        scale = name + _SCALE
        if scale not in self._files:
            self._refuse(f"{name} is int8, and there is no {scale}")
        file, stored = self._files[scale]
        fits = tuple(file.get_slice(stored).get_shape()) == self.shapes[name][:1]
        scales = self._read(scale, start) if fits else torch.zeros(0)
        if len(scales) != count or not bool((scales >= 0).all() & scales.isfinite().all()):
            self._refuse(f"{scale} is not a number of at least 0 for each row")
        return scales

    def _read(self, name: str, start: int) -> torch.Tensor:
        """Some rows of a tensor, from this one on."""
        file, stored = self._files[name]
        try:
            return file.get_slice(stored)[start : start + _ROWS]  # type: ignore[no-any-return]
        except (OSError, SafetensorError) as error:
            self._refuse(shorten(error), error)

    def _refuse(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        self._raise(f"its weights cannot be loaded ({reason})", cause)
