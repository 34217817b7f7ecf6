"""`Runtime` in place of a ProcessPoolExecutor: exceptions, streams, signals, and what multiprocessing shares."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import traceback
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest
import torch

from prefork import LoadError, Runtime, WorkerDied
from prefork.wire.exceptions import RemoteTraceback

pytestmark = pytest.mark.usefixtures("script_engine")


def _fail(kind: str) -> BaseException:
    import script_futures

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        error = runtime.submit(script_futures.fail_with, kind).exception(timeout=60)
        assert runtime.submit(abs, -1).result(timeout=60) == 1
    assert error is not None
    assert "in fail_with" in "".join(traceback.format_exception(error))
    return error


@pytest.mark.parametrize(
    ("kind", "name", "text", "attributes"),
    [
        ("coded", "Coded", "code 3: test", {"code": 3, "why": "test"}),
        ("doubled", "Doubled", "3, yes", {}),
        ("locked", "Locked", "with a lock", {"number": 3}),
        ("file", "FileNotFoundError", "[Errno 2] no such file: 'name'", {"errno": 2, "filename": "name"}),
        ("noted", "ValueError", "noted", {"extra": {"a": 1}, "__notes__": ["a note"]}),
        ("mute", "RuntimeError", "Mute, whose text cannot be had", {}),
    ],
)
def test_an_exception_arrives_with_what_it_has(kind: str, name: str, text: str, attributes: dict[str, object]) -> None:
    error = _fail(kind)
    assert (type(error).__name__, str(error)) == (name, text)
    assert {key: getattr(error, key) for key in attributes} == attributes
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_cause_and_a_context_and_a_group_arrive() -> None:
    caused = _fail("cause")
    assert isinstance(caused.__cause__, KeyError) and isinstance(caused.__cause__.__cause__, RemoteTraceback)
    assert isinstance(_fail("context").__context__, KeyError)
    circle = _fail("circle")
    assert str(circle.__cause__) == "second"
    group = _fail("group")
    assert isinstance(group, ExceptionGroup)
    assert [str(one) for one in group.exceptions] == ["code 1: first", "second"]


def test_an_exception_of_a_class_that_no_name_finds_is_of_that_class() -> None:
    class Local(Exception):
        pass

    def fail() -> None:
        raise Local("here")

    with Runtime(workers=1, notice=lambda _: None) as runtime, pytest.raises(Local, match="here"):
        runtime.submit(fail).result(timeout=60)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("how", ["closed", "none", "deleted", "unflushable"])
def test_a_worker_answers_whatever_became_of_its_streams(name: str, how: str) -> None:
    import script_futures

    with Runtime(workers=1, notice=pytest.fail) as runtime:
        assert runtime.submit(script_futures.spoil_stream, name, how).result(timeout=60) == how
        with pytest.raises(ValueError, match="noted"):
            runtime.submit(script_futures.fail_with, "noted").result(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_signal_that_is_sent_ends_a_worker_with_a_model_too(number: signal.Signals) -> None:
    import script_futures

    with Runtime(workers=1, load=lambda: torch.ones(4096), notice=lambda _: None) as runtime:
        future = runtime.submit(lambda _, value: script_futures.send_signal(value), int(number))
        error = future.exception(timeout=20)
    assert isinstance(error, WorkerDied) and f"was killed by {number.name};" in str(error)


def test_what_prefork_killed_did_not_die_for_want_of_memory() -> None:
    import script_futures

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        error = runtime.submit(script_futures.close_descriptors).exception(timeout=60)
        assert isinstance(error, WorkerDied) and "memory" not in str(error)
        assert re.search("closed its channel and was killed|exited with status 1;", str(error))  # whoever is first


def test_what_was_inherited_closes_nothing_of_a_worker_once_it_is_collected() -> None:
    import script_futures

    with Runtime(workers=1, load=script_futures.open_sockets, notice=pytest.fail) as runtime:
        assert runtime.submit(script_futures.drop_sockets).result(timeout=60) == "Bad file descriptor"


def test_what_exits_in_load_loads_once(tmp_path: Path) -> None:
    import script_futures

    path = tmp_path / "loads"
    with pytest.raises(LoadError, match="SystemExit: 5"), Runtime(load=lambda: script_futures.exit_in_load(path)):
        pass
    assert path.read_text() == "x"
    with Runtime(load=script_futures.fork_in_load, workers=1) as runtime:
        assert runtime.submit(script_futures.get_model).result(timeout=60) == 7


def test_a_forked_process_that_exits_in_order_leaves_the_pool_alone() -> None:
    from prefork.pool import supervisor

    with Runtime(workers=1, notice=lambda _: None) as runtime:
        pid = os.fork()
        if pid == 0:
            supervisor._finish_all()
            runtime.supervisor.close()
            os._exit(9 if not supervisor._running else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        assert runtime.submit(abs, -1).result(timeout=60) == 1


@pytest.mark.parametrize("strategy", ["fork", "spawn"])
def test_shared_memory_outlives_the_pool(strategy: str) -> None:
    import script_futures

    with Runtime(workers=1, strategy=strategy, notice=lambda _: None) as runtime:
        ours: Any = shared_memory.SharedMemory(create=True, size=8)
        ours.buf[:3] = b"abc"
        assert runtime.submit(script_futures.read_shared, ours.name).result(timeout=60) == b"abc"
        name = runtime.submit(script_futures.make_shared).result(timeout=60)
    theirs: Any = shared_memory.SharedMemory(name=name)
    assert bytes(theirs.buf[:3]) == b"abc" == bytes(ours.buf[:3])
    for memory in (ours, theirs):
        memory.close()
        memory.unlink()


def test_a_shared_tensor_and_a_connection_arrive_as_themselves() -> None:
    import script_futures

    shared: Any = torch.zeros(3)
    own: Any = torch.zeros(3)
    shared.share_memory_()
    here, there = multiprocessing.Pipe()
    with Runtime(workers=1, notice=lambda _: None) as runtime:
        for tensor in (shared, own):
            runtime.submit(script_futures.add_one, tensor).result(timeout=60)
        runtime.submit(script_futures.send_through, there, 4).result(timeout=60)
    assert shared.tolist() == [1, 1, 1] and own.tolist() == [0, 0, 0]
    assert here.poll(10) and here.recv() == 4
    assert not own.is_shared()
