"""What children share with their parent beside memory: found in a process that has all of it, and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what every descriptor is")

REPORT = """
import json, os, sys
from pathlib import Path
from prefork.platform_matrix.inherited import identify, list_shared, read_uses
from prefork.platform_matrix.openings import Openings
ours, openings = identify(), Openings()
openings.watch()
{program}
print(json.dumps([(shared.kind, shared.harmless, shared.what) for shared in list_shared(ours, openings)]))
"""

EVERYTHING = """
import asyncio, mmap, multiprocessing, selectors, socket, sqlite3, subprocess
Path("weights.bin").write_bytes(bytes(1000))

class Kept: pass

def load():
    kept = Kept()
    kept.reading = open("weights.bin", "rb")
    kept.appending = open("log.txt", "a")
    kept.native = os.open("weights.bin", os.O_RDWR)
    kept.database = sqlite3.connect("words.db")
    kept.database.execute("pragma journal_mode=wal")
    kept.database.execute("create table words (word)")
    kept.program = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    kept.listening = socket.create_server(("127.0.0.1", 0))
    kept.connection = socket.create_connection(kept.listening.getsockname())
    kept.pair = socket.socketpair()
    kept.polling = selectors.EpollSelector()
    kept.semaphore = multiprocessing.Semaphore()
    kept.queue = multiprocessing.Queue()
    kept.memory = mmap.mmap(-1, 4096)
    kept.mapped = mmap.mmap(kept.native, 1000)
    kept.private = mmap.mmap(kept.native, 1000, access=mmap.ACCESS_COPY)
    kept.folder = os.scandir(".")
    next(kept.folder)
    kept.null = open("/dev/null")
    kept.path = os.open(".", os.O_PATH)
    return kept

kept = load()
"""


def _run(program: str, folder: Path) -> str:
    code = REPORT.replace("{program}", program)
    script = folder / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2] / ".editable"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whatever_is_shared_is_named_by_its_path_and_who_opened_it_or_has_it(tmp_path: Path) -> None:
    found = json.loads(_run(EVERYTHING, tmp_path))
    said = [what for _, _, what in found]

    def is_there(kind: str, *words: str, harmless: bool = False) -> bool:
        texts = [what for kind_, harmless_, what in found if (kind_, harmless_) == (kind, harmless)]
        return any(all(word in text for word in words) for text in texts)

    here = "opened in load (script.py:"
    assert is_there("file", f"file {tmp_path}/weights.bin is open for reading and writing", here), said
    assert is_there("file", f"file {tmp_path}/weights.bin is open for reading, ", here), said
    assert is_there("file", f"file {tmp_path}/log.txt is open for appending", here, "all processes write to it"), said
    assert is_there("database", f"the SQLite database {tmp_path}/words.db is open", here), said
    assert is_there("pipe", "held by subprocess.Popen.stdin"), said
    assert is_there("pipe", "held by multiprocessing.queues.Queue._reader"), said
    assert is_there("process", "(cat) is running, started in load (script.py:"), said
    assert is_there("listening socket", "a socket listens at 127.0.0.1 port ", here, harmless=True), said
    assert is_there("connection", "is connected to 127.0.0.1 port ", here), said
    assert is_there("socket", "a unix socket", here), said
    assert is_there("eventpoll", "kernel object eventpoll is open, held by __main__.Kept.polling"), said
    assert is_there("semaphore", harmless=True), said
    assert is_there("mapping", "4 kB of memory are mapped shared and writable"), said
    assert is_there("mapping", f"4 kB of {tmp_path}/weights.bin are mapped shared and writable"), said
    assert is_there("folder", f"folder {tmp_path} is being listed"), said
    assert not any("/dev/null" in what for what in said)
    assert len([kind for kind, _, _ in found if kind == "folder"]) == 1, "one that can only be named shares nothing"


def test_a_clean_process_shares_nothing_and_what_was_open_before_is_left_out(tmp_path: Path) -> None:
    assert json.loads(_run("", tmp_path)) == []
    before = "before = open(__file__); ours = identify()"
    assert json.loads(_run(before, tmp_path)) == []


USED = """
import socket
files = [open(__file__, "rb", buffering=0) for _ in range(3)]
writing = open("log.txt", "w")
listening = socket.create_server(("127.0.0.1", 0))
talking, silent = [socket.create_connection(listening.getsockname()) for _ in range(2)]
shared = list_shared(ours)
before = read_uses(shared)

def act():
    files[1].read(1)
    os.pread(files[2].fileno(), 1, 5)
    talking.sendall(b"word")
    writing.write("line")
    writing.flush()

if (pid := os.fork()) == 0:
    act()
    os._exit(0)
os.waitpid(pid, 0)
used = {shared.identity[0] for shared, use in read_uses(shared).items() if use != before[shared]}
assert used == {files[1].fileno(), talking.fileno()}, used
"""


def test_what_a_child_has_read_or_sent_is_found_and_what_it_has_only_appended_or_read_at_a_place_is_not(
    tmp_path: Path,
) -> None:
    _run(USED, tmp_path)
