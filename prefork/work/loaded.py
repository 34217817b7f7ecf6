"""What was loaded: engines, models, where the weights are, and how to compute with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prefork.engines.base import ELEMENTS_PER_SECOND, Engine, HostEngine, Segment, Tensors
from prefork.engines.batching import Batcher, Batching
from prefork.memory.batch_room import BatchRoom
from prefork.platform_matrix.device_kinds import find_kind
from prefork.wire.exports import Export

if TYPE_CHECKING:
    from prefork.weights.arena import Arena
    from prefork.weights.device_memory import Guard


_USUAL_SECONDS = 20.0  # of a segment
_LONG_SECONDS = 30.0  # of one for which an engine estimates what batches take: most models hear no more at once


_WINDOW = 4  # batches that may wait


@dataclass(slots=True)
class BatchUse:
    """What a batch took of a device's memory. size: bytes that its engine estimates; taken: bytes, 0 if unknown.
    seconds: of audio that the engine's batches take from now on; None if as many as before."""

    size: float = 0.0
    taken: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded, and where its weights are.

    arena: None where weights cannot be shared. remote: the models are in another process. batch_memory: bytes of a GPU
    for the batches of one process; None on the CPU. exports: the weights in the memory of devices, for children to
    attach to. guard: of a child that has, says whether they are still what they were. fingerprints: of the
    engines, taken before anything was loaded. measured: by engine, what batches took in earlier runs, as BatchRoom has
    it; rooms: what this process has made of that. initializer: as of the specification. tensors: of what the user's
    function returned: name, shape and type.
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
    measured: Mapping[str, Sequence[tuple[float, int]]] = field(default_factory=dict)
    rooms: dict[str, BatchRoom] = field(default_factory=dict)
    initializer: bytes | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)

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
        elif (room := self.find_room(name)) is not None:
            batching, warnings = self.batching.resolve(room.num_elements, 1.0)[0], []
        elif engine.batch_seconds:
            most = max(round(engine.batch_seconds * ELEMENTS_PER_SECOND), self.batching.max_audio_len or 0)
            return replace(self.batching, max_num_elements=most, num_seqs_multiple_of=1), most, []
        else:
            return replace(self.batching, batch_size=1), 1, []
        if batching.batch_size is not None:
            return batching, batching.batch_size * round(_USUAL_SECONDS * ELEMENTS_PER_SECOND), warnings
        return batching, _WINDOW * (batching.max_num_elements or 1), warnings

    @property
    def batch_need(self) -> int:
        """Bytes of the device that the next batch may take, as far as batches were measured."""
        return max((room.most_taken for room in self.rooms.values()), default=0)

    def find_room(self, name: str) -> BatchRoom | None:
        """None where a device's memory does not say how large an engine's batches are."""
        chosen = self.batching.batch_size is not None or self.batching.max_num_elements is not None
        if chosen or self.batch_memory is None:
            return None
        if name not in self.rooms:
            engine, segment = self.engines[name], Segment(0, 0.0, _LONG_SECONDS)
            rate = engine.estimate_memory(segment) / engine.count_elements(segment)
            self.rooms[name] = BatchRoom(rate, self.batch_memory, self.measured.get(name, ()))
        return self.rooms[name]

    @contextmanager
    def measure_batch(self, name: str, batcher: Batcher[Any], num_elements: int) -> Iterator[BatchUse]:
        """What a batch takes of the device's memory while the block runs; the batches to come are made accordingly.
        num_elements: that it has, padded."""
        use, room, kind = BatchUse(), self.find_room(name), find_kind(self.device)
        before = kind.reset_peak(self.device) if room is not None else None
        yield use
        if room is None or before is None:
            return
        use.size, use.taken = room.measure(num_elements), max(1, kind.read_peak(self.device) - before)
        if room.add(num_elements, use.taken):
            batcher.resize(*self.choose_batching(name)[:2])
            use.seconds = self.list_batches()[name]

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
