"""The matrix: what may be shared how on which machine, why, and what that means for one run. Pure: asks nobody."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from prefork.platform_matrix.budget import (
    HOST,
    LIBRARIES,
    PRIVATE,
    Budget,
    Needs,
    VideoBudget,
    plan_memory,
    plan_video,
)
from prefork.platform_matrix.devices import Device
from prefork.platform_matrix.facts import Facts
from prefork.platform_matrix.rows import ROWS, WITHOUT_IPC, Reason, Row, Strategy, Verdict, find_row
from prefork.platform_matrix.selection import Selection, describe_sharing, explain_absence, select

__all__ = [
    "HOST",
    "LIBRARIES",
    "PRIVATE",
    "ROWS",
    "Budget",
    "Plan",
    "Reason",
    "Request",
    "Row",
    "Strategy",
    "Verdict",
    "VideoBudget",
    "decide",
    "find_row",
]
_EVERYTHING = ("cuda", "rocm", "mps")


@dataclass(frozen=True, slots=True)
class Request:
    """What the user wants of this machine, and what has been found out about it since.

    engines: none if it is a function that loads the model. devices: as selection.parse_devices gives them; none for
    what there is. cannot: engines that do not compute on a GPU, each with the reason.
    memory_limit: bytes that all processes together may take, None for what there is. copies: a copy of the weights for
    each worker even where they could be shared, to compare. weights: bytes, None as long as nobody has looked. private:
    bytes of a worker's own at its peak beside the libraries, or of the server's; host: of a worker's without a model;
    libraries: bytes of these; None as long as nobody knows.
    unsafe: why the process that has loaded the models must not fork; no_ipc: why CUDA IPC does not work here; empty as
    long as it has not shown that. broken: why the models cannot be loaded at all; empty as long as nothing is known.
    """

    engines: tuple[str, ...] = ()
    strategy: Strategy | None = None
    workers: int | None = None
    threads: int | None = None
    force_cpu: bool = False
    no_mps: bool = False
    memory_limit: int | None = None
    copies: bool = False
    weights: int | None = None
    private: int | None = None
    libraries: int | None = None
    unsafe: str = ""
    devices: tuple[str, ...] = ()
    cannot: tuple[tuple[str, str], ...] = ()
    host: int | None = None
    no_ipc: str = ""
    broken: str = ""

    @property
    def needs(self) -> Needs:
        return Needs(self.weights, self.private, self.host, self.libraries)


@dataclass(frozen=True, slots=True)
class Plan:
    """The verdict for one run, with its numbers and every reason.

    refusal: why nothing can run and what to do about it; empty if it can. shared: one copy of the weights for all, or
    for all on one GPU. hidden: the kinds of device that the models do not get to see; unused: of the reasons, those why
    devices are hidden that are there. capped: why there are fewer workers than were wanted, with the arithmetic; empty
    if there are not. devices: what goes into CUDA_VISIBLE_DEVICES for each GPU that computes, labels: what the user
    calls it, chosen: what is known of it; none on the CPU, and for MPS, of which there is one. video: where the GPUs'
    memory goes; None on the CPU. batch_memory: bytes of it for the batches of one process that computes; None on the
    CPU and for MPS, where batches are no larger than the user or the engine says. fallback: what the user wanted, or
    could expect, and does not get, with the reason and what is done instead; empty if nothing.
    """

    facts: Facts
    request: Request
    row: Row
    device: str
    strategy: Strategy
    shared: bool
    workers: int
    threads: int
    budget: Budget
    hidden: tuple[str, ...]
    unused: tuple[Reason, ...] = ()
    capped: str = ""
    reasons: tuple[Reason, ...] = ()
    refusal: str = ""
    devices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    chosen: tuple[Device, ...] = ()
    video: VideoBudget | None = None
    batch_memory: int | None = None
    fallback: str = ""

    @property
    def servers(self) -> int:
        """Processes that have the model for the workers, one for each device."""
        return max(1, len(self.devices)) if self.strategy is Strategy.SERVER else 0

    @property
    def server_threads(self) -> int:
        """Of each server: it computes, while the workers mostly wait for it."""
        return self.request.threads or self.facts.cores

    @property
    def allowance(self) -> int | None:
        """Bytes of the GPU that each process may take at most; None where torch keeps to what there is by itself."""
        return self.video.room // self.workers if self.video is not None and self.device == "mps" else None

    @property
    def fast_dtype(self) -> str:
        """What weights are held in if nobody has said it. A run that a GPU has begun goes on in what it began with."""
        has_int8 = self.device == "cpu" and self.facts.instructions and not self.facts.devices.has_failed
        return "int8" if has_int8 else "float32"

    @property
    def wants_gpus(self) -> bool:
        """Whether it matters what NVIDIA's GPUs are up to right now."""
        asked = self.request.devices
        return self.device == "cuda" or (bool(asked) and asked[0] not in ("cpu", "mps"))

    def learn(
        self,
        weights: int | None = None,
        private: int | None = None,
        libraries: int | None = None,
        unsafe: str = "",
        no_ipc: str = "",
        host: int | None = None,
    ) -> Plan:
        """What to do now that more is known: see Request. What is None or empty is as it was."""
        sizes = {"weights": weights, "private": private, "libraries": libraries, "host": host}
        news = {**sizes, "unsafe": unsafe or None, "no_ipc": no_ipc or None}
        known = {name: value for name, value in news.items() if value is not None}
        return decide(self.facts, replace(self.request, **known))  # type: ignore[arg-type]


