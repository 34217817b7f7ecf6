"""Services that other people's packages bring: they need no model, and must not need torch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefork.engines.base import InputError, Job, LoadError
from prefork.engines.text.document import Document, Turn, Utterance, Word


class Oracle:
    """Says what the first line of the input asks for."""

    name = "oracle"

    def __init__(self, in_flight: int = 2, key: str = "good") -> None:
        self.in_flight = in_flight
        self._key = key
        self._running = 0
        self._lock = threading.Lock()
        self._most = 0

    def setup(self) -> None:
        if self._key == "bad":
            raise LoadError("oracle: the key is refused; get another one")

    def transcribe(self, job: Job, document: Document, stopped: threading.Event) -> Document:
        with self._lock:
            self._running += 1
            self._most = max(self._most, self._running)
        try:
            verb = document.utterances[0].text
            if verb == "wait":
                stopped.wait(60)
            elif verb == "refuse":
                raise InputError("oracle: it does not want this; give it something else")
            elif verb == "expire":
                raise LoadError("oracle: the key has expired; get another one")
            stopped.wait(0.05)
            heard = (Word("torch" if "torch" in sys.modules else "free"), Word(str(self._most)))
            utterances = (Utterance(f"oracle {verb}", (Word(verb),)),)
            return replace(document, utterances=utterances, heard=heard)
        finally:
            with self._lock:
                self._running -= 1

    def fingerprint(self) -> Mapping[str, Any]:
        return {"engine": self.name}


class Herald:
    """A recogniser that is a service, and says itself who speaks."""

    name = "herald"
    in_flight = 2

    def __init__(self, diarize: bool = False) -> None:
        self._diarize = diarize

    def setup(self) -> None:
        pass

    def transcribe(self, job: Job, document: Document, stopped: threading.Event) -> Document:
        where = "torch" if "torch" in sys.modules else "free"
        heard = (Word("hear", 0.0, 0.5), Word(where, 0.5, 1.0))
        turns = (Turn("Crier", 0.0, 1.0),) if self._diarize else ()
        return replace(document, heard=heard, turns=turns, languages=("eng",), seconds=job.seconds)

    def fingerprint(self) -> Mapping[str, Any]:
        return {"engine": self.name, "diarize": self._diarize}
