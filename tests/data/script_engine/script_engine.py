"""An engine that another package brings: each line of its input is a segment, and says what is to happen in it.

`say WORDS` is doubled by the model; `take N` and `keep N` take N MB, for a while or for good; the other verbs do, once
if a marker file is given, what happens to real engines.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from prefork.engines.base import Engine, HostEngine, InputError, Job, LoadError, Segment, Tensors
from prefork.engines.text.document import Document, Timing, Utterance, Word


class ScriptEngine(Engine):
    name = "script"

    def __init__(self, factor: float = 2.0, fail: str = "") -> None:
        self.factor = factor
        self.fail = fail

    def load(self) -> Any:
        if self.fail == "load":
            raise LoadError("script: it was told not to load; tell it otherwise")
        if self.fail == "threads":
            torch.set_num_threads(2)
        return {"scale": torch.nn.Parameter(torch.full((1000,), self.factor))}

    def estimate_memory(self, segment: Segment) -> int:
        """That it takes something, not how much."""
        return 1_000_000 if "take" in str(segment.content) else 0

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        lines = (job.source.read_text() if job.source.is_file() else document.source).splitlines()
        if not lines:
            raise InputError(f"{job.id}: is empty; write something")
        return [Segment(index, float(index), float(index + 1), line) for index, line in enumerate(lines)]

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        verb, _, rest = segment.content.partition(" ")
        if verb in ("take", "keep"):
            _allocate(int(rest), keep=verb == "keep")
        elif verb == "print":
            print(rest)
        elif verb != "say":
            _act(verb, rest)
        return {"length": torch.tensor([float(len(rest))])}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        if any(tensors["length"] == 1234 for tensors in batch):
            model["scale"].data.add_(1)
        return [{"length": tensors["length"] * model["scale"][0]} for tensors in batch]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        return segment.content, float(output["length"]), float(torch.rand(1)), os.getpid()

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        utterances = tuple(
            Utterance(text, (Word("said", 0.0, length, draw, Timing.ALIGNED),), start=segment.start, end=segment.end)
            for segment, (text, length, draw, _) in zip(segments, pieces, strict=True)
        )
        return Document(utterances, seconds=job.seconds)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"engine": self.name, "factor": self.factor}


class Relay(Engine):
    """A stage that has a model of its own: adds to each utterance's text what its weights say, and who did it."""

    name = "relay"

    def __init__(self, factor: float = 3.0, file: str = "") -> None:
        self.factor = factor
        self.file = file  # that the model is said to be read from

    def identify_model(self) -> Hashable:
        return ("scale", self.factor)

    def load(self) -> Any:
        return {"scale": torch.full((1000,), self.factor)}

    def split(self, job: Job, document: Document) -> Sequence[Segment]:
        return [Segment(i, float(i), float(i + 1), len(u.text)) for i, u in enumerate(document.utterances)]

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        return {"length": torch.tensor([float(segment.content)])}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return [{"length": tensors["length"] * model["scale"][0]} for tensors in batch]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        return f"{self.name} {float(output['length']):.0f}"

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        texts = [f"{u.text} {piece}" for u, piece in zip(document.utterances, pieces, strict=True)]
        utterances = [replace(u, text=text) for u, text in zip(document.utterances, texts, strict=True)]
        return replace(document, utterances=tuple(utterances), heard=(*document.heard, Word(str(os.getpid()))))

    def fingerprint(self) -> Mapping[str, Any]:
        files = {"weights": Path(self.file)} if self.file else {}
        return {"engine": self.name, "factor": self.factor, **files}


class Twin(Relay):
    """The same model for another purpose; it must not be loaded twice."""

    name = "twin"

    def load(self) -> Any:
        raise LoadError("twin: its model is there already; share it")


class Choir(ScriptEngine):
    """Takes ten segments in one go, whatever jobs they are from, and says how many there were."""

    name = "choir"
    batch_seconds = 10.0

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        if any(tensors["length"] == 13 for tensors in batch) and len(batch) > 1:
            raise ZeroDivisionError("a bug in the engine that only a batch has")
        together = torch.tensor([float(len(batch))])
        return [{**output, "together": together} for output in super().infer(model, batch)]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        text, length, _, pid = super().finish(job, segment, output)
        return text, length, float(output["together"]), pid


