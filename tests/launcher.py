"""Starts prefork's own processes by fork, from one that has imported what they import. For tests alone.

To import torch and transformers takes 2.5 s of a core, and hundreds of tests start processes that do. In place of
`subprocess.Popen` stands a class that hands the start of such a process to a launcher: a process that has imported
everything, has computed nothing, has one thread, and forks. What it forks is a child of whoever asked, as with exec:
the asker adopts what the launcher's child leaves behind (PR_SET_CHILD_SUBREAPER, prctl(2)). It has the environment, the
arguments, the folder, the descriptors, the limits and the command line that exec would have given it.

    asker                        launcher                  intermediate            child
      request, descriptors  -->    fork              -->     fork            -->     waits until the asker is its parent
                            <--                      <--     its pid, and ends       runs the code

What a shell starts it cannot adopt. There a client stands for the command (tests/launcher_client.py): the launcher
forks a process that forks the command, waits for it, and tells the client how it has ended.

What would notice the difference is exec'ed: a process with another PYTHONPATH, with variables that libraries read when
they are imported (but for those of _READ_AGAIN), with `preexec_fn`, and whatever a test marked `exec` starts: tests of
memory, of what is imported, of the command as the user's shell starts it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prefork.platform_matrix.systems import SYSTEM
from tests import systems
from tests.environment import LAUNCHER, THREADS
from tests.launcher_client import REFUSED

HARMLESS = "PREFORK_TESTS_HARMLESS"  # folders of PYTHONPATH that have no module in place of one that is imported
ROOT = Path(__file__).resolve().parents[1]
# What runs a child of prefork, as `prefork.wire.child` writes it, what asks torch for the devices, as
# `prefork.platform_matrix.devices` does, or the command, as `tests.prefork.command` does.
_OURS = re.compile(
    r"import sys; sys\.path\.append\(sys\.argv\[1\]\); .*; from prefork\.wire\.child import run; run\(sys\.argv\[4\]\)"
    r"|import sys; sys\.path\.append\(sys\.argv\[1\]\); from prefork\.platform_matrix\.devices import main; main\(\)"
    r"|from prefork\.cli\.app import main; main\(\)"
)
_IMPORTED = (
    *("torch", "torchaudio", "transformers", "stanza", "av", "rustling", "rich.live", "typer", "yaml", "num2words"),
    *(
        "prefork.cli.app",
        "prefork.run.file_run",
        "prefork.work.zygote",
        "prefork.work.spawned",
        "prefork.work.server",
        "prefork.work.worker",
    ),
    *(
        "prefork.cli.machine",
        "prefork.run.planning",
        "prefork.cli.report",
        "prefork.weights.arena",
        "prefork.memory.memlog",
        "prefork.check.steps",
    ),
    *("prefork.engines.ctc.aligner", "prefork.engines.ctc.recovery", "prefork.engines.whisper.asr"),
    *("prefork.engines.whisper.aligner", "prefork.engines.stanza.tagger", "prefork.engines.alignment.word_matching"),
    *("transformers.models.wav2vec2", "transformers.models.whisper", "transformers.models.auto.modeling_auto"),
)
_READ_AT_IMPORT = re.compile(rf"(HF|TRANSFORMERS|STANZA|TORCH|PYTORCH|PYTHON|LD|LC|{THREADS})_|LANG")
_READ_AGAIN = {"PYTHONPATH", "HF_HUB_OFFLINE"}  # by `_become`
_WAITS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # a launcher has them; only a server asks for them
_ALLOCATOR = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # what imports pandas imports pyarrow, if it is there
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
_COLLAPSE = 25  # MADV_COLLAPSE, linux/mman.h
_HUGE = 2 << 20  # bytes of a huge page
_LONGEST = 4096  # bytes of a command line that can be shown in place of the launcher's own
_SECONDS = 60.0  # for an answer
_INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # exec passes on whether they are ignored
_HIGH = 1024  # descriptors below it may be wanted by their number
_libc = ctypes.CDLL(None, use_errno=True)


class Launcher:
    """One to ask. environment: what it was started with, or forked from. door: where clients come in."""

    def __init__(
        self, connection: socket.socket, environment: Mapping[str, str], door: socket.socket | None = None
    ) -> None:
        self._connection = connection
        self._environment = environment
        self.door = door
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @classmethod
    def start(cls, before: Mapping[str, str]) -> Launcher:
        """A fresh process, which imports everything. before: the environment that no test has changed for itself."""
        from prefork.pool.server_processes import _WAITING
        from prefork.wire.environment import _ENVIRONMENT

        environment = {**before, **_ENVIRONMENT, **_WAITING, **_ALLOCATOR}
        ours, theirs = socket.socketpair()
        door, behind = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs, behind:
            handles = [theirs.fileno(), behind.fileno()]
            code = "import sys; sys.path[0] = sys.argv[1]; from tests.launcher import main; main(*sys.argv[2:4])"
            subprocess.Popen(
                [sys.executable, "-c", code, str(ROOT), *map(str, handles), "x" * _LONGEST],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=handles,
                start_new_session=True,
            )
        if ours.recv(1) != b"r":
            raise RuntimeError("the launcher of the tests could not be started; what it printed stands above")
        return cls(ours, environment, door)

    def may_start(self, code: str, environment: Mapping[str, str]) -> bool:
        """Whether it can do what exec would."""
        return os.getpid() == self._pid and _may_start(code, environment, self._environment)

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """The pid of a child of this process. fds: stdin, stdout, stderr, and what else it inherits."""
        with self._lock, _adopting():
            data = json.dumps({**request, "parent": os.getpid()}).encode()
            socket.send_fds(self._connection, [len(data).to_bytes(4, "big")], list(fds))
            self._connection.sendall(data)
            pid = int.from_bytes(_read(self._connection, 4), "big")
            until = time.monotonic() + _SECONDS
            while _find_parent(pid) not in (os.getpid(), None):  # the intermediate process is about to end
                if time.monotonic() > until:
                    raise TimeoutError(f"process {pid} did not become this one's child")
                time.sleep(0.0005)
        return pid


class Popen(subprocess.Popen[Any]):
    """As subprocess's; what the launcher may start, it starts."""

    launcher: Launcher | None = None
    before: Mapping[str, str] = {}
    is_off = False

    def _execute_child(self, *arguments: Any) -> None:
        wanted = inspect.signature(super()._execute_child).bind(*arguments).arguments  # type: ignore[misc]
        environment = os.environ if wanted["env"] is None else wanted["env"]
        plain = not wanted["shell"] and wanted["preexec_fn"] is wanted["executable"] is wanted["uid"] is None
        folder = os.fsdecode(wanted["cwd"] or Path.cwd())
        code = _find_code(wanted["args"], folder) if plain and not self.is_off else None
        if code is None or not self.ask().may_start(code, environment):
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        ends = [wanted["p2cread"], wanted["c2pwrite"], wanted["errwrite"]]
        kept = list(wanted["pass_fds"])
        request = {
            "arguments": [os.fsdecode(argument) for argument in wanted["args"]],
            "code": code,
            "environment": dict(environment),
            "folder": folder,
            "session": wanted["start_new_session"],
            "kept": kept,
            **_list_inherited(),
        }
        fds = [own if end == -1 else end for own, end in enumerate(ends)]
        try:
            self.pid = self.ask().fork(request, fds + kept)
            self._child_created = True
        finally:
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(wanted[name] for name in pipes))  # type: ignore[attr-defined]

    @classmethod
    def ask(cls) -> Launcher:
        if cls.launcher is None:
            cls.is_off = True
            try:
                cls.launcher = Launcher.start(cls.before)
            finally:
                cls.is_off = False
        return cls.launcher


