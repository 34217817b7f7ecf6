"""Dynamic quantisation: linear layers whose weights are int8, in plain tensors that are shared like any others.

torch.ao.quantization.quantize_dynamic keeps its weights in C++ objects, which can be neither moved nor made read-only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT = 127
_EXACT_LIMIT = 64  # see find_weight_limit
_BLOCK = 512  # rows: what is made of as many stays in the processor's cache; 1150 at once take up to twice as long
_PART = 4096  # rows quantised at a time: those of an embedding are 80 MB and more, and would be there three times
_SMALLEST = 1e-12  # a scale is never 0


class QuantizedLinear(nn.Module):
    """An nn.Linear: int8 weights with a scale for each output; on the CPU int8 activations with a scale for each row.

    A row's result does not depend on the rows beside it: its scale is its own, and sums of integers are exact.

    rows: (outputs, inputs) int8. scales: (outputs,) float32. bias: (outputs,) float32 or None.

    The product is torch._int_mm, which calls oneDNN. On one thread of an AMD EPYC with AVX-512 VNNI, torch 2.14, ms:

    | rows | inputs x outputs | int8 | float32 | bfloat16 | torch._weight_int8pack_mm |
    | --- | --- | --- | --- | --- | --- |
    | 1500 | 384 x 1536 | 4.0 | 18.6 | | |
    | 1 | 384 x 1536 | 0.010 | 0.054 | 0.064 | 0.48 |
    | 1 | 384 x 51864 | 0.6 | 7.8 | 4.7 | 32 |

    torch.ops.onednn.qlinear_pointwise wants weights that it has packed itself, in memory of its own, and crashes on
    others.
    """

    rows: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, weight: Iterable[Tensor] | None = None) -> None:
        """weight: the layer's, some rows after the others; by default what it holds, which may be on the meta device:
        there nothing is computed, because symbolic shapes would do it, whose libraries take a second to import."""
        super().__init__()
        own = linear.weight.detach()
        device = torch.device("cpu") if weight is not None else own.device
        self.register_buffer("rows", torch.empty(own.shape, dtype=torch.int8, device=device))
        self.register_buffer("scales", torch.empty(len(own), device=device))
        self.bias = linear.bias
        if device.type == "meta":
            return
        begin = 0
        for part in weight if weight is not None else torch.split(own, _PART):
            end = begin + len(part)
            self.rows[begin:end], self.scales[begin:end] = _quantize(part.float())
            begin = end

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs) float32, made anew each time: for models that multiply with a layer's weight themselves."""
        return self.rows * self.scales[:, None]

    def select(self, outputs: Tensor) -> Tensor:
        """Rows of the weight, (..., inputs) float32: the vectors of an embedding. outputs: (...) indices."""
        return self.rows[outputs] * self.scales[outputs, None]

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., inputs) float32 to (..., outputs) float32."""
        if not hidden.is_cpu or not _multiplies_int8():
            return F.linear(hidden, self.weight, self.bias)
        rows = hidden.flatten(0, -2)
        output = torch.empty(len(rows), len(self.rows))
        for start in range(0, len(rows), _BLOCK):
            self._multiply(rows[start : start + _BLOCK], output[start : start + _BLOCK])
        return output.view(*hidden.shape[:-1], -1)

    def _multiply(self, rows: Tensor, output: Tensor) -> None:
        """rows: (n, inputs). output: (n, outputs), written to."""
        scales = _measure_rows(rows).div_(LIMIT)
        product = torch._int_mm((rows / scales).round_().to(torch.int8), self.rows.t())
        torch.mul(product, self.scales, out=output)
        if self.bias is None:
            output.mul_(scales)
        else:
            torch.addcmul(self.bias, output, scales, out=output)


def quantize_linears(model: nn.Module) -> None:
    """Replaces each nn.Linear in the model, one at a time, so that its old weight is freed before the next.

    Subclasses stay as they are: what they do with their weight is not known.
    """
    for parent in [module for module in model.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, child in parent.named_children() if type(child) is nn.Linear]:
            setattr(parent, name, QuantizedLinear(getattr(parent, name)))


def _quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, inputs) to int8, and its scales, (outputs,)."""
    scales = _measure_rows(weight).float() / find_weight_limit()
    return (weight / scales).round_().to(torch.int8), scales.squeeze(1)


def _measure_rows(values: Tensor) -> Tensor:
    """(rows, columns) to the largest absolute value of each, (rows, 1)."""
    largest: Tensor = values.abs().amax(1, keepdim=True).clamp_min_(_SMALLEST)
    return largest


@functools.cache
def _multiplies_int8() -> bool:
    """Whether oneDNN multiplies int8 with this processor's vector instructions: what torch does without it takes 1000
    times as long (3.3 s instead of 3.5 ms). Tried on x86 only; elsewhere weights are int8 in memory alone."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it: without them it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


@functools.cache
def find_weight_limit() -> int:
    """The largest integer that a weight may be.

    Without VNNI, oneDNN adds pairs of products in 16 bits, and says nothing when they overflow: with 8 bits, sums were
    off by up to 23 % (ONEDNN_MAX_CPU_ISA=AVX2, random numbers); with 7, 255 * 64 * 2 fits. Of whisper-tiny.en's words,
    7 bits get 2 % more wrong, and 8 bits none. So the largest sums that there can be are tried.
    """
    if not _multiplies_int8():
        return LIMIT
    for count in (1, 64):
        for sign in (1, -1):
            rows = torch.full((count, 64), LIMIT, dtype=torch.int8)
            product = torch._int_mm(rows, torch.full((64, 64), sign * LIMIT, dtype=torch.int8))
            if not bool((product == sign * LIMIT * LIMIT * 64).all()):
                return _EXACT_LIMIT
    return LIMIT
