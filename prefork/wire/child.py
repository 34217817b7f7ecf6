"""A child process as the supervisor has it: started by exec, a channel to it, and what it says on stderr."""

from __future__ import annotations

import contextlib
import io
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from prefork.platform_matrix.imports import explain_import
from prefork.platform_matrix.systems import SYSTEM
from prefork.wire.channel import Channel
from prefork.wire.endings import CUT_OFF, UNENDED, Killer, find_killer
from prefork.wire.messages import LoadFailed

_POLL_SECONDS = 0.05
_DYING_SECONDS = 10.0  # from SIGKILL to a process's end; with a GPU that does not answer it may take for ever
_TAIL_BYTES = 8192  # kept of what a process has printed, and read at a time


class OutputPipe:
    """What a process prints, read without blocking by whoever waits for it with `selectors`.

    Windows can only wait for sockets: a thread passes on there what comes out of the pipe.
    """

    def __init__(self, pipe: IO[bytes], pumped: bool = not SYSTEM.waits_for_pipes) -> None:
        self._source: IO[bytes] | socket.socket = pipe
        if pumped:
            self._source, there = socket.socketpair()
            threading.Thread(target=_pump, args=(pipe, there), name="prefork-output", daemon=True).start()
            self._source.setblocking(False)
        else:
            os.set_blocking(pipe.fileno(), False)

    @classmethod
    def pipe(cls) -> tuple[OutputPipe, int]:
        """One to read, and the descriptor for another process to write to."""
        reading, writing = os.pipe()
        return cls(open(reading, "rb", buffering=0)), writing

    def fileno(self) -> int:
        return self._source.fileno()

    def read(self, most: int) -> bytes | None:
        """What there is; None if nothing is there now, empty at the end."""
        try:
            if isinstance(self._source, socket.socket):
                return self._source.recv(most)
            return self._source.read(most)
        except (BlockingIOError, ConnectionResetError) as error:
            return None if isinstance(error, BlockingIOError) else b""

    def pass_on(self, tail: bytearray, log: Callable[[str], None]) -> bool | None:
        """Logs some of what there is, and keeps the last of it in `tail`; None if nothing is there now, False if there
        never will be."""
        data = self.read(_TAIL_BYTES)
        if not data:
            return None if data is None else False
        tail += data
        del tail[:-_TAIL_BYTES]
        log(data.decode(errors="replace"))
        return True

    def close(self) -> None:
        self._source.close()


def _pump(pipe: IO[bytes], there: socket.socket) -> None:
    with pipe, there, contextlib.suppress(OSError):  # nobody reads any more
        while data := os.read(pipe.fileno(), 65_536):
            there.sendall(data)


