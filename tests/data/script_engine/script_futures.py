"""Results and exceptions that make trouble where they arrive."""

from __future__ import annotations

import builtins
import os
import socket
import sys
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any


def _fail(kind: str) -> Any:
    raise getattr(builtins, kind)("as it is unpickled")


class BadResult:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.kind,)


class BadError(Exception):
    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.kind,)


class BadArgument:
    """Cannot be pickled, or raises what is given, as a class's own code may do."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def __reduce__(self) -> tuple[Any, ...]:
        raise self.raised


class SlowArgument:
    """Sends this process a signal as it is pickled the first time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickled += 1
        if self.pickled == 1:
            os.kill(os.getpid(), self.number)
            time.sleep(5)  # the handler runs meanwhile
        return int, (7,)


def make_bad_result(kind: str) -> BadResult:
    return BadResult(kind)


def make_bad_exception(kind: str) -> None:
    raise BadError(kind)


def put(queue: Any, value: int) -> int:
    queue.put(value)
    return value


def touch(path: Path, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    path.touch()


def square(value: int) -> int:
    return value * value


def append(path: Path, text: str = "x") -> None:
    with path.open("a") as file:
        file.write(text)


def spoil_stream(name: str, how: str) -> str:
    """Leaves a standard stream of its process as nobody expects it."""
    if how == "closed":
        getattr(sys, name).close()
    elif how == "none":
        setattr(sys, name, None)
    elif how == "deleted":
        delattr(sys, name)
    else:
        setattr(sys, name, _Unflushable())
    return how


class _Unflushable:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        sys.exit(3)


def send_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(30)


def close_descriptors() -> None:
    os.closerange(3, 64)


def open_sockets() -> list[socket.socket]:
    return list(socket.socketpair())


def drop_sockets(sockets: list[socket.socket]) -> str:
    """What became of them in this process. Drops them, which closes their numbers, and none that is open now."""
    try:
        sockets[0].send(b"x")
    except OSError as error:
        found = os.strerror(error.errno or 0)
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
    sockets.clear()
    for fd in opened:
        os.fstat(fd)
        os.close(fd)
    return found


def exit_in_load(path: Path) -> None:
    append(path)
    sys.exit(5)


def fork_in_load() -> int:
    pid = os.fork()
    if pid == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def get_model(model: Any) -> Any:
    return model


def read_shared(name: str) -> bytes:
    memory = shared_memory.SharedMemory(name=name)
    buffer: Any = memory.buf
    content = bytes(buffer[:3])
    del buffer
    memory.close()
    return content


def make_shared() -> str:
    memory = shared_memory.SharedMemory(create=True, size=8)
    buffer: Any = memory.buf
    buffer[:3] = b"abc"
    del buffer
    name: str = memory.name
    memory.close()
    return name


def add_one(tensor: Any) -> None:
    tensor += 1


def send_through(connection: Any, value: int) -> None:
    connection.send(value)


class Coded(Exception):
    """Its `__init__` takes something else than its arguments."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"code {code}: {why}")
        self.code, self.why = code, why


class Doubled(Exception):
    """Made again from its arguments, it would say something else."""

    def __init__(self, code: object, why: str = "no") -> None:
        super().__init__(f"{code}, {why}")


class Locked(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock, self.number = threading.Lock(), 3


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it says nothing")


def fail_with(kind: str) -> None:
    if kind == "coded":
        raise Coded(3, why="test")
    if kind == "doubled":
        raise Doubled(3, "yes")
    if kind == "locked":
        raise Locked("with a lock")
    if kind == "mute":
        raise Mute
    if kind == "file":
        raise FileNotFoundError(2, "no such file", "name")
    if kind == "noted":
        error = ValueError("noted")
        error.extra = {"a": 1}  # type: ignore[attr-defined]
        error.add_note("a note")
        raise error
    if kind == "group":
        raise ExceptionGroup("several", [Coded(1, why="first"), ValueError("second")])
    if kind == "circle":
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first
    try:
        raise KeyError("inner")
    except KeyError as error:
        if kind == "cause":
            raise Coded(4, why="outer") from error
        raise ValueError("outer")  # noqa: B904  its context is what is tested
