"""Calls of functions, beside other executors: `python tests/benchmarks/calls.py [NAME ...] [--rounds N]`.

Every figure is taken in turns with two workers each, in the same run, and is the median of the rounds; loky is measured
where it is installed (`pip install loky`). Without names, all are measured (about two minutes on two cores).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefork import Runtime
from tests.benchmarks.results import Results

CONTEXT = multiprocessing.get_context("fork")
Submit = Callable[..., Any]
Row = tuple[str, ...]
_rounds = 5


def give_back(thing: Any = None) -> Any:
    return thing


def sleep(seconds: float) -> None:
    time.sleep(seconds)


class _Asynchronous:
    """multiprocessing.Pool's result, as a future."""

    def __init__(self, pool: Any, function: Callable[..., Any], *arguments: Any) -> None:
        self._result = pool.apply_async(function, arguments)

    def result(self) -> Any:
        return self._result.get()


def start_all(stack: ExitStack) -> dict[str, Submit]:
    """How each is asked for a call."""
    ways: dict[str, Submit] = {
        "prefork": stack.enter_context(Runtime(workers=2)).submit,
        "ProcessPoolExecutor(fork)": stack.enter_context(ProcessPoolExecutor(2, CONTEXT)).submit,
    }
    if find_spec("loky"):
        ways["loky"] = stack.enter_context(import_module("loky").ProcessPoolExecutor(2)).submit
    ways["Pool(fork)"] = partial(_Asynchronous, stack.enter_context(CONTEXT.Pool(2)))
    for submit in ways.values():
        run(submit, lambda: (), 50)
    return ways


def run(submit: Submit, make: Callable[[], tuple[Any, ...]], count: int, window: int = 8) -> float:
    """Calls a second, as many at a time as the window says."""
    began, waiting = time.perf_counter(), deque[Any]()
    for _ in range(count):
        waiting.append(submit(give_back, *make()))
        if len(waiting) >= window:
            waiting.popleft().result()
    while waiting:
        waiting.popleft().result()
    return count / (time.perf_counter() - began)


def measure_single(submit: Submit, count: int) -> float:
    """Milliseconds, of the middle one of calls that come one after another."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        submit(give_back).result()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


def measure_calls() -> Iterator[Row]:
    """How many, and how soon."""
    small, array = np.ones(128), np.ones(131_072)
    shared = torch.ones(2_621_440).share_memory_()  # type: ignore[no-untyped-call]
    kinds: dict[str, Callable[[dict[str, Any], Submit], float]] = {
        "no-op, all at once": lambda _, s: run(s, lambda: (), 4000, 4000),
        "1 KB array, all at once": lambda _, s: run(s, lambda: (small,), 3000, 3000),
        "1 MB array, the same again": lambda _, s: run(s, lambda: (array,), 300),
        "1 MB array, a fresh one": lambda _, s: run(s, lambda: (np.ones(131_072),), 300),
        "10 MB tensor, the same again": lambda own, s: run(s, lambda: (own["tensor"],), 60),
        "10 MB tensor, in shared memory": lambda _, s: run(s, lambda: (shared,), 60),
        "10 MB tensor, a fresh one": lambda _, s: run(s, lambda: (torch.ones(2_621_440),), 60),
        "one call after another, ms": lambda _, s: measure_single(s, 500),
    }
    with ExitStack() as stack:
        ways = start_all(stack)
        yield ("what", *ways)
        for kind, measure in kinds.items():
            figures: dict[str, list[float]] = {way: [] for way in ways}
            owned = {way: {"tensor": torch.ones(2_621_440)} for way in ways}  # what some do to it is not to help others
            for _ in range(_rounds):
                for way, submit in ways.items():
                    figures[way].append(measure(owned[way], submit))
            first = figures["prefork"]
            cells = []
            for way in ways:
                ratio = statistics.median(own / other for own, other in zip(first, figures[way], strict=True))
                middle = statistics.median(figures[way])
                cells.append(f"{middle:,.2f}" if middle < 10 else f"{middle:,.0f}")
                if way != "prefork":
                    cells[-1] += f" ({ratio:.2f} x)"
            yield (kind, *cells)


def measure_waiting() -> Iterator[Row]:
    """100,000 calls that wait."""
    yield ("what", "measured")
    with Runtime(workers=2) as runtime:
        runtime.submit(give_back).result()
        for _ in range(2):
            runtime.submit(sleep, 10.0)
        process = psutil.Process()
        before = process.memory_full_info().uss
        futures = [runtime.submit(give_back) for _ in range(100_000)]
        time.sleep(0.5)
        after = process.memory_full_info().uss
        assert not futures[0].done()
    yield "memory that 100,000 waiting calls take", f"{(after - before) / 1e6:.0f} MB"


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {"waiting": measure_waiting, "calls": measure_calls}


def main() -> None:
    global _rounds
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=_rounds)
    options = parser.parse_args()
    _rounds = options.rounds
    with Results() as results:
        for name in options.names or SECTIONS:
            rows = SECTIONS[name]()
            table = results.add_table(*next(rows), title=name)
            for row in rows:
                table.add(*row)
        results.note("N x: how many times prefork's figure is the other's, the median of the rounds' ratios")


if __name__ == "__main__":
    main()