def forget_what_libraries_set() -> None:
    """As they were imported by a test: scikit-learn sets KMP_INIT_AT_FORK, lightning PYTORCH_NVML_BASED_CUDA_CHECK. No
    user's shell has them, and whatever a later test starts would be exec'ed."""
    if not Popen.before:  # the first test is still to be set up
        return
    for name in filter(_READ_AT_IMPORT.match, Popen.before.keys() | os.environ.keys()):
        if name in Popen.before:
            os.environ[name] = Popen.before[name]
        else:
            del os.environ[name]


def _may_start(code: str, environment: Mapping[str, str], launched: Mapping[str, str]) -> bool:
    """launched: the launcher's own environment."""
    changed = {
        name
        for name in environment.keys() | launched.keys()
        if environment.get(name) != launched.get(name) and _READ_AT_IMPORT.match(name)
    }
    missing = changed - environment.keys() - _WAITS
    added = set(environment.get("PYTHONPATH", "").split(os.pathsep))
    added -= {*launched.get("PYTHONPATH", "").split(os.pathsep), str(ROOT / "tests/data/script_engine")}
    added -= set(environment.get(HARMLESS, "").split(os.pathsep))
    computes = "prefork.wire.child" in code
    return not added and not (changed & environment.keys()) - _READ_AGAIN and not (missing and computes)


