"""Models that share with their children what is no memory, and others that a plain fork breaks; all without torch."""

from __future__ import annotations

import http.client
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

LOADED_BY = os.getpid()
_FILE = Path(tempfile.gettempdir()) / f"prefork-sharing-{os.getuid()}.bin"
_kept: list[Any] = []


# A file that is opened at load, and in which each inference seeks and reads.
def load_file() -> IO[bytes]:
    if not _FILE.exists():
        new = _FILE.with_suffix(f".{os.getpid()}")
        new.write_bytes(bytes(range(256)) * 4096)
        new.replace(_FILE)
    return _FILE.open("rb", buffering=0)


def infer_from_file(file: IO[bytes]) -> list[int]:
    places = random.Random(0)
    found: list[int] = []
    for _ in range(20):
        file.seek(places.randrange(1 << 20))
        found += file.read(1)
    return found


def infer_at_positions(file: IO[bytes]) -> list[int]:
    places = random.Random(0)
    return [os.pread(file.fileno(), 1, places.randrange(1 << 20))[0] for _ in range(20)]


# A program that answers, one line for each.
def load_program() -> subprocess.Popen[str]:
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def infer_by_program(program: subprocess.Popen[str]) -> str:
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write("word\n")
    program.stdin.flush()
    return program.stdout.readline()


def load_database() -> sqlite3.Connection:
    path = Path(tempfile.mkdtemp()) / "words.db"
    connection = sqlite3.connect(path)
    connection.execute("create table words (word text)")
    connection.execute("insert into words values ('word')")
    connection.commit()
    _kept.append(path)
    return connection


def infer_by_database(connection: sqlite3.Connection) -> list[str]:
    return [word for (word,) in connection.execute("select word from words")]


# A thread that answers only in the parent, and is started by the first inference.
class Queue:
    def __init__(self) -> None:
        self.asked, self.answered = threading.Semaphore(0), threading.Semaphore(0)
        self.thread: threading.Thread | None = None

    def ask(self) -> int:
        if self.thread is None:
            self.thread = threading.Thread(target=self._serve, name="server", daemon=True)
            self.thread.start()
        self.asked.release()
        self.answered.acquire()
        return 7

    def _serve(self) -> None:
        while True:
            self.asked.acquire()
            self.answered.release()


def infer_by_thread(queue: Queue) -> int:
    return queue.ask()


# A connection that the first inference opens, and every other one keeps using.
def load_connection() -> http.client.HTTPConnection:
    services = Path(__file__).with_name("library_services.py")
    command = [sys.executable, str(services), "http"]
    service = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    _kept.append(service)
    return http.client.HTTPConnection("127.0.0.1", int(service.stdout.readline()))


def infer_over_connection(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/words/word")
    return connection.getresponse().read()


# Slow everywhere, and fast with a hang in children alone.
def infer_slowly(_: object) -> int:
    time.sleep(1.5)
    return 7


def infer_or_hang(_: object) -> int:
    if os.getpid() != LOADED_BY:
        time.sleep(600)
    return 7


class ManyLines(Exception):
    def __str__(self) -> str:
        return "<RPC that ended with:\n\tstatus = UNAVAILABLE\n>"


def infer_or_raise_many_lines(_: object) -> int:
    if os.getpid() != LOADED_BY:
        raise ManyLines
    return 7


def load_number() -> int:
    return 7


# What cannot be examined.
def load_and_raise() -> None:
    print("about to fail")
    raise RuntimeError("the disk with the weights is gone")


def load_and_die() -> None:
    os._exit(9)


def load_and_exit() -> None:
    sys.exit("usage: load")


def load_and_fork() -> int:
    os.fork()  # both come back
    return 7


def load_nothing() -> None:
    return None


def infer_itself(model: object) -> object:
    return model


def infer_and_raise(_: object) -> None:
    raise LookupError("no such word")


def infer_at_random(_: object) -> float:
    return random.random() + time.monotonic()


def infer_and_fork(model: object) -> object:
    if os.fork() == 0:
        time.sleep(600)
    return model


def infer_and_print(_: object) -> int:
    os.write(1, b"\xff\xfe\0garbage" * 10_000)
    return 7


def infer_and_exit(_: object) -> None:
    sys.exit(3)
