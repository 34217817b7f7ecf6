"""What asks a network for something, in a process of its own where a fork would suffer from it.

On macOS, Python finds the proxies of the system by Objective-C, which does not survive a fork in the middle of things
(https://docs.python.org/3/library/urllib.request.html#urllib.request.getproxies, python/cpython#74570): neither the
process that forks nor its children ever ask for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from prefork.platform_matrix.systems import SYSTEM


class FetchError(OSError):
    """What the process said that could not fetch something."""


def fetch_apart(function: Callable[..., str], *arguments: Any) -> str:
    """What a function of a module returns. arguments: as JSON has them. Raises FetchError with the text of whatever it
    has raised; where it runs here, it raises what it raises."""
    if not SYSTEM.network_spoils_forks:
        return function(*arguments)
    code = f"import sys; sys.path.append(sys.argv[1]); from {__name__} import main; main()"
    order = json.dumps([function.__module__, function.__name__, arguments])
    python = SYSTEM.find_python()
    command = [python.executable, "-P", "-c", code, str(Path(__file__).parents[3]), order]
    environment = {**os.environ, **python.environment}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        text = f"the process that was to fetch it {SYSTEM.describe_status(done.returncode).words}"
        raise FetchError(text) from error
    if "error" in answer:
        raise FetchError(answer["error"])
    return str(answer["result"])


def main() -> None:
    """The process that fetches. Its answer goes to stdout, which libraries do not get to see."""
    out = os.dup(1)
    os.dup2(2, 1)
    module, name, arguments = json.loads(sys.argv[2])
    try:
        answer = {"result": getattr(import_module(module), name)(*arguments)}
    except Exception as error:  # noqa: BLE001  whatever it is, who has asked says it
        answer = {"error": str(error)}
    os.write(out, json.dumps(answer).encode())
