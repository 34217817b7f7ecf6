"""What was loaded: engines, models, where the weights are, and how to compute with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefork.engines.base import ELEMENTS_PER_SECOND, Engine, HostEngine, Tensors
from prefork.engines.batching import Batcher, Batching
from prefork.platform_matrix.device_kinds import find_kind
from prefork.wire.messages import Export

if TYPE_CHECKING:
    from prefork.weights.arena import Arena
    from prefork.weights.device_memory import Guard


_USUAL_SECONDS = 20.0  # of a segment


_WINDOW = 4  # batches that may wait


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded, and where its weights are.

    arena: None where weights cannot be shared. remote: the models are in another process. batch_memory: bytes of a GPU
    for the batches of one process; None on the CPU. exports: the weights in the memory of devices, for children to
    attach to. guard: of a child that has, says whether they are still what they were. fingerprints: of the
    engines, taken before anything was loaded.
    """

    engines: Mapping[str, Engine]
    models: Mapping[str, Any]
    arena: Arena | None
    device: str
    checkpoints: bool = False
    batching: Batching = Batching()  # noqa: RUF009  frozen, so one may serve all
    remote: bool = False
    batch_memory: int | None = None
    devices: tuple[str, ...] = ()
    exports: tuple[Export, ...] = ()
    guard: Guard | None = None
    fingerprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def attach(self, place: int) -> Loaded:
        """In a forked child: the same with its weights on a device, where their owner has put them, if there is one.

        place: of the device among those of the plan. Raises DeviceError, WeightsChanged, LoadError.
        """
        if not self.exports:
            return self
        from prefork.weights.device_memory import attach, make_memory

        assert self.arena is not None
        export, device = self.exports[place], "cpu"
        if export.kind == "cuda":
            # Read when CUDA is initialised, which here is for the first time.
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices[place]
            device = "cuda"
        guard = attach(self.arena, self.models, make_memory(export.kind), export)
        find_kind(device).speed_up()
        return replace(self, device=device, arena=None, guard=guard, exports=())

    def compute(self, name: str, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """An engine's `infer`, where its weights are."""
        import torch

        with torch.inference_mode():
            return self.engines[name].infer(self.models[name], batch)

    def infer(self, name: str, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        """The same; what goes in and comes out is on the CPU. Raises WeightsChanged if they were not what they are to
        be: then nothing comes out."""
        if self.device == "cpu":
            outputs = self.compute(name, batch)
        else:
            there = [{key: tensor.to(self.device) for key, tensor in tensors.items()} for tensors in batch]
            outputs = [{key: t.cpu() for key, t in tensors.items()} for tensors in self.compute(name, there)]
        if self.guard is not None:
            self.guard.check()
        return outputs

    def choose_batching(self, name: str) -> tuple[Batching, int, list[str]]:
        """How an engine's segments are batched on this device, how many elements of them may wait, and warnings.

        On the CPU a batch is no faster than its segments one after the other, unless the engine has `batch_seconds`.
        """
        engine = self.engines[name]
        if self.batching.batch_size is not None or self.batching.max_num_elements is not None:
            batching, warnings = self.batching.resolve(0)
        elif self.batch_memory is not None:
            batching, warnings = self.batching.resolve(self.batch_memory)[0], []
        elif engine.batch_seconds:
            most = max(round(engine.batch_seconds * ELEMENTS_PER_SECOND), self.batching.max_audio_len or 0)
            return replace(self.batching, max_num_elements=most, num_seqs_multiple_of=1), most, []
        else:
            return replace(self.batching, batch_size=1), 1, []
        if batching.batch_size is not None:
            return batching, batching.batch_size * round(_USUAL_SECONDS * ELEMENTS_PER_SECOND), warnings
        return batching, _WINDOW * (batching.max_num_elements or 1), warnings

    def make_batcher(self, name: str) -> Batcher[Any]:
        batching, window, _ = self.choose_batching(name)
        return Batcher(batching, window)

    def list_batches(self) -> dict[str, float]:
        """By engine: seconds of audio that it takes in one go, 0 for one segment after the other."""
        if self.remote:
            return {}
        batches = {}
        for name, engine in self.engines.items():
            batching, window, _ = self.choose_batching(name)
            most = 0 if batching.batch_size == 1 else batching.max_num_elements or window
            batches[name] = 0.0 if isinstance(engine, HostEngine) else most / ELEMENTS_PER_SECOND
        return batches

    def list_warnings(self) -> list[str]:
        """Of what the user wants of batches."""
        if self.remote:
            return []
        return list(dict.fromkeys(text for name in self.engines for text in self.choose_batching(name)[2]))

    def try_examples(self, longest: bool = False) -> dict[str, Tensors]:
        """What each engine makes of its example; those without one are left out, and all if the models are not here."""
        if self.remote:
            return {}
        chosen = {name: engine.longest_example if longest else engine.example for name, engine in self.engines.items()}
        examples = {name: make() for name, make in chosen.items()}
        return {name: self.infer(name, [example])[0] for name, example in examples.items() if example is not None}

    def verify_examples(self) -> dict[str, Tensors]:
        """The same, once each engine has found it to be what its model makes of it. Raises LoadError."""
        outputs = self.try_examples()
        for name, output in outputs.items():
            self.engines[name].verify(output)
        return outputs

    def count_weights(self) -> int:
        """Bytes."""
        if self.arena is not None:
            return self.arena.size
        from prefork.weights.arena import measure_weights

        return measure_weights(self.models)
