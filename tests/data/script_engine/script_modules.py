"""Models of torch alone, as they are made, changed, compiled and exported."""

from __future__ import annotations

import copy
import functools
import io
import tempfile
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from script_kinds import Made, kind
from torch import nn
from torch.nn.utils import parametrizations, prune


def _perceptron(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), *more, nn.Linear(16, 4)).eval()


def _input(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, torch.Size(shape or (3, 8)).numel()).reshape(shape or (3, 8))


def _run(model: Any) -> Any:
    return model(_input())


def _run_sequence(model: Any) -> Any:
    return model(_input(2, 5, 8))[0]


def _quiet(function: Any, *arguments: Any, **options: Any) -> Any:
    """What torch has deprecated, and users still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


class Composed(nn.Module):
    """Holds all that a module may, and not only modules and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.ParameterDict({"a": nn.Parameter(torch.randn(8)), "b": nn.Parameter(torch.randn(8))})
        self.rows = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(2)])
        self.loose = {"scale": [torch.randn(8)], ("a", "tuple"): (torch.randn(8),)}
        self.lock = threading.Lock()
        self.parent = weakref.ref(self)
        self.register_buffer("volatile", torch.randn(8), persistent=False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        with self.lock:
            for one in (*self.table.values(), *self.rows, self.loose["scale"][0], self.volatile):
                value = value * one + self.loose["a", "tuple"][0]
        assert self.parent() is self
        return value


class Drawing(nn.Module):
    """Has a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.generator = torch.Generator()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        self.generator.manual_seed(7)
        drawn: torch.Tensor = self.linear(value) + torch.rand(8, generator=self.generator)
        return drawn


@kind("TorchScript, scripted")
def make_scripted() -> Made:
    return _quiet(torch.jit.script, _perceptron()), _run


@kind("TorchScript, traced")
def make_traced() -> Made:
    return _quiet(torch.jit.trace, _perceptron(), _input()), _run


@kind("TorchScript, frozen")
def make_frozen() -> Made:
    return _quiet(torch.jit.freeze, _quiet(torch.jit.script, _perceptron())), _run


@kind("TorchScript, loaded from a file")
def make_loaded_script() -> Made:
    file = io.BytesIO()
    _quiet(torch.jit.save, _quiet(torch.jit.script, _perceptron()), file)
    file.seek(0)
    return _quiet(torch.jit.load, file), _run


@kind("dynamic int8")
def make_dynamic() -> Made:
    return _quiet(torch.ao.quantization.quantize_dynamic, _perceptron(), {nn.Linear}), _run


@kind("dynamic int8, LSTM")
def make_dynamic_lstm() -> Made:
    model = nn.LSTM(8, 8, batch_first=True).eval()
    return _quiet(torch.ao.quantization.quantize_dynamic, nn.Sequential(model), {nn.LSTM}), _run_sequence


@kind("static int8")
def make_static() -> Made:
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), nn.Linear(8, 4), nn.ReLU(), quantization.DeQuantStub()).eval()
    model.qconfig = _quiet(quantization.get_default_qconfig, "x86")
    prepared = _quiet(quantization.prepare, model)
    prepared(_input())
    return _quiet(quantization.convert, prepared), _run


def _make_compiled(warm: bool) -> Made:
    model = torch.compile(_perceptron())
    if warm:
        with torch.no_grad():
            model(_input())
    return model, _run


kind("torch.compile, cold", alone=True)(functools.partial(_make_compiled, False))
kind("torch.compile, warm", alone=True)(functools.partial(_make_compiled, True))


@kind("torch.export")
def make_exported() -> Made:
    return torch.export.export(_perceptron(), (_input(),)).module(), _run


@kind("torch.export, loaded from a file")
def make_loaded_export() -> Made:
    file = io.BytesIO()
    torch.export.save(torch.export.export(_perceptron(), (_input(),)), file)
    file.seek(0)
    return torch.export.load(file).module(), _run


@kind("torch.fx")
def make_fx() -> Made:
    return torch.fx.symbolic_trace(_perceptron()), _run


@kind("LSTM")
def make_lstm() -> Made:
    return nn.LSTM(8, 8, num_layers=2, batch_first=True).eval(), _run_sequence


@kind("GRU, both ways")
def make_gru() -> Made:
    return nn.GRU(8, 8, batch_first=True, bidirectional=True).eval(), _run_sequence


@kind("LSTM cell, projected")
def make_projected() -> Made:
    return nn.LSTM(8, 8, batch_first=True, proj_size=4).eval(), _run_sequence


@kind("weight_norm")
def make_weight_norm() -> Made:
    return parametrizations.weight_norm(nn.Linear(8, 4)).eval(), _run


@kind("weight_norm, the old one")
def make_old_weight_norm() -> Made:
    return _quiet(nn.utils.weight_norm, nn.Linear(8, 4)).eval(), _run


@kind("spectral_norm")
def make_spectral_norm() -> Made:
    return parametrizations.spectral_norm(nn.Linear(8, 4)).eval(), _run


@kind("orthogonal")
def make_orthogonal() -> Made:
    return parametrizations.orthogonal(nn.Linear(8, 4)).eval(), _run


@kind("pruned")
def make_pruned() -> Made:
    model = nn.Linear(8, 4)
    prune.l1_unstructured(model, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return model.eval(), _run


@kind("bfloat16")
def make_bfloat16() -> Made:
    return _perceptron().bfloat16(), lambda model: model(_input().bfloat16())


@kind("float16")
def make_float16() -> Made:
    return _perceptron().half(), lambda model: model(_input().half())


@kind("float64")
def make_float64() -> Made:
    return _perceptron().double(), lambda model: model(_input().double())


@kind("inference_mode")
def make_in_inference_mode() -> Made:
    with torch.inference_mode():
        return _perceptron(nn.BatchNorm1d(16)), _run


@kind("BatchNorm in eval")
def make_batch_norm() -> Made:
    return _perceptron(nn.BatchNorm1d(16)), _run


@kind("BatchNorm in training", alone=True)
@kind("BatchNorm in training, private")
def make_batch_norm_in_training() -> Made:
    """Its statistics become other ones with each call, and do not change what is computed."""
    return {"in training": _perceptron(nn.BatchNorm1d(16)).train()}, lambda model: _run(model["in training"])


@kind("a step of training", alone=True)
@kind("a step of training, private")
def make_training() -> Made:
    model = _perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def run(made: Any) -> Any:
        model, optimizer = made["trained"]
        with torch.enable_grad():
            model(_input()).sum().backward()
        optimizer.step()
        return model(_input())

    return {"trained": (model, optimizer)}, run


@kind("convolutions, channels last")
def make_convolutions() -> Made:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3)).eval()
    model = model.to(memory_format=torch.channels_last)
    return model, lambda model: model(_input(1, 3, 8, 8).contiguous(memory_format=torch.channels_last))


@kind("TransformerEncoder, fast path")
def make_encoder() -> Made:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval(), lambda model: model(_input(2, 5, 8))


@kind("EmbeddingBag")
def make_embedding_bag() -> Made:
    return nn.EmbeddingBag(20, 8, mode="max").eval(), lambda model: model(torch.tensor([[1, 2], [3, 19]]))


@kind("parameters and tensors in containers")
def make_composed() -> Made:
    return Composed().eval(), _run


@kind("a lazy module")
def make_lazy() -> Made:
    model = nn.Sequential(nn.LazyLinear(4))
    model(_input())
    return model.eval(), _run


@kind("torchaudio")
def make_spectrogram() -> Made:
    import torchaudio

    model = torchaudio.transforms.MelSpectrogram(16000, n_fft=64, n_mels=8)
    return model.eval(), lambda model: model(_input(1, 400))


@kind("hooks")
def make_hooked() -> Made:
    model, scale = _perceptron(), torch.randn(4)
    model.register_forward_hook(lambda module, inputs, output: output * scale)
    return model, _run


@kind("a closure")
def make_closure() -> Made:
    weight, bias = torch.randn(8, 4), torch.randn(4)
    return lambda value: value @ weight + bias, _run


@kind("functools.partial")
def make_partial() -> Made:
    return functools.partial(torch.nn.functional.linear, weight=torch.randn(4, 8), bias=torch.randn(4)), _run


@kind("an ensemble under vmap")
def make_ensemble() -> Made:
    base = _perceptron()
    state: Any = torch.func.stack_module_state([_perceptron() for _ in range(3)])

    def run(made: Any) -> Any:
        def call(parameters: Any, buffers: Any) -> Any:
            return torch.func.functional_call(made[0], (parameters, buffers), (_input(),))

        return torch.vmap(call)(*made[1])

    return (base, state), run


@kind("a deep copy and its original")
def make_copies() -> Made:
    model = _perceptron()
    other = copy.deepcopy(model)
    nn.init.zeros_(other[0].bias)  # type: ignore[arg-type]
    return [model, other], lambda models: [_run(one) for one in models]


@kind("its own generator")
def make_drawing() -> Made:
    return Drawing().eval(), _run


@kind("gradients")
def make_gradients() -> Made:
    """Of the input, and of the weights: they are made in the worker, and are its own."""
    model = _perceptron()

    def run(model: Any) -> Any:
        with torch.enable_grad():
            value = _input().requires_grad_()
            model(value).sum().backward()
        found = [value.grad, *(parameter.grad for parameter in model.parameters())]
        model.zero_grad()
        return found

    return model, run


@kind("a checkpoint that is mapped")
def make_mapped() -> Made:
    path = Path(tempfile.mkdtemp()) / "model.pt"
    torch.save(_perceptron().state_dict(), path)
    model = _perceptron()
    model.load_state_dict(torch.load(path, mmap=True), assign=True)
    path.unlink()
    path.parent.rmdir()
    return model, _run


@kind("shared memory of torch.multiprocessing")
def make_shared() -> Made:
    return _perceptron().share_memory(), _run
