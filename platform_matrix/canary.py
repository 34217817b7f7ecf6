"""The canary: a forked child that does the work once, before anything depends on such children living.

Whether a fork is safe cannot be read off a process in full; a child that hangs, crashes or lies shows it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import IO

from prefork.platform_matrix.frames import Frame, describe_frame, locate
from prefork.platform_matrix.systems import SYSTEM

_POLL_SECONDS = 0.002
_TRACE_SECONDS = 0.5  # how long a hung child may take to say where it hangs
_DYING_SECONDS = 10.0  # and from SIGKILL to its end: the kernel may wait for a device
_MOST_WORDS = 8192  # bytes kept of what it prints
_MOST_LETTERS = 400  # of what an exception says
_CAME_BACK = "prefork: a process that was forked in this call came back through it"
_HUNG = re.compile(r'^  File "(.+)", line (\d+) in (\S+)', re.MULTILINE)  # as faulthandler writes frames
_RAISED = re.compile(r'^  File "(.+)", line (\d+), in (\S+)', re.MULTILINE)  # as traceback does


class Fate(StrEnum):
    """What became of a canary."""

    LIVED = "lived"
    HUNG = "hung"
    DIED = "died"
    RAISED = "raised"
    LEFT_PROCESSES = "left processes"


@dataclass(frozen=True, slots=True)
class Outcome:
    """fate, and what is known about it. result: what the action returned. words: what the child printed.

    where: the place in the code, innermost first, where it hung or raised. reason: a sentence; empty if it lived.
    was_ended: by a signal from outside, or by the kernel for want of memory: that says nothing about forks.
    """

    fate: Fate
    seconds: float
    result: bytes | None = None
    reason: str = ""
    where: tuple[str, ...] = ()
    words: str = ""
    was_ended: bool = False

    @property
    def lived(self) -> bool:
        return self.fate is Fate.LIVED


class Canary:
    """Forks at once; `wait` says what became of it. Only where Python can fork.

    action: run in the child, where it may do anything; its result is what the child is for. prepare: run before it,
    with the descriptors that the child needs to say what came of it.
    """

    def __init__(self, action: Callable[[], bytes], prepare: Callable[[set[int]], None] = lambda _: None) -> None:
        self._started = time.monotonic()
        self._result: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  files, not pipes: nobody has to keep reading
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        parent = os.getpid()
        self._status: int | None = None
        self._ended = self._started
        self.pid = os.fork()
        if self.pid == 0:
            _run(parent, action, prepare, self._result, self._words)

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def has_ended(self, deadline: float) -> bool:
        """Whether it ends within so many seconds after it was forked; waits no longer."""
        return self._wait_for_exit(self._started + deadline) is not None

    def wait(self, deadline: float) -> Outcome:
        """What became of it, at most so many seconds after it was forked; then it is killed. Once only."""
        status, hung = self._wait_for_exit(self._started + deadline), False
        if status is None:
            hung = True
            with contextlib.suppress(ProcessLookupError):  # it ended this moment
                os.kill(self.pid, signal.SIGUSR1)  # faulthandler's, see _run
            status = self._wait_for_exit(time.monotonic() + _TRACE_SECONDS)
            if status is None:
                self.kill()
                status = self._wait_for_exit(time.monotonic() + _DYING_SECONDS)
                self._ended = time.monotonic()
        left = _kill_group(self.pid)
        seconds = self._ended - self._started
        with self._result, self._words:
            result, words = _read(self._result), _read(self._words)[-_MOST_WORDS:].decode(errors="replace")
        return _judge(_Ending(status, hung, left, seconds, deadline, result, words))

    def _wait_for_exit(self, until: float) -> int | None:
        while self._status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._status, self._ended = os.waitstatus_to_exitcode(status), time.monotonic()
            elif time.monotonic() > until:
                break
            else:
                time.sleep(_POLL_SECONDS)
        return self._status


@dataclass(frozen=True, slots=True)
class _Ending:
    """What is left of a canary. status: None if it does not end."""

    status: int | None
    hung: bool
    left: bool  # processes that it had started
    seconds: float
    deadline: float
    result: bytes
    words: str


def _judge(end: _Ending) -> Outcome:
    if end.hung:
        frames = _find_frames(end.words)
        where = tuple(describe_frame(*frame) for frame in frames)
        at = f", in {locate(frames)}" if where else ""
        return Outcome(
            Fate.HUNG, end.seconds, None, f"hung: no result after {end.deadline:.0f} s{at}", where, end.words
        )
    if end.result[:1] == b"E":
        summary, _, text = end.result[1:].decode(errors="replace").partition("\0")
        where = tuple(describe_frame(*frame) for frame in reversed(_RAISED.findall(text)) if frame[0] != __file__)
        return Outcome(Fate.RAISED, end.seconds, None, f"raised {summary}", where, text)
    if end.status:  # None only of one that has hung
        where = tuple(describe_frame(*frame) for frame in _find_frames(end.words))
        status = SYSTEM.describe_status(end.status)
        return Outcome(Fate.DIED, end.seconds, None, status.words, where, end.words, status.ended)
    if end.result[:1] != b"R":
        reason = "exited with status 0 before it had a result"
        return Outcome(Fate.DIED, end.seconds, None, reason, words=end.words)
    if _CAME_BACK in end.words:
        reason = "forked, and the process that it forked came back through the same call"
        return Outcome(Fate.LEFT_PROCESSES, end.seconds, end.result[1:], reason, words=end.words)
    if end.left:
        reason = "left processes behind that it had started, and which were killed"
        return Outcome(Fate.LEFT_PROCESSES, end.seconds, end.result[1:], reason, words=end.words)
    return Outcome(Fate.LIVED, end.seconds, end.result[1:], words=end.words)


def _find_frames(words: str) -> list[Frame]:
    """The main thread's frames in faulthandler's dump, which lists it last, without those of this module."""
    dump = words.rpartition("most recent call first):")[2]
    return [frame for frame in _HUNG.findall(dump) if frame[0] != __file__]


def _run(
    parent: int,
    action: Callable[[], bytes],
    prepare: Callable[[set[int]], None],
    result: IO[bytes],
    words: IO[bytes],
) -> None:
    """The child's life; never returns into the parent's frames."""
    status = 1
    try:
        os.setsid()  # what it starts can be found and ended with it
        own = os.getpid()
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
        faulthandler.enable(file=words.fileno())  # not to wherever the parent's would have written
        faulthandler.register(signal.SIGUSR1, file=words.fileno(), all_threads=True)
        try:
            prepare({result.fileno(), words.fileno()})
            answer = b"R" + action()
        except BaseException as error:  # noqa: BLE001  whatever it raises, sys.exit included, is what we want to know
            answer = b"E" + f"{_summarise(error)}\0{traceback.format_exc()}".encode(errors="replace")
        if os.getpid() != own or os.getppid() != parent:  # a child that the action forked has come back here
            os.write(2, _CAME_BACK.encode())
            os._exit(0)
        result.write(answer)
        result.flush()
        status = 0
    finally:
        with contextlib.suppress(OSError, ValueError):  # stdout may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _kill_group(group: int) -> bool:
    """Ends what the canary has left behind; whether there was anything."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says PermissionError of a group of zombies
        return False
    return True


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _summarise(error: BaseException) -> str:
    """Its type and what it says, in one line: libraries raise texts of many."""
    name = type(error).__qualname__
    module = type(error).__module__
    try:
        said = " ".join(str(error).replace("\0", " ").split())
    except BaseException:  # noqa: BLE001  `__str__` is the user's
        said = "(its text cannot be had)"
    short = said if len(said) <= _MOST_LETTERS else f"{said[:_MOST_LETTERS]} ..."
    return f"{name if module in ('builtins', '__main__') else f'{module}.{name}'}{': ' * bool(said)}{short}"


def describe_exit(status: int) -> str:
    """Words for an exit code as os.waitstatus_to_exitcode gives it."""
    return SYSTEM.describe_status(status).words