class ChildProcess:
    """In a session of its own: Ctrl-C is for the supervisor, which knows what to do about it.

    module: below prefork, such as `work.zygote`; its `main` runs there. environment: beside this process's own.
    inherits_stdout: its stdout is this process's; else it goes where stderr goes. stderr: what it prints there.
    stderr_tail: the last that was read of it.
    """

    def __init__(self, module: str, environment: Mapping[str, str], inherits_stdout: bool = False) -> None:
        self.channel, there = Channel.pair()
        self.stderr_tail = bytearray()
        self._received: deque[Any] = deque()
        self._is_cut_off = False  # we have killed it, and it was not about to end
        self._killed: float | None = None  # when
        self._stderr_ended = False  # it has closed it
        python, handover = SYSTEM.find_python(), SYSTEM.prepare_handover(there)
        with there:
            self._process = subprocess.Popen(
                [python.executable, *_list_arguments(module, handover.handle)],
                stdout=None if inherits_stdout else subprocess.PIPE,
                stderr=subprocess.PIPE if inherits_stdout else subprocess.STDOUT,
                env={**os.environ, **python.environment, **environment},
                bufsize=0,
                **handover.options,
            )
            SYSTEM.bind(self._process)
            with contextlib.suppress(OSError):  # it has gone, which shows as soon as it is listened to
                SYSTEM.hand_over(there, self._process)
        output = self._process.stderr if inherits_stdout else self._process.stdout
        assert output is not None
        self.stderr = OutputPipe(output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self, patience: float, log: Callable[[str], None] = lambda _: None) -> Any:
        """Its next message, for a caller that waits for nobody else. log: gets what it prints.

        Raises EOFError when it has gone, TimeoutError when it says nothing for so many seconds.
        """
        until = time.monotonic() + patience
        while not self._received:
            if time.monotonic() > until:
                raise TimeoutError
            self.channel.flush()
            for fileobj in self._wait(_POLL_SECONDS):
                if fileobj is self.stderr:
                    self._read_stderr(log)
                else:
                    self._read_messages()
        return self._received.popleft()

    def _wait(self, seconds: float) -> list[Any]:
        """What of its output and its channel can be read now, the output first: it may explain the other's end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.channel, selectors.EVENT_READ)
            if not self._stderr_ended:
                selector.register(self.stderr, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(seconds)]
        return sorted(ready, key=lambda fileobj: fileobj is self.channel)

    def _read_stderr(self, log: Callable[[str], None]) -> None:
        self._stderr_ended = self.stderr.pass_on(self.stderr_tail, log) is False

    def _read_messages(self) -> None:
        try:
            self._received.extend(self.channel.poll())
        except EOFError:
            if not self._received:  # else it will be raised when these have been taken
                raise

    def poll(self) -> int | None:
        """Its exit status, CUT_OFF, or UNENDED; None as long as it runs."""
        status = self._process.poll()
        if status is None and self._killed is not None and time.monotonic() - self._killed > _DYING_SECONDS:
            return UNENDED
        return None if status is None else self._settle(status)

    def _settle(self, status: int) -> int:
        SYSTEM.kill_session(self._process.pid)
        return CUT_OFF if find_killer(status, self._is_cut_off) is Killer.PREFORK else status

    @property
    def is_killed(self) -> bool:
        """Whether it is about to end, or should be: nobody looks at its memory any more, which can take for ever."""
        return self._killed is not None

    def kill(self) -> None:
        self._killed = self._killed or time.monotonic()
        self._is_cut_off = self._is_cut_off or not SYSTEM.is_exiting(self._process.pid)
        with contextlib.suppress(PermissionError):  # Windows: it is ending, and cannot be ended
            self._process.kill()

    def interrupt(self) -> None:
        """See SYSTEM.interruption."""
        if self._process.poll() is None:
            SYSTEM.interrupt(self._process.pid)

    def end(self, patience: float) -> int:
        """Its exit status, CUT_OFF, or UNENDED. It ends by itself when its channel closes; if not within `patience`
        seconds, it is killed. The kernel, or the end of their channels, ends what it has started."""
        self.channel.close()
        self.stderr.close()
        if self._killed is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._settle(self._process.wait(patience))
        self.kill()
        assert self._killed is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._settle(self._process.wait(max(0.0, self._killed + _DYING_SECONDS - time.monotonic())))
        return UNENDED


def run(module: str) -> None:
    """In the child: its life, or, if what it needs cannot be imported, the reason over the channel."""
    _write_utf8()
    try:
        main = import_module(f"prefork.{module}").main
    except Exception as error:
        if not (line := explain_import(error)):
            raise
        channel = open_channel()
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the supervisor has gone
            channel.receive()  # what it was to do; a spawned worker is told when it is its turn
            channel.send(LoadFailed(line))
        return
    main()


def _write_utf8() -> None:
    """What the supervisor reads of it is UTF-8, whatever the user's locale or code page."""
    streams = [sys.stderr]
    with contextlib.suppress(OSError):  # stdout is closed
        streams += [sys.stdout] if os.path.sameopenfile(1, 2) else []
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def open_channel(forks: bool = False) -> Channel:
    """In the child: its end of the channel. From here on it does not outlive its parent. forks: it will fork, and must
    have no thread: where the system does not see to it, it ends when it next looks at its channel."""
    handle, parent = sys.argv[2:4]
    channel = Channel(SYSTEM.take_over(handle))
    SYSTEM.begin_child(int(parent))
    if not forks:
        SYSTEM.watch_parent(int(parent))
    return channel


def _list_arguments(module: str, handle: str) -> list[str]:
    # Bound to its parent before anything else: to import torch alone may take seconds.
    bind = "from prefork.platform_matrix.systems import SYSTEM; SYSTEM.begin_child(int(sys.argv[3]))"
    code = f"import sys; sys.path.append(sys.argv[1]); {bind}; from prefork.wire.child import run; run(sys.argv[4])"
    return ["-P", "-c", code, str(Path(__file__).parents[2]), handle, str(os.getpid()), module]