@dataclass(slots=True)
class _Reasons:
    """What has been found out on the way to a plan."""

    found: list[Reason] = field(default_factory=list)
    refusal: str = ""
    fallback: str = ""

    def add(self, text: str, source: str = "") -> None:
        self.found.append(Reason(text, source))

    def refuse(self, text: str) -> None:
        self.refusal = self.refusal or text

    def fall_back(self, text: str) -> None:
        """To something else than what was asked for, or could be expected."""
        self.fallback = self.fallback or text
        self.add(text)


def decide(facts: Facts, request: Request) -> Plan:
    """What to do on a machine with these facts. Never raises for a machine: a refusal is part of the plan."""
    reasons = _Reasons(refusal=request.broken)
    hidden = _hide(facts, request)
    row, selection = _choose_row(facts, request, hidden, reasons)
    unused = tuple(reasons.found)
    strategy = _choose_strategy(facts, request, row, selection, reasons)
    on_cpu = row.device == "cpu"
    shared = strategy is not Strategy.SPAWN or (on_cpu and not request.copies)
    budget = _plan_memory(facts, request, strategy, row.device, shared, max(1, len(selection.devices)))
    video = None
    if selection.devices:
        video = plan_video(selection.devices, selection.labels, request.weights, strategy)
    elif row.device == "mps":
        gpu = next(device for device in facts.devices.present if device.kind == "mps")
        video = plan_video([gpu], [gpu.name], request.weights, strategy)
    workers, capped = _count_workers(facts, request, strategy, selection, budget, video, reasons)
    return Plan(
        facts=facts,
        request=request,
        row=row,
        device=row.device,
        strategy=strategy,
        shared=shared,
        workers=workers,
        threads=request.threads or max(1, facts.cores // workers),
        budget=budget,
        hidden=tuple(kind for kind in _EVERYTHING if on_cpu or kind in hidden),
        unused=unused,
        capped=capped,
        reasons=tuple(reasons.found),
        refusal=reasons.refusal,
        devices=selection.names,
        labels=selection.labels,
        chosen=selection.devices,
        video=video,
        batch_memory=video.share_batches(workers) if video and selection.devices else None,
        fallback=reasons.fallback,
    )


def _hide(facts: Facts, request: Request) -> tuple[str, ...]:
    """The kinds of device that the user does not want to be seen."""
    if request.force_cpu or facts.devices.error or request.devices == ("cpu",):
        return _EVERYTHING
    return ("mps",) if request.no_mps else ()


def _choose_row(facts: Facts, request: Request, hidden: Sequence[str], reasons: _Reasons) -> tuple[Row, Selection]:
    """The row of the device that was asked for, or of the first one that is there, may be seen, and that the engines
    can use; and which of the GPUs."""
    _explain_error(facts, reasons)
    if request.force_cpu or request.devices == ("cpu",):
        option = "--force-cpu" if request.force_cpu else "--devices cpu"
        reasons.add(f"all GPUs are hidden from the models ({option})")
    if request.devices and request.devices != ("cpu",):
        return _choose_asked(facts, request, hidden, reasons)
    for kind in dict.fromkeys(device.kind for device in facts.devices.present):
        row = find_row(facts, kind)
        if kind in hidden:
            if kind == "mps" and request.no_mps and not request.force_cpu:
                reasons.add(f"{kind} is hidden from the models (--no-mps)")
        elif obstacle := _find_obstacle(request, row):
            reasons.add(f"{kind} is hidden from the models: {obstacle}")
        elif kind != "cuda":
            return row, Selection()
        else:
            selection = select(facts.devices)
            if not selection.refusal:
                if selection.note:
                    reasons.add(selection.note)
                return row, selection
            reasons.fall_back(f"{selection.refusal}; going on on the CPU")
    return find_row(facts, "cpu"), Selection()


def _explain_error(facts: Facts, reasons: _Reasons) -> None:
    """Where devices could not be asked. If torch could be imported, it would have computed on them."""
    text = f"the devices could not be asked ({facts.devices.error})"
    if facts.devices.error and facts.devices.built:
        reasons.fall_back(f"{text}: {explain_absence(facts.devices)[1]}; going on on the CPU")
    elif facts.devices.error:
        reasons.add(f"{text}; all GPUs are hidden from the models")


def _find_obstacle(request: Request, row: Row) -> str:
    """Why a device is not used that nobody has asked for; empty if it is."""
    names = ", ".join(request.engines) or "whatever is loaded"
    if row.engines is not None and not (request.engines and set(request.engines) <= set(row.engines)):
        return f"{names} computes on the CPU in this version"
    if row.device == "cuda" and not request.engines:
        return f"{names} computes on the CPU unless --devices says otherwise"
    if row.device != "cpu" and request.cannot:
        return " and ".join(f"{name} computes on the CPU alone ({why})" for name, why in request.cannot)
    return ""


def _choose_asked(facts: Facts, request: Request, hidden: Sequence[str], reasons: _Reasons) -> tuple[Row, Selection]:
    """The same for devices that were named: these or none."""
    what = f"--devices {','.join(request.devices)}"
    kind = "mps" if request.devices == ("mps",) else "cuda"
    row = find_row(facts, kind)
    here = any(device.kind == kind for device in facts.devices.present)
    selection = select(facts.devices, request.devices) if kind == "cuda" else Selection()
    if request.force_cpu or (kind == "mps" and request.no_mps):
        option = "--force-cpu" if request.force_cpu else "--no-mps"
        reasons.refuse(f"{what} and {option} cannot go together: the one wants what the other hides; give one of them")
    elif selection.refusal:
        reasons.refuse(selection.refusal)
    elif not here or kind in hidden:
        reasons.refuse(f"{what}: torch finds no Apple GPU here; take --devices cpu")
    elif row.engines is not None:
        reasons.refuse(f"{what}: nobody could try {row.title} with this version; take --devices cpu")
    elif request.cannot:
        engine, why = request.cannot[0]
        reasons.refuse(f"{what}: {engine} computes on the CPU alone ({why}); take --devices cpu")
    else:
        return row, selection
    return find_row(facts, "cpu"), Selection()


def _choose_strategy(facts: Facts, request: Request, row: Row, selection: Selection, reasons: _Reasons) -> Strategy:
    if request.unsafe:
        reasons.add(f"cannot fork: {request.unsafe}")
    obstacles = _find_obstacles(facts, request, row, selection)
    offered = [strategy for strategy in row.strategies if strategy not in obstacles]
    for claim in row.claims:
        reasons.add(claim.text, claim.source)
    for constraint in row.constraints:
        reasons.add(constraint)
    for text in describe_sharing(selection):
        reasons.add(text)
    chosen = request.strategy or offered[0]
    if chosen in offered:
        return chosen
    if chosen is Strategy.IPC and row.device == "cuda" and Strategy.SERVER in offered:
        reasons.fall_back(f"cannot share the weights by CUDA IPC here: {obstacles[chosen]}; going on with server")
        return Strategy.SERVER
    other = " or --force-cpu" if row.device == "mps" else ""
    verb = chosen if chosen in (Strategy.FORK, Strategy.SPAWN) else f"use strategy {chosen}"
    what = "cannot fork" if request.unsafe and chosen.forks else f"cannot {verb} on {row.title}"
    reasons.refuse(f"{what}: {obstacles[chosen]}; take --strategy {offered[0]}{other}")
    return chosen


def _find_obstacles(facts: Facts, request: Request, row: Row, selection: Selection) -> dict[Strategy, str]:
    """What cannot be done here, with the reason."""
    found: dict[Strategy, str] = {}
    if request.unsafe or "fork" not in facts.start_methods:
        why = request.unsafe or "Python cannot fork here"
        found |= {strategy: why for strategy in Strategy if strategy.forks}
    if not request.engines:
        found.setdefault(Strategy.SERVER, "a function computes where the model is, in the worker; this needs an engine")
    if row.device != "cuda":
        hidden = request.force_cpu or request.devices == ("cpu",)
        seen = hidden or any(device.kind == "cuda" for device in facts.devices.present)
        why = "all are hidden from the models here" if seen else explain_absence(facts.devices)[0]
        found[Strategy.IPC] = f"CUDA IPC shares the memory of NVIDIA GPUs, and {why}"
    elif Strategy.IPC in row.strategies:
        exclusive = [label for label, d in zip(selection.labels, selection.devices, strict=True) if d.is_exclusive]
        mode = f"only one process may compute on {exclusive[0]} (compute mode `exclusive process`)" if exclusive else ""
        if why := request.no_ipc or mode:
            found.setdefault(Strategy.IPC, why)
    for strategy in Strategy:
        if strategy not in row.strategies:
            found.setdefault(strategy, _explain_row(row, strategy))
    return found


def _explain_row(row: Row, strategy: Strategy) -> str:
    """Why it does not have this strategy."""
    if strategy is Strategy.SERVER and Strategy.FORK in row.strategies:
        return "nobody could try it there"
    without = [claim for claim in row.claims if claim in WITHOUT_IPC] if strategy is Strategy.IPC else []
    return (without or row.claims)[0].text


def _count_workers(
    facts: Facts,
    request: Request,
    strategy: Strategy,
    selection: Selection,
    budget: Budget,
    video: VideoBudget | None,
    reasons: _Reasons,
) -> tuple[int, str]:
    """How many, and why no more; empty if there are as many as were wanted."""
    wanted = workers = request.workers or facts.cores
    capped = ""
    if request.weights is None:
        reasons.add("how large the weights are shows when the model is looked at; the arithmetic is without them")
    if request.workers is None:
        reasons.add(f"one worker for each of the {facts.cores} cores that may be used")
    if budget.cap < wanted:
        workers = max(1, budget.cap)
        capped = f"{wanted} workers would take {budget.describe(wanted)}; {budget.cap} fit"
    if budget.cap < 1 and budget.room < budget.once + budget.least:
        remedy = "take a smaller model" + (", or raise --memory-limit" if request.memory_limit else " or make room")
        reasons.refuse(f"not enough memory for one worker: {budget.describe(1)}; {remedy}")
    if video is not None and video.room < video.least:
        taken = f"{video.label} is busy" if video.is_taken else "not enough memory on a GPU"
        remedy = (
            "end what uses it (`nvidia-smi` shows that), take another" if video.is_taken else "take a smaller model"
        )
        reasons.refuse(f"{taken}: {video.describe(video.devices)}; {remedy}, --dtype bfloat16 or --devices cpu")
    elif video is not None and video.cap is not None and video.cap < workers:
        workers = max(1, video.cap)
        capped = f"{wanted} workers would take {video.describe(wanted)}; {video.cap} fit"
    exclusive = any(device.is_exclusive for device in selection.devices)
    if strategy is Strategy.SPAWN and exclusive and workers > len(selection.devices):
        workers = len(selection.devices)
        capped = (
            f"only one process may compute on a GPU in compute mode `exclusive process`: {workers} instead of {wanted}"
        )
    if capped:
        reasons.add(capped)
    return max(1, workers), capped


def _plan_memory(facts: Facts, request: Request, strategy: Strategy, device: str, shared: bool, servers: int) -> Budget:
    most = math.inf if request.memory_limit is None else request.memory_limit
    available, limit = int(min(facts.available, most)), int(min(facts.memory, most))
    return plan_memory(available, limit, request.needs, strategy, device, shared, servers)