def _list_inherited() -> dict[str, Any]:
    """What of this process one that it starts would inherit."""
    limits = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
    return {
        "cores": sorted(os.sched_getaffinity(0)),
        "ignored": [number for number in _INHERITED if signal.getsignal(number) is signal.SIG_IGN],
        "limits": {kind: resource.getrlimit(kind) for kind in limits},
    }


def _find_code(arguments: Any, folder: str = "") -> str | None:
    """What a process of prefork's, or a user's script that imports it, is to run; None if it is another's."""
    found = [] if isinstance(arguments, str | bytes) else [os.fsdecode(argument) for argument in arguments]
    if found[:1] != [sys.executable]:
        return None
    if "-c" in found[:3]:
        code = found[found.index("-c") + 1]
        return code if _OURS.fullmatch(code) else None
    if found[1:3] in (["-m", "prefork"], ["-m", "pytest"]):  # which warns that it did not import prefork's plugin first
        return f"import runpy; runpy.run_module({found[2]!r}, run_name='__main__', alter_sys=True)"
    if len(found) > 1 and found[1].endswith(".py") and (script := Path(folder, found[1])).is_file():
        text = script.read_text(encoding="utf-8")
        return text if re.search(r"^(from|import) prefork\b", text, re.MULTILINE) else None
    return None


def _is_program(code: str) -> bool:
    """Whether it is what a user starts, and no process of prefork's."""
    return "prefork.cli.app" in code or not _OURS.fullmatch(code)


