"""Where the memory goes, of the machine and of its GPUs: the arithmetic behind the number of workers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefork.platform_matrix.devices import Device
from prefork.platform_matrix.memory import format_gigabytes, keep_back
from prefork.platform_matrix.rows import Strategy

GIGABYTE = 1e9
# Bytes, as long as nobody knows better:
LIBRARIES = 750_000_000  # torch, torchaudio, transformers and stanza once imported: 714 MB were measured
PRIVATE = 150_000_000  # of a worker's own while it computes: 57-140 MB were measured
HOST = 100_000_000  # of a worker's own that has no model: what it decodes, sends and gets back
CONTEXT = 500_000_000  # of a GPU, for each process that computes on it: CUDA's own, and its libraries' kernels
HOPPER_CONTEXT = 700_000_000  # from compute capability 9.0 on; others report 426 to 616 MiB without the libraries
LEAST_BATCH = 600_000_000  # of a GPU: 30 s of audio, at the 20 MB a second that a wav2vec2 takes in float32


@dataclass(frozen=True, slots=True)
class Needs:
    """What is known of the bytes that the work takes; None as long as nobody knows. See matrix.Request."""

    weights: int | None = None
    private: int | None = None
    host: int | None = None
    libraries: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """Where the machine's memory goes, in bytes. once: needed however many workers there are; each: for one more;
    least: without which not even one can do anything."""

    available: int
    reserve: int
    once: int
    each: int
    least: int
    terms: tuple[str, str]  # what `once` and `each` are made of

    @property
    def room(self) -> int:
        return max(0, self.available - self.reserve)

    @property
    def cap(self) -> int:
        """How many workers fit."""
        return max(0, self.room - self.once) // self.each

    def describe(self, workers: int) -> str:
        need = self.once + workers * self.each
        parts = [term for term in (self.terms[0], f"{workers} x ({self.terms[1]})") if term]
        return (
            f"{' + '.join(parts)} = {format_gigabytes(need)} of {format_gigabytes(self.room)} "
            f"({format_gigabytes(self.available)} available less a reserve of {format_gigabytes(self.reserve)})"
        )


@dataclass(frozen=True, slots=True)
class VideoBudget:
    """Where the memory of one GPU goes, in bytes: of the one with the least room, if there are several.

    devices: over which the workers are spread evenly. once: weights and context of the process that owns the model,
    if there is one; each: of one worker, its smallest batch included; 0 for workers that see no GPU.
    """

    label: str
    devices: int
    free: int
    reserve: int
    weights: int
    once: int
    each: int
    memory: int  # of the GPU, whoever uses it
    known: bool  # whether `free` was asked for in this run; else it is what the GPU has, less a tenth
    context: int = CONTEXT  # of each process that computes there

    @property
    def room(self) -> int:
        return max(0, self.free - self.reserve)

    @property
    def is_taken(self) -> bool:
        """Whether what is missing is there, and others have it."""
        return self.known and self.memory - self.memory // 5 >= self.least > self.room

    @property
    def least(self) -> int:
        """Without which nothing can be computed."""
        return self.once + (self.each or LEAST_BATCH)

    @property
    def cap(self) -> int | None:
        """How many workers fit on all devices together; None if it does not depend on them."""
        return max(0, self.room - self.once) // self.each * self.devices if self.each else None

    def count_local(self, workers: int) -> int:
        """Processes that compute on one device."""
        return math.ceil(workers / self.devices) if self.each else 1

    def count_contexts(self, workers: int) -> int:
        return bool(self.once) + (self.count_local(workers) if self.each else 0)

    def count_copies(self, workers: int) -> int:
        """Of the weights."""
        return 1 if self.once else self.count_local(workers)

    def measure_batches(self, workers: int) -> int:
        """Bytes left for the batches of all processes of one device."""
        return self.room - self.count_copies(workers) * self.weights - self.count_contexts(workers) * self.context

    def share_batches(self, workers: int) -> int:
        """Bytes for the batches of one process."""
        return max(LEAST_BATCH, self.measure_batches(workers) // self.count_local(workers))

    def describe(self, workers: int) -> str:
        copies, contexts = self.count_copies(workers), self.count_contexts(workers)
        batches = max(self.measure_batches(workers), self.count_local(workers) * LEAST_BATCH)
        need = copies * self.weights + contexts * self.context + batches
        parts = (
            f"{_times(copies)}weights {format_gigabytes(self.weights)}",
            f"{contexts} context{'s' * (contexts != 1)} {format_gigabytes(contexts * self.context)}",
            f"batches {format_gigabytes(batches)}",
        )
        free = f"{format_gigabytes(self.free)} {'free' if self.known else 'in all less a tenth'}"
        return (
            f"{' + '.join(parts)} = {format_gigabytes(need)} of {format_gigabytes(self.room)} on {self.label} "
            f"({free}, less a reserve of {format_gigabytes(self.reserve)})"
        )


def plan_memory(
    available: int, limit: int, needs: Needs, strategy: Strategy, device: str, shared: bool, servers: int = 1
) -> Budget:
    """The arithmetic of workers and the machine's memory. available, limit: bytes, as of the facts and the request.
    servers: how many there are with strategy server, one for each GPU."""
    weights = needs.weights or 0
    libraries = LIBRARIES if needs.libraries is None else needs.libraries
    own = PRIVATE if needs.private is None else needs.private
    least = min(own, PRIVATE)
    room = available, keep_back(limit)
    names = (
        f"weights {format_gigabytes(weights)}",
        f"libraries {format_gigabytes(libraries)}",
        f"{format_gigabytes(own)} own",
    )
    if strategy is Strategy.SERVER:
        host = HOST if needs.host is None else needs.host
        batch = own if device == "cpu" else 0  # elsewhere it is on the GPU, and the weights only pass through here
        server = f"server ({names[1]} + {names[0]}{f' + a batch {format_gigabytes(own)}' * (batch > 0)})"
        terms = f"{names[1]} + {_times(servers)}{server}", f"{format_gigabytes(host)} own"
        return Budget(*room, libraries + servers * (libraries + weights + batch), host, min(host, HOST), terms)
    if strategy is Strategy.SPAWN and device == "cuda":
        once = f"{names[0]} on their way to a GPU"  # of one worker at a time
        return Budget(*room, weights, libraries + own, libraries + least, (once, f"{names[1]} + {names[2]}"))
    if strategy is Strategy.SPAWN and not shared:
        rest = weights + libraries
        return Budget(*room, 0, rest + own, rest + least, ("", " + ".join(names)))
    if strategy is Strategy.SPAWN:
        once = f"{names[0]} once, and once more while a worker starts"
        return Budget(*room, 2 * weights, libraries + own, libraries + least, (once, f"{names[1]} + {names[2]}"))
    return Budget(*room, libraries + weights, own, least, (f"{names[0]} + {names[1]}", names[2]))


def plan_video(
    devices: Sequence[Device], labels: Sequence[str], weights: int | None, strategy: Strategy
) -> VideoBudget:
    """The arithmetic of workers and the GPUs' memory. labels: what the devices are called."""
    free, label, device = min(
        (measure_free(device), label, device) for label, device in zip(labels, devices, strict=True)
    )
    size = weights or 0
    context = measure_context(device)
    once = 0 if strategy is Strategy.SPAWN else size + context
    each = {Strategy.SERVER: 0, Strategy.SPAWN: size + context + LEAST_BATCH}.get(strategy, context + LEAST_BATCH)
    known = device.free > 0
    return VideoBudget(label, len(devices), free, free // 10, size, once, each, device.memory, known, context)


def measure_context(device: Device) -> int:
    """Bytes that each process takes of it before it computes anything, as planned."""
    major = device.capability.partition(".")[0]
    return HOPPER_CONTEXT if major.isdigit() and int(major) >= 9 else CONTEXT


def measure_free(device: Device) -> int:
    """Bytes; nine tenths of a device's memory if nobody has asked it in this run."""
    return device.free or device.memory - device.memory // 10


def _times(number: int) -> str:
    return f"{number} x " if number > 1 else ""
