"""`Runtime` in asyncio: nothing blocks the event loop, and what is cancelled there is cancelled here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from prefork import CallTimedOut, InitializerError, LoadError, Runtime, RuntimeState, Stopped

pytestmark = pytest.mark.usefixtures("script_engine")


@asynccontextmanager
async def _watch_loop() -> AsyncIterator[list[float]]:
    """Seconds for which the event loop has come to nothing else."""
    gaps = [0.0]

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(tick())
    try:
        yield gaps
    finally:
        task.cancel()


def test_start_calls_and_end_leave_the_event_loop_alone() -> None:
    import script_calls as calls

    async def main() -> None:
        runtime = Runtime(load=calls.load_narrow, workers=2)
        assert runtime.status().state is RuntimeState.LOADING
        async with _watch_loop() as gaps:
            async with runtime as entered:
                assert entered is runtime and runtime.status().state is RuntimeState.RUNNING
                shapes = await asyncio.gather(*(runtime.asubmit(calls.find_shape) for _ in range(20)))
                assert shapes == [(2, 4)] * 20
                last = asyncio.create_task(runtime.asubmit(calls.get_pid, 0))
                await asyncio.sleep(0)
            assert await last > 0, "what was submitted is done"
        assert len(gaps) > 100, "while the model was loaded"
        assert runtime.status().state is RuntimeState.ENDED

    asyncio.run(main())


def test_a_start_that_fails_raises_and_leaves_no_process() -> None:
    import script_calls as calls

    async def main() -> None:
        with pytest.raises(LoadError, match="the disk with the weights is gone"):
            async with Runtime(load=calls.load_none, log=lambda _: None):
                pytest.fail("the block must not begin")
        with pytest.raises(InitializerError):
            async with Runtime(initializer=calls.raise_at_once):
                pytest.fail("the block must not begin")

    asyncio.run(main())


def test_leaving_by_an_exception_ends_what_has_not_begun() -> None:
    async def main() -> None:
        waiting = []
        with pytest.raises(KeyError):
            async with Runtime(workers=1) as runtime:
                waiting = [runtime.submit(time.sleep, 0.5) for _ in range(20)]
                raise KeyError("a bug in the block")
        assert any(isinstance(future.exception(), Stopped) for future in waiting)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_who_stops_waiting_ends_the_call_that_runs(how: str, tmp_path: Path) -> None:
    import script_calls as calls

    lock = tmp_path / "lock"

    async def main() -> None:
        async with Runtime(workers=1, notice=pytest.fail) as runtime:
            task = asyncio.create_task(runtime.asubmit(calls.hold, str(lock), 3600))
            while not lock.exists():
                await asyncio.sleep(0.01)
            if how == "cancel":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(task, 0.2)
            assert await runtime.asubmit(calls.hold, str(lock), 0.0) > 0, "its worker is free, and the lock"

    asyncio.run(main())


def test_options_hold_for_asyncio_too() -> None:
    async def main() -> None:
        async with Runtime(workers=1) as runtime:
            with pytest.raises(CallTimedOut):
                await runtime.with_options(timeout=0.2).asubmit(time.sleep, 3600)
            found = await asyncio.get_running_loop().run_in_executor(runtime.with_options(timeout=60), abs, -3)
            assert found == 3

    asyncio.run(main())


def test_a_generator_is_streamed_and_ended_with_who_takes_it() -> None:
    import script_calls as calls

    async def main() -> None:
        async with Runtime(workers=1, notice=pytest.fail) as runtime:
            assert [number async for number in runtime.astream(calls.count, 100)] == list(range(100))
            stream = runtime.astream(calls.count, 10**9)
            assert await anext(stream) == 0
            await stream.aclose()  # type: ignore[attr-defined]
            assert [number async for number in stream] == []
            with pytest.raises(LookupError, match="nothing is left"):
                assert [number async for number in runtime.astream(calls.count_and_fail, 3)]

            async def take() -> None:
                async for _ in runtime.astream(calls.count, 10**9, pause=0.01):
                    pass

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(take(), 0.3)
            assert await runtime.asubmit(abs, -1) == 1

    asyncio.run(main())
