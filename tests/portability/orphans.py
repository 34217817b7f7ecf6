"""Busy workers end with those who started them, however these end: `all gone`.

`python orphans.py spawn` ends the program by force; `python orphans.py fork` the zygote, then the program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import psutil

from prefork import Runtime

_END_SECONDS = 10.0


def load() -> Any:
    import torch

    torch.manual_seed(0)  # each worker loads by itself, and must have the same weights

    return torch.nn.Linear(64, 64)


def stay(_model: Any) -> None:
    time.sleep(120)


def keep_busy(strategy: str) -> None:
    """The program: prints the pids of itself, its zygote (0: none) and its workers, once they are busy."""
    with Runtime(load=load, workers=2, strategy=strategy, force_cpu=True) as runtime:  # with MPS there is no fork
        for _ in range(2):
            runtime.submit(stay)
        while sum(worker.ready_seconds is not None for worker in runtime.supervisor.status()) < 2:
            time.sleep(0.1)
        time.sleep(1)
        pids = [worker.pid for worker in runtime.supervisor.status()]
        print(os.getpid(), runtime.supervisor.zygote_pid() or 0, *pids, flush=True)
        time.sleep(120)


def main(strategy: str) -> int:
    if strategy == "fork" and not hasattr(os, "fork"):
        print("nothing to try: this system has no fork")
        return 0
    program = subprocess.Popen([sys.executable, __file__, strategy, "busy"], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    pid, zygote, *workers = map(int, program.stdout.readline().split())
    processes = [psutil.Process(number) for number in (zygote, pid, *workers) if number]
    for process in processes[: -len(workers)]:
        process.kill()
    program.wait()
    _, left = psutil.wait_procs(processes, _END_SECONDS)
    for process in left:
        process.kill()
    print(f"left: {', '.join(str(process.pid) for process in left)}" if left else "all gone")
    return int(bool(left))


if __name__ == "__main__":
    if sys.argv[2:] == ["busy"]:
        keep_busy(sys.argv[1])
    else:
        sys.exit(main(sys.argv[1]))
