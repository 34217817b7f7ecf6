"""The zygote: loads every model once, then does nothing but fork workers on request.

It is started with exec, so that it is clean, and stays single-threaded, so that it can fork. Its children inherit
the weights by copy-on-write and from a sealed mapping.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from functools import partial

from prefork.engines.base import LoadError
from prefork.platform_matrix.canary import Canary
from prefork.platform_matrix.hazards import Severity, find_hazards
from prefork.platform_matrix.matrix import Plan, Strategy
from prefork.platform_matrix.rows import Verdict
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.channel import Channel
from prefork.wire.child import open_channel
from prefork.wire.endings import CUT_OFF, Killer, find_fatal_line, find_killer
from prefork.wire.messages import (
    AttachExports,
    ForkUnsafe,
    ForkWorker,
    InterruptWorker,
    IPCUnavailable,
    KillWorker,
    LoadFailed,
    ModelsLoaded,
    Surveyed,
    WeightsPacked,
    WorkerExited,
    WorkerForked,
)
from prefork.wire.process import flush_output
from prefork.wire.shared_tracker import list_descriptors, share_tracker
from prefork.work import loading
from prefork.work.loaded import Loaded

_DYING_SECONDS = 1.0  # from SIGKILL to the ends of all workers; nobody waits for one that the kernel keeps
_POLL_SECONDS = 0.005
_CANARIES = 2  # one may be ended by somebody else, or for want of memory
_CANARY_SECONDS = 60.0  # for one inference on each engine's example; the embedded one takes 0.1 s
_THOROUGH_SECONDS = 300.0  # on the longest segments too: a large model needs 20 s on one core for each


class CannotFork(Exception):
    """This process has loaded its models and must not fork: a hazard, or a canary that died. Says what, and why."""


class CannotAttach(Exception):
    """Its children cannot compute on the weights that are in the memory of devices. Says why."""


def main() -> None:
    """Entry point of the zygote process."""
    started = time.monotonic()
    SYSTEM.hold_blocks_apart()
    channel = open_channel(forks=True)
    try:
        specification, fds = channel.receive()
    except EOFError:  # the supervisor has gone
        return
    for fd in fds:
        share_tracker(fd)
    try:
        if specification.survey:
            engines = loading.open_engines(specification)
            sizes = loading.survey(specification, engines), loading.estimate_private(engines)
            channel.send(Surveyed(*sizes, loading.take_fingerprints(engines)))
            return
        loaded = loading.load(specification)
        hazards = find_hazards()
        harmless: tuple[Severity, ...] = (
            Severity.HARMLESS,
            Severity.SUSPECT,
        )  # a canary that infers shows what a suspect one is
        if specification.load is not None:  # nothing is known to infer with: what is suspect cannot be cleared
            harmless = (Severity.HARMLESS,)
        if unsafe := [hazard for hazard in hazards if hazard.severity not in harmless]:
            raise CannotFork("; ".join(f"{hazard.what}; {hazard.remedy}" for hazard in unsafe))
        if specification.plan.strategy is Strategy.IPC:
            loaded = _await_exports(channel, loaded)
        _prove(loaded, specification.plan)
        inventory = loading.describe(loaded, started, tuple(hazards))
    except CannotAttach as error:
        channel.send(IPCUnavailable(str(error)))
        return
    except CannotFork as error:
        channel.send(ForkUnsafe(str(error)))
        return
    except EOFError:  # the supervisor has gone, or wants something else
        return
    except Exception as error:  # noqa: BLE001  whatever goes wrong while loading ends the run, in words
        channel.send(LoadFailed(*loading.explain(error)))
        return
    SYSTEM.release_mapped_files()  # of what computes, only its children have need
    channel.send(ModelsLoaded(inventory))
    _ForkServer(channel, loaded).run()
    os._exit(0)  # tearing the interpreter down takes a second and frees what the kernel frees at once


def _await_exports(channel: Channel, loaded: Loaded) -> Loaded:
    """Says that the weights are in their file, and waits until their owners have put them on every device."""
    assert loaded.arena is not None
    channel.send(WeightsPacked(loaded.arena.size))
    answer: AttachExports = channel.receive()[0]
    return replace(loaded, exports=answer.exports)


def _prove(loaded: Loaded, plan: Plan) -> None:
    """Has a canary do once what the workers will do, on every device. Nothing else is forked unless it succeeds."""
    from prefork.work.worker import rehearse

    thorough = plan.row.verdict is Verdict.CAVEATS
    for place in range(len(loaded.exports) or 1):
        for _ in range(_CANARIES):
            action = partial(rehearse, os.getpid(), loaded, plan.threads, place, thorough)
            outcome = Canary(action).wait(_THOROUGH_SECONDS if thorough else _CANARY_SECONDS)
            if not outcome.was_ended:
                break
        else:
            raise LoadError(
                f"{_CANARIES} canaries that were forked to try it ended from outside, the last {outcome.reason}; "
                "whether it is safe to fork cannot be told: free memory, or choose another --strategy"
            )
        if not outcome.lived:
            words = find_fatal_line(outcome.words)
            text = f"a canary that was forked to try it {outcome.reason}{': ' + words if words else ''}"
            raise CannotAttach(text) if loaded.exports else CannotFork(text)
        if outcome.result:
            raise LoadError(outcome.result.decode())


class _ForkServer:
    """Forks workers on request, reaps them, and reports their exit status."""

    def __init__(self, channel: Channel, loaded: Loaded) -> None:
        self._channel = channel
        self._loaded = loaded
        self._pids: dict[int, int] = {}  # pid -> worker's number
        self._cut_off = set[int]()  # that were killed, and were not about to end

    def run(self) -> None:
        """Until the supervisor closes the channel."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([self._channel.fileno(), reading], [], [])
            if reading in ready:
                os.read(reading, 4096)
                self._reap()
            if self._channel.fileno() in ready and not self._take_order():
                return

    def _take_order(self) -> bool:
        try:
            message, fds = self._channel.receive()
        except EOFError:
            self._end()
            return False
        match message:
            case ForkWorker():
                self._fork(message, fds)
            case KillWorker(number):
                for pid in [pid for pid, worker in self._pids.items() if worker == number]:
                    if not SYSTEM.is_exiting(pid):
                        self._cut_off.add(pid)
                    SYSTEM.kill(pid)
            case InterruptWorker(number):
                for pid in [pid for pid, worker in self._pids.items() if worker == number]:
                    SYSTEM.interrupt(pid)
        return True

    def _fork(self, order: ForkWorker, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or no more processes allowed: it costs this worker, not all of them
            print(f"cannot fork: {error.strerror}", file=sys.stderr, flush=True)
            for fd in fds:
                os.close(fd)
            self._channel.send(WorkerExited(order.number, 1))
            return
        if pid == 0:
            _become_worker(parent, fds, self._loaded, order.threads, order.place)
        for fd in fds:
            os.close(fd)
        self._pids[pid] = order.number
        self._channel.send(WorkerForked(order.number, pid))

    def _reap(self) -> None:
        for pid in list(self._pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                if find_killer(code, pid in self._cut_off) is Killer.PREFORK:
                    code = CUT_OFF
                self._cut_off.discard(pid)
                self._channel.send(WorkerExited(self._pids.pop(pid), code))

    def _end(self) -> None:
        for pid in self._pids:
            SYSTEM.kill(pid)
        until = time.monotonic() + _DYING_SECONDS
        left = set(self._pids)
        while left and time.monotonic() < until:
            left = {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0] == 0}
            time.sleep(_POLL_SECONDS)


def _become_worker(parent: int, fds: list[int], loaded: Loaded, threads: int, place: int) -> None:
    """Turns the forked child into a worker; never returns into the zygote's frames. place: of its device."""
    status = 1
    try:
        SYSTEM.begin_child(parent)
        SYSTEM.restore_signals()
        sock, errors = fds
        os.dup2(errors, 2)
        SYSTEM.close_inherited(keep={sock} | list_descriptors())
        SYSTEM.watch_parent(parent)
        from prefork.work.worker import serve

        serve(Channel(socket.socket(fileno=sock)), loaded, threads, place)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the supervisor has gone
    except BaseException:  # noqa: BLE001  a child must not unwind into the zygote's frames, whatever happens
        sys.stderr = sys.__stderr__  # the user's may be anything
        traceback.print_exc()
    finally:
        try:
            flush_output()
        finally:
            os._exit(status)
