"""What is in the way of a connection to a scheduler is said at once and by name, with the remedy."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the extra cluster")
pytest.importorskip("cryptography", reason="needs the extra cluster")

from distributed import Security

from prefork.cluster import handshake, security
from prefork.cluster.handshake import Place, UnreachableError, check_scheduler
from prefork.cluster.security import make_certificates, read_certificates
from prefork.engines.base import LoadError
from tests.prefork.command import run, start, write_script

pytestmark = pytest.mark.timeout(180)
AT_ONCE = 20.0  # seconds, of which a process needs some to import Dask


@dataclass(frozen=True)
class Schedulers:
    """One with certificates and one without. other: certificates of another cluster."""

    folder: Path
    safe: str
    plain: str

    @property
    def tls(self) -> Path:
        return self.folder / "tls"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    def place(self, address: str, tls: Path | None) -> Place:
        return Place(address, read_certificates(tls) if tls is not None else None)


@pytest.fixture(scope="module")
def schedulers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Schedulers]:
    folder = tmp_path_factory.mktemp("schedulers")
    make_certificates(folder / "tls")
    make_certificates(folder / "other")
    files = [folder / "safe.json", folder / "plain.json"]
    options: list[list[object]] = [["--tls", folder / "tls"], []]
    processes = [
        start("cluster", "start", file, "--host", "127.0.0.1", *more) for file, more in zip(files, options, strict=True)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and "listens at" in process.stdout.readline()
        yield Schedulers(folder, *(json.loads(file.read_text())["address"] for file in files))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=30)


def make_security(ca: Path, certificate: Path, key: Path) -> Security:
    """What `read_certificates` makes, of files that it would refuse."""
    names = {f"tls_{r}_{k}": str(f) for r in ("client", "scheduler") for k, f in (("cert", certificate), ("key", key))}
    make: Any = Security
    made: Security = make(tls_ca_file=str(ca), **names)
    return made


def test_the_right_certificates_are_let_in(schedulers: Schedulers) -> None:
    check_scheduler(schedulers.place(schedulers.safe, schedulers.tls))
    check_scheduler(schedulers.place(schedulers.plain, None))


def test_certificates_of_another_cluster_are_named(schedulers: Schedulers) -> None:
    with pytest.raises(LoadError, match=r"certificate is another cluster's than ours .*give the --tls DIR"):
        check_scheduler(schedulers.place(schedulers.safe, schedulers.other))


def test_a_certificate_that_only_the_scheduler_finds_wrong_is_named(schedulers: Schedulers) -> None:
    ca, (certificate, key) = schedulers.tls / "ca.pem", [schedulers.other / n for n in ("certificate.pem", "key.pem")]
    wrong = make_security(ca, certificate, key)
    with pytest.raises(LoadError, match=r"refuses our certificate as another cluster's .*give the --tls DIR"):
        check_scheduler(Place(schedulers.safe, wrong))


def test_a_client_without_tls_is_told_that_the_scheduler_has_it(schedulers: Schedulers) -> None:
    address = schedulers.safe.replace("tls://", "tcp://")
    with pytest.raises(LoadError, match="has certificates; give its address as tls://, and --tls DIR"):
        check_scheduler(Place(address, None))


def test_a_client_with_tls_is_told_that_the_scheduler_has_none(schedulers: Schedulers) -> None:
    address = schedulers.plain.replace("tcp://", "tls://")
    with pytest.raises(LoadError, match=r"is a scheduler without TLS.*leave out --tls and give tcp://127"):
        check_scheduler(schedulers.place(address, schedulers.tls))


def test_certificates_that_have_expired_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "_DAYS", -0.5)
    make_certificates(tmp_path / "tls")
    with pytest.raises(LoadError, match=r"tls: its certificate has expired.*prefork cluster init DIR"):
        read_certificates(tmp_path / "tls")


def test_certificates_of_two_folders_that_were_mixed_are_named(tmp_path: Path, schedulers: Schedulers) -> None:
    shutil.copytree(schedulers.tls, tmp_path / "tls")
    shutil.copy(schedulers.other / "ca.pem", tmp_path / "tls" / "ca.pem")
    with pytest.raises(LoadError, match=r"is not signed by its ca.pem; take all files of one"):
        read_certificates(tmp_path / "tls")


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection gets an answer of ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)


def test_the_certificate_of_a_scheduler_that_has_expired_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "_DAYS", -0.5)
    make_certificates(tmp_path)
    expired: Any = make_security(*(tmp_path / name for name in ("ca.pem", "certificate.pem", "key.pem")))
    context = expired.get_listen_args("scheduler")["ssl_context"]

    def answer(connection: socket.socket) -> None:
        try:
            context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()

    with listening(answer) as port, pytest.raises(LoadError, match=r"its certificate has expired; is this machine"):
        check_scheduler(Place(f"tls://127.0.0.1:{port}", expired))


@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_what_says_something_else_is_no_scheduler(schedulers: Schedulers, scheme: str) -> None:
    tls = schedulers.tls if scheme == "tls" else None
    with (
        listening(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n" * 300)) as port,
        pytest.raises(LoadError, match="something else than a scheduler listens there"),
    ):
        check_scheduler(schedulers.place(f"{scheme}://127.0.0.1:{port}", tls))


def test_a_web_server_is_no_scheduler(schedulers: Schedulers) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(LoadError, match="something else than a scheduler listens there"):
            check_scheduler(schedulers.place(f"tls://127.0.0.1:{server.server_address[1]}", schedulers.tls))
        server.shutdown()


@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_what_says_nothing_is_not_waited_for_without_limit(
    schedulers: Schedulers, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "_ANSWER_SECONDS", 2.0)
    tls = schedulers.tls if scheme == "tls" else None
    kept: list[socket.socket] = []
    with listening(kept.append) as port, pytest.raises(UnreachableError, match="does nothing else listen there"):
        check_scheduler(schedulers.place(f"{scheme}://127.0.0.1:{port}", tls))


def test_nothing_that_listens_may_be_there_later(schedulers: Schedulers) -> None:
    with listening(socket.socket.close) as port:
        pass
    with pytest.raises(UnreachableError, match=r"Connection refused\); is it running"):
        check_scheduler(schedulers.place(f"tls://127.0.0.1:{port}", schedulers.tls))


def test_a_machine_that_cannot_join_is_told_at_once(schedulers: Schedulers) -> None:
    """Although it would wait for a scheduler for five minutes."""
    begun = time.monotonic()
    done = run("join", schedulers.safe, "--tls", schedulers.other)
    assert done.returncode == 2 and "certificate is another cluster's than ours" in done.stderr
    assert time.monotonic() - begun < AT_ONCE


def test_a_run_that_cannot_connect_is_told_at_once(schedulers: Schedulers, tmp_path: Path, script_engine: None) -> None:
    write_script(tmp_path / "in", "one", "say hello")
    begun = time.monotonic()
    options = ["--engine", "script", "--format", "json", "--cluster", schedulers.safe, "--tls", schedulers.other]
    done = run("align", tmp_path / "in", tmp_path / "out", *options)
    assert done.returncode == 2 and "certificate is another cluster's than ours" in done.stderr
    assert time.monotonic() - begun < AT_ONCE


def test_a_machine_that_waits_for_a_scheduler_says_so_and_ends_when_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with start("join", file) as machine:
        assert machine.stdout is not None
        assert "no such file; start a scheduler" in (said := machine.stdout.readline()) and "waits for it" in said
        begun = time.monotonic()
        machine.terminate()
        assert machine.wait(30) == 0 and time.monotonic() - begun < AT_ONCE
