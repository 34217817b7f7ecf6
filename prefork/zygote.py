"""The zygote: loads every model once, then does nothing but fork workers on request.

It is started with exec, so that it is clean, and stays single-threaded, so that it can fork. Its children inherit
the weights by copy-on-write and from a sealed mapping.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import registry
from engines.base import Engine, LoadError
from platform_matrix.hazards import Hazard, Severity, find_hazards
from prefork import process
from prefork.channel import Channel

if TYPE_CHECKING:
    from prefork.worker import Loaded

# Read by libraries when they are first imported: no pool of threads may exist before a fork, and no progress bar
# belongs into a worker. CUDA is hidden because these workers compute on CPU and a CUDA context forbids to fork.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # oneDNN keeps what it has prepared for each shape it has seen, 1,024 of them; every recording brings new ones. Over
    # 20 recordings: 237 MB in a worker, 52 MB with 16 kept, 34 MB with malloc_trim after each; equally fast.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True, slots=True)
class Specification:
    """What a zygote loads. engines: name -> options. load: a pickled function without arguments, or None.

    preparation: what multiprocessing needs to import the user's script again; None if it is not needed.
    """

    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    load: bytes | None = None
    preparation: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a zygote says of itself once everything is loaded and sealed."""

    weights: int  # bytes in the arena
    seconds: float  # from the start of the process to here
    fingerprints: Mapping[str, Mapping[str, Any]]  # by engine
    hazards: tuple[Hazard, ...]  # harmless ones; with an unsafe one there is no inventory
    names: tuple[str, ...]


def main() -> None:
    """Entry point of the zygote process. argv: the channel's descriptor, the parent's pid."""
    started = time.monotonic()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    process.die_with_parent(int(sys.argv[2]))
    specification, _ = channel.receive()
    try:
        loaded = _load(specification)
        hazards = find_hazards()
        if unsafe := [hazard for hazard in hazards if hazard.severity is Severity.UNSAFE]:
            raise LoadError("cannot fork: " + "; ".join(f"{h.what}; {h.remedy}" for h in unsafe))
    except Exception as error:  # noqa: BLE001  whatever goes wrong while loading ends the run, in words
        text = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
        channel.send(("failed", text, "" if isinstance(error, LoadError) else traceback.format_exc()))
        return
    fingerprints = {name: dict(engine.fingerprint()) for name, engine in loaded.engines.items()}
    seconds = time.monotonic() - started
    channel.send(("loaded", Inventory(loaded.arena.size, seconds, fingerprints, tuple(hazards), tuple(loaded.models))))
    _Nursery(channel, loaded).run()
    os._exit(0)  # tearing the interpreter down takes a second and frees what the kernel frees at once


def _load(specification: Specification) -> Loaded:
    import torch

    torch.set_num_threads(1)  # before the first tensor operation: from then on OpenMP has a pool
    _silence()
    from prefork.arena import Arena
    from prefork.worker import Loaded

    engines = {name: registry.create(name, options) for name, options in specification.engines.items()}
    models = {name: _load_engine(engine) for name, engine in engines.items()}
    if specification.preparation is not None:
        _import_main(specification.preparation)
    if specification.load is not None:
        models["load"] = pickle.loads(specification.load)()
    arena = Arena.pack(models)
    for name, engine in engines.items():
        with torch.inference_mode():
            engine.warm_up(models[name])
    gc.collect()
    gc.freeze()  # the collector writes into every object it looks at, and a write copies the page
    arena.seal()
    return Loaded(engines, models, arena)


def _load_engine(engine: Engine) -> Any:
    engine.setup()
    return engine.load()


def _import_main(preparation: Mapping[str, Any]) -> None:
    """Imports the user's script, as multiprocessing's spawn does, so that its functions can be unpickled."""
    current = multiprocessing.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    try:
        multiprocessing.spawn.prepare(dict(preparation))
    finally:
        del current._inheriting  # type: ignore[attr-defined]


def _silence() -> None:
    """tqdm would start a thread to watch its bars."""
    with contextlib.suppress(ImportError):
        import tqdm  # type: ignore[import-untyped]

        tqdm.tqdm.monitor_interval = 0


def command(fd: int) -> list[str]:
    """The command line that starts a zygote, as a child of this process, on this end of its channel."""
    code = "import sys; sys.path.append(sys.argv[3]); from prefork.zygote import main; main()"
    home = str(Path(__file__).parent.parent)
    return [sys.executable, "-P", "-c", code, str(fd), str(os.getpid()), home]


class _Nursery:
    """Forks workers on request, buries them, and says what they died of."""

    def __init__(self, channel: Channel, loaded: Loaded) -> None:
        self._channel = channel
        self._loaded = loaded
        self._pids: dict[int, int] = {}  # pid -> worker's number

    def run(self) -> None:
        """Until the supervisor closes the channel."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([self._channel.fileno(), reading], [], [])
            if reading in ready:
                os.read(reading, 4096)
                self._bury()
            if self._channel.fileno() in ready and not self._obey():
                return

    def _obey(self) -> bool:
        try:
            (order, number, *arguments), fds = self._channel.receive()
        except EOFError:
            self._end()
            return False
        if order == "fork":
            self._fork(number, fds, *arguments)
        elif order == "kill":  # only its parent can be sure that a pid is still the worker's
            for pid in [pid for pid, owner in self._pids.items() if owner == number]:
                os.kill(pid, signal.SIGKILL)
        return True

    def _fork(self, number: int, fds: list[int], threads: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_worker(parent, fds, self._loaded, threads)
        for fd in fds:
            os.close(fd)
        self._pids[pid] = number
        self._channel.send(("forked", number, pid))

    def _bury(self) -> None:
        for pid in list(self._pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._channel.send(("exited", self._pids.pop(pid), os.waitstatus_to_exitcode(status)))

    def _end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)


def _become_worker(parent: int, fds: list[int], loaded: Loaded, threads: int) -> None:
    """Turns the forked child into a worker; never returns into the zygote's frames."""
    status = 1
    try:
        process.die_with_parent(parent)
        process.restore_signals()
        sock, errors = fds
        os.dup2(errors, 2)
        process.close_inherited(keep={sock})
        from prefork.worker import serve

        serve(Channel(socket.socket(fileno=sock)), loaded, threads)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the supervisor has gone
    except BaseException:  # noqa: BLE001  a child must not unwind into the zygote's frames, whatever happens
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
