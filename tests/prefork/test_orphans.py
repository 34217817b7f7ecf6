"""A process of a pool that dies while a child of it lives: noticed, replaced, and the child ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from prefork import Runtime
from tests.prefork.command import wait_until_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and stops processes")


class Parent:
    """A model that leaves a child behind as it is loaded: it has all open that its parent had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> int:
        child = os.fork()
        if child == 0:
            while True:
                time.sleep(600)
        (self.folder / str(child)).touch()
        return 7


def double(model: int, value: int) -> int:
    return model * value


@pytest.mark.parametrize(("strategy", "name"), [("fork", "zygote"), ("spawn", "worker 0")])
def test_a_death_is_noticed_although_a_child_holds_the_channel(strategy: str, name: str, tmp_path: Path) -> None:
    with Runtime(load=Parent(tmp_path), workers=1, strategy=strategy, notice=lambda _: None) as runtime:
        assert runtime.submit(double, 2).result(60) == 14
        (first,) = list(tmp_path.iterdir())
        os.kill(int(first.name), signal.SIGSTOP)
        os.kill(runtime.supervisor.list_pids()[name], signal.SIGKILL)
        assert not wait_until_gone([int(first.name)], 20)
        assert runtime.submit(double, 3).result(60) == 21
    left = [int(path.name) for path in tmp_path.iterdir()]
    assert len(left) > 1 and not wait_until_gone(left, 5)