class Faulty(ScriptEngine):
    """`model VERB MARKER` does in `infer` what other verbs do in `prepare`; `model starve N` does not fit into memory
    with more than N segments in a batch. Says how many there were, and in which process."""

    name = "faulty"

    def prepare(self, job: Job, segment: Segment) -> Tensors:
        verb, _, rest = segment.content.partition(" ")
        if verb != "model":
            return {**super().prepare(job, segment), "order": torch.zeros(0, dtype=torch.uint8)}
        order = torch.frombuffer(bytearray(rest.encode()), dtype=torch.uint8)
        return {"length": torch.tensor([float(len(rest))]), "order": order}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        for tensors in batch:
            verb, _, rest = bytes(tensors["order"].tolist()).decode().partition(" ")
            if verb == "starve" and len(batch) > int(rest):
                raise MemoryError(f"{len(batch)} segments are more than {rest}")
            if verb not in ("", "starve"):
                _act(verb, rest)
        who = torch.tensor([float(len(batch)), float(os.getpid())])
        return [{**output, "who": who} for output in super().infer(model, batch)]

    def finish(self, job: Job, segment: Segment, output: Tensors) -> Any:
        together, pid = output["who"].tolist()
        return segment.content, float(output["length"]), together, int(pid)


class Brittle(ScriptEngine):
    """Crashes a forked process at segments of more than 20 letters, as Accelerate does at matrices above some size."""

    name = "brittle"

    def load(self) -> Any:
        self._home = os.getpid()
        return super().load()

    def example(self) -> Tensors:
        return {"length": torch.tensor([3.0])}

    def longest_example(self) -> Tensors:
        return {"length": torch.tensor([100.0])}

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        if os.getpid() != self._home and any(tensors["length"] > 20 for tensors in batch):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().infer(model, batch)


class Ready(Relay):
    """Has an example."""

    name = "ready"

    def example(self) -> Tensors:
        return {"length": torch.tensor([3.0])}


class Crowded(Ready):
    """A segment's result depends on how many share its batch."""

    name = "crowded"

    def infer(self, model: Any, batch: Sequence[Tensors]) -> Sequence[Tensors]:
        return [{"length": output["length"] * len(batch)} for output in super().infer(model, batch)]


class Collector(HostEngine):
    """A stage without a model and without segments: all is done when they would be joined."""

    name = "collect"
    memory_stage = "speaker_alignment"

    def join(self, job: Job, document: Document, segments: Sequence[Segment], pieces: Sequence[Any]) -> Document:
        words = [Word(word) for word in document.utterances[0].text.split()] if document.utterances else []
        return replace(document, warnings=(*document.warnings, f"{len(words)} words"))


_kept: list[torch.Tensor] = []


def _allocate(megabytes: int, keep: bool) -> None:
    """Memory of this process's own, for half a second, or for good."""
    tensor = torch.ones(megabytes * 250_000)
    if keep:
        _kept.append(tensor)
    else:
        time.sleep(0.5)


def _act(verb: str, marker: str) -> None:  # noqa: PLR0912
    """Does what the verb says: always, or, with a marker file, only as long as that is not there."""
    if marker:
        path = Path(marker)
        if path.exists():
            return
        path.touch()
    if verb == "kill":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # of Windows, which ends it at once too
    elif verb == "fell":  # the machine, or what stands for it: the process whose zygote this worker is from
        psutil.Process(os.getppid()).parent().kill()
        time.sleep(600)
    elif verb == "exit":
        os._exit(7)
    elif verb == "hang":
        time.sleep(600)
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "sleep":
        time.sleep(0.05)
    elif verb == "pause":
        time.sleep(2.0)
    elif verb == "note":
        pass
    elif verb == "raise":
        raise InputError("script: this line cannot be processed; change it")
    elif verb == "bug":
        raise ZeroDivisionError("a bug in the engine")
    else:
        raise InputError(f"script: unknown verb {verb!r}")