def main(handle: str, door: str) -> None:
    """Entry point of the launcher. Arguments: descriptors of its connection to whoever asks, and of where clients come
    in."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides when it ends
    for name in _IMPORTED:
        importlib.import_module(name)
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"the launcher of the tests has {threads} threads; what it imports must start none")
    gc.collect()
    gc.freeze()
    _show_command([LAUNCHER])
    _use_huge_pages()
    connection = socket.socket(fileno=int(handle))
    connection.send(b"r")
    _serve(connection, dict(os.environ), socket.socket(fileno=int(door)))


def _use_huge_pages() -> None:
    """In the memory of Python's objects: to fork, and to end, takes 25 ms of a core in place of 60, as there is less to
    list. What a child writes to is copied by small pages as ever. Nothing happens where the kernel cannot (Linux 6.1).
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        extent, access, *_, name = line.split(maxsplit=5) if line.endswith("]") else (*line.split(), "")
        if access.startswith("rw") and name in ("", "[heap]"):
            start, end = (int(address, 16) for address in extent.split("-"))
            for address in range(-(-start // _HUGE) * _HUGE, end - _HUGE + 1, _HUGE):
                _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(_HUGE), _COLLAPSE)


def _serve(connection: socket.socket, environment: Mapping[str, str], door: socket.socket | None = None) -> None:
    """Until whoever asks has gone."""
    while True:
        if door is not None and connection not in select.select([connection, door], [], [])[0]:
            _let_in(door, environment)
            continue
        try:
            request, fds = _receive(connection)
        except (EOFError, ConnectionResetError):
            os._exit(0)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _fork_again(connection, writing, request, fds, environment)
        os.close(writing)
        for fd in fds:
            os.close(fd)
        answer = os.read(reading, 4)
        os.close(reading)
        os.waitpid(pid, 0)
        connection.sendall(answer or bytes(4))


def _fork_again(
    connection: socket.socket, writing: int, request: Mapping[str, Any], fds: list[int], environment: Mapping[str, str]
) -> NoReturn:
    """In the intermediate process: what it forks becomes the asker's child when it ends."""
    pid = os.fork()
    if pid:
        os.write(writing, pid.to_bytes(4, "big"))
        os._exit(0)
    os.close(writing)
    connection.close()
    _live(request, fds, environment)


def _let_in(door: socket.socket, environment: Mapping[str, str]) -> None:
    """A client, which gets a process that forks its command and waits for it."""
    _, (handle,), _, _ = socket.recv_fds(door, 1, 1)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # those whose clients have gone
            pass
    if os.fork():
        os.close(handle)
        return
    os.closerange(3, handle)
    os.closerange(handle + 1, _HIGH)
    client = socket.socket(fileno=handle)
    try:
        status = _run_for(client, environment)
        client.sendall(status.to_bytes(4, "big", signed=True))
    except (OSError, EOFError):
        pass  # it has gone
    finally:
        os._exit(0)


def _run_for(client: socket.socket, environment: Mapping[str, str]) -> int:
    """Its command's exit status; REFUSED if exec is to start it."""
    request, fds = _receive(client)
    code = _find_code(request["arguments"], request["folder"])
    if code is None or not _may_start(code, request["environment"], environment):
        return REFUSED
    own = {**_list_inherited(), "code": code, "session": False, "kept": [], "parent": os.getpid()}
    pid = os.fork()
    if pid == 0:
        _live({**own, **request}, fds, environment)
    for fd in fds:
        os.close(fd)
    ready, _, _ = select.select([client.fileno(), os.pidfd_open(pid)], [], [])
    if client.fileno() in ready:  # it says no more: it has been interrupted
        os.kill(pid, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _live(request: Mapping[str, Any], fds: list[int], environment: Mapping[str, str]) -> NoReturn:
    """In the process that is to run the code."""
    status = 1
    try:
        status = _become(request, fds, environment)
    except BaseException:  # noqa: BLE001  nothing may unwind into the launcher's frames
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)


def _become(request: Mapping[str, Any], fds: list[int], environment: Mapping[str, str]) -> int:
    """Turns a forked process into what exec would have made, and runs the code; its exit status."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in fds]
    places = [0, 1, 2, *request["kept"]]
    os.closerange(3, _HIGH)
    for fd, place in zip(high, places, strict=True):
        os.dup2(fd, place)
    for fd in high:
        if fd not in places:
            os.close(fd)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.sched_setaffinity(0, request["cores"])
    for kind, limits in request["limits"].items():
        resource.setrlimit(int(kind), tuple(limits))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    until = time.monotonic() + _SECONDS
    while os.getppid() != request["parent"]:
        if time.monotonic() > until:
            return 1  # whoever asked has ended meanwhile
        time.sleep(0.0005)
    arguments, code = request["arguments"], request["code"]
    if _is_program(code):
        _prepare_to_ask(environment)
    _show_command(arguments)
    os.environ.clear()
    os.environ.update(request["environment"])
    if system := os.environ.get(systems.SYSTEM):
        systems.become(system)
    known = environment.get("PYTHONPATH", "").split(os.pathsep)
    added = [name for name in os.environ.get("PYTHONPATH", "").split(os.pathsep) if name not in known]
    _read_variables_again()
    option = next((option for option in ("-c", "-m") if option in arguments[:3]), None)
    script = None if option else os.path.abspath(arguments[1])  # noqa: PTH100  links stay
    first = os.path.dirname(script) if script else request["folder"] if option == "-m" else ""  # noqa: PTH120
    beside = [] if "-P" in arguments else [first]  # as Python has it
    sys.path[:1] = [*beside, *added]  # in place of the launcher's own
    importlib.invalidate_caches()
    sys.argv = [option, *arguments[arguments.index(option) + 2 :]] if option else arguments[1:]
    for name, (fd, mode) in {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}.items():
        setattr(sys, name, _open(name, fd, mode))
        setattr(sys, f"__{name}__", getattr(sys, name))
    return _run(code, script)


def _read_variables_again() -> None:
    """What huggingface_hub makes of its variables when it is imported."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    constants.HF_HUB_OFFLINE = constants._is_true(said)


def _open(name: str, fd: int, mode: str) -> io.TextIOWrapper:
    """As Python opens its standard streams."""
    old = getattr(sys, name)
    raw = io.FileIO(fd, mode, closefd=False)
    unbuffered = mode == "w" and bool(os.environ.get("PYTHONUNBUFFERED"))
    buffer: Any = raw if unbuffered else io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    lines = not unbuffered and (name == "stderr" or raw.isatty())
    encoding, errors = old.encoding, old.errors
    if said := os.environ.get("PYTHONIOENCODING"):
        encoding, _, errors = said.partition(":")
        errors = old.errors if name == "stderr" else errors or "strict"
    return io.TextIOWrapper(buffer, encoding, errors, line_buffering=lines, write_through=unbuffered)


def _prepare_to_ask(environment: Mapping[str, str]) -> None:
    """The command starts processes of its own: a launcher of its own, forked before it has a thread, is its child."""
    ours, theirs = socket.socketpair()
    asker = os.getpid()
    if os.fork() == 0:
        os.setsid()
        SYSTEM.begin_child(asker)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nothing, fd)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, _HIGH)
        _show_command([LAUNCHER])
        _serve(theirs, environment)
    theirs.close()
    high = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)  # out of the way of what is counted from 3 on
    ours.close()
    Popen.launcher = Launcher(socket.socket(fileno=high), environment)
    subprocess.Popen = Popen  # type: ignore[misc]


