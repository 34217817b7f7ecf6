"""Several hosts, which are network namespaces: machines that find each other over a network, and not over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs the extra cluster")
pytest.importorskip("cryptography", reason="needs the extra cluster")

from tests.prefork.command import read_outputs, run, write_script
from tests.prefork.hosts import find_lack, make_hosts

PREFORK = [sys.executable, "-m", "prefork"]
SCRIPT = ["--engine", "script", "--format", "json"]


def _wait_for(condition: Callable[[], object], printed: Path) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.exec
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("script_engine")
def test_a_host_that_fails_costs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    if lack := find_lack():
        pytest.skip(lack)
    for number in range(12):
        write_script(tmp_path / "in", f"job{number}", *["sleep"] * 20, f"say {'x' * number}")
    assert run("align", tmp_path / "in", tmp_path / "one", *SCRIPT).returncode == 0
    assert run("cluster", "init", tmp_path / "tls").returncode == 0
    file, printed, events = tmp_path / "scheduler.json", tmp_path / "printed.txt", tmp_path / "events.txt"
    printed.touch()
    with make_hosts(2) as (home, *hosts):
        start = ["cluster", "start", str(file), "--tls", str(tmp_path / "tls"), "--host", home.address]
        home.start([*PREFORK, *start], {}, printed)
        machines = [[*PREFORK, "join", str(file), "--name", host.name, "--workers", "1"] for host in hosts]
        for host, command in zip(hosts, machines, strict=True):
            host.start(command, {}, printed)
        _wait_for(lambda: printed.read_text().count("has joined") == 2, printed)
        align = ["align", str(tmp_path / "in"), str(tmp_path / "out"), *SCRIPT, "--json", "--cluster", str(file)]
        driver = home.start([*PREFORK, *align], {}, events)
        _wait_for(lambda: '"done"' in events.read_text(), events)
        hosts[0].kill()
        hosts[0].start(machines[0], {}, printed)
        assert driver.wait(120) == 0, events.read_text()
        summary = json.loads(events.read_text().splitlines()[-1])
        assert (summary["done"], summary["failed"], summary["unfinished"]) == (12, {}, 0)
        assert f"machine {hosts[0].name} was lost" in events.read_text()
        stop = ["nsenter", f"--net=/run/netns/{home.name}", *PREFORK, "cluster", "stop", str(file)]
        assert subprocess.run(stop, env=os.environ, check=False, timeout=60).returncode == 0
        _wait_for(lambda: not any(host.list_pids() for host in (home, *hosts)), printed)
    assert read_outputs(tmp_path / "out") == read_outputs(tmp_path / "one")
