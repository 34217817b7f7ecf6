"""The owners of the weights on GPUs, as the supervisor has them: one process for each device.

Lives in the supervisor's thread. An owner that dies takes its memory with it: whoever reads it must be ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from prefork.platform_matrix.canary import describe_exit
from prefork.platform_matrix.matrix import Plan
from prefork.wire.child import ChildProcess
from prefork.wire.environment import make_environment
from prefork.wire.loop import Loop
from prefork.wire.messages import Export

_EXIT_SECONDS = 2.0  # how long a process may take to end by itself


class Holder(Protocol):
    """For whom the weights are held."""

    def note_exported(self, exports: Sequence[Export]) -> None:
        """They are on every device of the plan, in that order."""

    def lose_weights(self, reason: str) -> None:
        """They are gone, or no longer what they were."""

    def refuse_ipc(self, reason: str) -> None:
        """Memory cannot be shared between processes here."""

    def fail_holding(self, reason: str) -> None:
        """They cannot be there at all."""


class Owners:
    def __init__(
        self, plan: Plan, path: str, size: int, holder: Holder, loop: Loop, log: Callable[[str], None]
    ) -> None:
        """path, size: of the file with the weights, in bytes."""
        self._holder = holder
        self._loop = loop
        self._exports: dict[int, Export] = {}
        kind = "cuda" if plan.device == "cuda" else "host"
        devices = plan.devices or ("",)
        self._count = len(devices)
        hidden = make_environment(plan)
        self._children = {
            number: ChildProcess("work.owner", {**hidden, "CUDA_VISIBLE_DEVICES": device})
            for number, device in enumerate(devices)
        }
        for number, child in self._children.items():
            loop.watch(child.channel, partial(self._on_owner, number))
            loop.watch(child.errors, partial(loop.pass_on, child.errors, child.last_words, log))
            child.channel.post((path, size, kind))
            loop.flush(child.channel)

    def list_pids(self) -> dict[str, int]:
        return {self._name(number): child.pid for number, child in self._children.items()}

    def _name(self, number: int) -> str:
        return f"owner {number}" if self._count > 1 else "owner"

    def end(self) -> None:
        """Once nobody reads any more."""
        for number in list(self._children):
            self._end(number)

    def _end(self, number: int) -> tuple[int, int]:
        """Its pid, and its exit status."""
        child = self._children.pop(number)
        self._loop.ignore(child.channel)
        self._loop.ignore(child.errors)
        return child.pid, child.end(_EXIT_SECONDS if number in self._exports else 0.0)

    def _on_owner(self, number: int) -> None:
        child = self._children[number]
        self._loop.flush(child.channel)
        try:
            for kind, *content in child.channel.poll():
                if kind == "exported":
                    self._take(number, content[0])
                elif kind == "refused":
                    self._holder.refuse_ipc(content[0])
                    return
                else:
                    self._holder.fail_holding(content[0])
                    return
        except EOFError:
            pid, status = self._end(number)
            self._holder.lose_weights(f"{self._name(number)} (pid {pid}) {describe_exit(status)}")

    def _take(self, number: int, export: Export) -> None:
        self._exports[number] = export
        if len(self._exports) == self._count:
            self._holder.note_exported([self._exports[place] for place in sorted(self._exports)])
