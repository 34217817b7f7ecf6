"""The web service of the page for those who come from another pool, as a user starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
import torch

from tests.prefork.command import wait_until_gone
from tests.test_docs import DOCS, read_blocks

CONCURRENT = 50


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Its address, and its pid."""
    (block,) = [block for block in read_blocks(DOCS / "pools.md") if block.value == "service.py"]
    (tmp_path / "service.py").write_text(block.text)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        children: list[int] = []
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_up(address, server)
            children = [child.pid for child in psutil.Process(server.pid).children(recursive=True)]
            yield address, server.pid
        finally:
            server.send_signal(signal.SIGINT)
            printed, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and b"Traceback" not in printed, printed.decode()
    assert not wait_until_gone(children, 10)


def _wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            httpx2.get(f"{address}/status").raise_for_status()
            return
        except httpx2.ConnectError:
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.1)


def test_a_web_service_answers_fifty_requests_at_a_time_whatever_happens_to_it(service: tuple[str, int]) -> None:
    address, pid = service

    async def ask(client: httpx2.AsyncClient, value: int) -> tuple[int, float]:
        answer = await client.get("/score", params={"value": value})
        answer.raise_for_status()
        return value, answer.json()

    async def main() -> list[tuple[int, float]]:
        limits = httpx2.Limits(max_connections=CONCURRENT + 3)
        async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=120) as client:
            waiting = asyncio.Semaphore(CONCURRENT)

            async def ask_in_turn(value: int) -> tuple[int, float]:
                async with waiting:
                    return await ask(client, value)

            tasks = [asyncio.create_task(ask_in_turn(value)) for value in range(20 * CONCURRENT)]
            await tasks[CONCURRENT]
            os.kill(await asyncio.to_thread(_find_worker, pid), signal.SIGKILL)
            await tasks[3 * CONCURRENT]
            reload = asyncio.create_task(client.post("/reload"))
            streamed = (await client.get("/scores", params={"until": 20})).raise_for_status().text.split()
            answers = await asyncio.gather(*tasks)
            (await reload).raise_for_status()
            assert len(streamed) == 20 and float(streamed[3]) == pytest.approx(dict(answers)[3], abs=1e-6)
            status = (await client.get("/status")).json()
            assert status == {"state": "running", "running": 0, "waiting": 0, "reloads": 1}
            return answers

    answers = asyncio.run(main())
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1)).eval()
    with torch.inference_mode():
        for value, answer in answers:
            assert model(torch.full((1, 512), float(value))).item() == pytest.approx(answer, abs=1e-3)


def _find_worker(server: int) -> int:
    """One of the service's workers: a child of a child."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in psutil.Process(server).children():
            if workers := child.children():
                return int(workers[0].pid)
        time.sleep(0.01)
    raise AssertionError("the service has no worker")
