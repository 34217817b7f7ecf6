"""The web service of prefork/docs/pools.md, 50 requests at a time: `python tests/benchmarks/service.py [--rounds N]`.

It is started by uvicorn, with two workers, as the page says; who asks is a process of its own, on the same cores.
Beside it, in turns: the same with `run_in_executor` in the place of `asubmit`, and one that answers without a worker,
which is what uvicorn, FastAPI and who asks take by themselves. Medians of the rounds (about a minute on two cores).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.results import Results
from tests.test_docs import DOCS, read_blocks

CONCURRENT = 50
REQUESTS = 2000
_AWAIT = "await app.state.limited.asubmit(score, value)"
VARIANTS = {
    "asubmit, with a timeout": _AWAIT,
    "run_in_executor": "await asyncio.get_running_loop().run_in_executor(app.state.runtime, score, value)",
    "no worker": "value",
}


@contextmanager
def serve(folder: Path, answer: str) -> Iterator[int]:
    """The port."""
    (block,) = [block for block in read_blocks(DOCS / "pools.md") if block.value == "service.py"]
    assert _AWAIT in block.text
    (folder / "service.py").write_text(f"import asyncio\n{block.text.replace(_AWAIT, answer)}")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=folder) as server:
        try:
            _wait_until_up(port, server)
            yield port
        finally:
            server.send_signal(signal.SIGINT)


def _wait_until_up(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.1)


async def ask(port: int, requests: int) -> list[float]:
    """Seconds that each has taken, of requests on one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = []
    for _ in range(requests):
        began = time.perf_counter()
        writer.write(b"GET /score?value=0.5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        taken.append(time.perf_counter() - began)
    writer.close()
    await writer.wait_closed()
    return taken


async def ask_all(port: int) -> tuple[float, float, float]:
    """Requests a second; milliseconds of the middle one, and of the one that 95 of 100 were faster than."""
    await asyncio.gather(*(ask(port, 2) for _ in range(CONCURRENT)))
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(port, REQUESTS // CONCURRENT) for _ in range(CONCURRENT)))
    taken = list(chain.from_iterable(answers))
    rate = len(taken) / (time.perf_counter() - began)
    return rate, statistics.median(taken) * 1e3, statistics.quantiles(taken, n=20)[-1] * 1e3


def _tell(port: int) -> None:
    """In the process that asks: what it has found, for the other."""
    print(json.dumps(asyncio.run(ask_all(port))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ask", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        _tell(options.ask)
        return
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    with Results() as results, tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            names = list(VARIANTS)
            for name in names[number % 3 :] + names[: number % 3]:  # the first may find a cold machine
                answer = VARIANTS[name]
                with serve(Path(folder), answer) as port:
                    command = [sys.executable, __file__, "--ask", str(port)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[name].append(tuple(json.loads(done.stdout)))
        table = results.add_table(f"{CONCURRENT} requests at a time", "requests a second", "p50, ms", "p95, ms")
        for name, figures in found.items():
            rate, middle, late = (statistics.median(column) for column in zip(*figures, strict=True))
            table.add(name, f"{rate:.0f}", f"{middle:.0f}", f"{late:.0f}")


if __name__ == "__main__":
    main()