def _run(code: str, script: str | None) -> int:
    """Runs it as the main module, to the end of the interpreter; its exit status."""
    main_module = types.ModuleType("__main__")
    if script:
        main_module.__file__ = script
    sys.modules["__main__"] = main_module
    status, interrupted = 0, False
    try:
        exec(compile(code, script or "<string>", "exec"), main_module.__dict__)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        interrupted = True
    except BaseException:  # noqa: BLE001  as the interpreter does it
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status & 0xFF


def _show_command(arguments: Sequence[str]) -> None:
    """In /proc/self/cmdline, where the launcher has left room for it: proc_pid_stat(5), arg_start and arg_end."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(os.fsencode(argument) for argument in arguments)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Children of children that end without them become this process's."""
    _libc.prctl(_SUBREAPER, 1)
    try:
        yield
    finally:
        _libc.prctl(_SUBREAPER, 0)


def _find_parent(pid: int) -> int | None:
    """None if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the descriptors that came with it."""
    head, fds, _, _ = socket.recv_fds(connection, 4, 64)
    if not head:
        raise EOFError
    return json.loads(_read(connection, int.from_bytes(head, "big"))), fds


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    waiting = select.poll()  # its descriptor may be too high for select()
    waiting.register(connection, select.POLLIN)
    while len(data) < count:
        if not waiting.poll(1000 * _SECONDS):
            raise TimeoutError("the launcher of the tests does not answer")
        if not (more := connection.recv(count - len(data))):
            raise EOFError("the launcher of the tests has gone")
        data += more
    return data
