"""Who may connect to a cluster: whoever has its certificates, and nobody else."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("distributed", reason="needs the extra cluster")
pytest.importorskip("cryptography", reason="needs the extra cluster")

from prefork.cluster.connecting import connect, count_local, find_place, write_file
from prefork.cluster.security import check_address, is_loopback, make_certificates, read_certificates
from prefork.engines.base import LoadError
from tests.prefork.command import PREFORK, find_children, run, start, write_script

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "tls")
    return tmp_path / "tls"


@pytest.mark.skipif(sys.platform == "win32", reason="whose files have no such permissions")
def test_certificates_are_this_user_s_alone(tls: Path) -> None:
    assert stat.S_IMODE(tls.stat().st_mode) == 0o700
    files = list(tls.iterdir())
    assert sorted(path.name for path in files) == ["ca.pem", "certificate.pem", "key.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert "PRIVATE" not in (tls / "ca.pem").read_text() + (tls / "certificate.pem").read_text()


def test_certificates_are_not_overwritten(tls: Path) -> None:
    before = {path: path.read_bytes() for path in tls.iterdir()}
    done = run("cluster", "init", tls)
    assert done.returncode == 2 and "is there already" in done.stderr
    assert {path: path.read_bytes() for path in tls.iterdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="whose files have no such permissions")
def test_a_key_that_others_can_read_is_refused(tls: Path) -> None:
    (tls / "key.pem").chmod(0o640)
    with pytest.raises(LoadError, match=r"others can read it.*chmod 600"):
        read_certificates(tls)


def test_certificates_that_are_missing_are_named(tmp_path: Path, tls: Path) -> None:
    with pytest.raises(LoadError, match=r"ca.pem: No such file.*prefork cluster init DIR"):
        read_certificates(tmp_path)
    (tls / "key.pem").unlink()
    with pytest.raises(LoadError, match=r"key\.pem: No such file"):
        read_certificates(tls)


@pytest.mark.parametrize("name", ["ca.pem", "certificate.pem", "key.pem"])
def test_certificates_that_are_damaged_are_refused(tls: Path, name: str) -> None:
    (tls / name).write_text("nothing of the kind")
    with pytest.raises(LoadError, match="are no certificates"):
        read_certificates(tls)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, tls: Path) -> None:
    make_certificates(tmp_path / "other")
    (tls / "key.pem").write_bytes((tmp_path / "other" / "key.pem").read_bytes())
    with pytest.raises(LoadError, match="are no certificates"):
        read_certificates(tls)


@pytest.mark.parametrize("text", ["local:0", "local:", "local:-1", "local:x", "local:65", "local:1.5", "local: 2"])
def test_a_number_of_local_machines_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(LoadError, match="a number of machines from 1 to 64"):
        count_local(text)


@pytest.mark.skipif(sys.platform == "win32", reason="whose files have no such permissions")
def test_a_scheduler_s_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "scheduler.json", "tcp://127.0.0.1:8786", None)
    assert find_place(str(tmp_path / "scheduler.json"), None).address == "tcp://127.0.0.1:8786"
    (tmp_path / "scheduler.json").chmod(0o666)
    with pytest.raises(LoadError, match="others can write it"):
        find_place(str(tmp_path / "scheduler.json"), None)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"address": 3}', '{"address": "tcp://127.0.0.1:1", "prefork_tls": 3}']
)
def test_what_is_no_scheduler_s_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(LoadError, match="is no scheduler's file"):
        find_place(str(path), None)


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("tcp://127.0.0.1:8786", True),
        ("tcp://[::1]:8786", True),
        ("tcp://localhost:8786", True),
        ("tcp://127.0.0.1.example.org:8786", False),
        ("tcp://0.0.0.0:8786", False),
        ("tcp://10.1.2.3:8786", False),
        ("tcp://:8786", False),
        ("ws://127.0.0.1:8786", False),
        ("tls://127.0.0.1:8786", False),
    ],
)
def test_without_certificates_only_this_machine_s_own_addresses_are_used(address: str, fits: bool) -> None:
    if fits:
        check_address(address, None)
    else:
        with pytest.raises(LoadError):
            check_address(address, None)


def test_loopback_is_what_it_is() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.168.1.1", "localhost.example.org")))


@pytest.mark.parametrize("options", [[], ["--host", "0.0.0.0"], ["--host", "192.0.2.1"]])
def test_a_scheduler_that_others_could_reach_does_not_start_without_certificates(
    tmp_path: Path, options: list[str]
) -> None:
    done = run("cluster", "start", tmp_path / "scheduler.json", *options)
    assert done.returncode == 2 and "prefork cluster init DIR" in done.stderr
    assert not (tmp_path / "scheduler.json").exists()


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """It runs no longer than this."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()


def _is_turned_away(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether the connection ends at once; else the scheduler says something, or waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        try:
            connection = context.wrap_socket(plain) if context is not None else plain
            connection.sendall(bytes(8))
            return connection.recv(1) in (b"", b"\x15")  # the end, or an alert of TLS
        except TimeoutError:
            return False
        except OSError:
            return True


def test_nobody_connects_without_the_certificate(tmp_path: Path, tls: Path) -> None:
    """Neither in the clear, nor with TLS alone, nor with another cluster's certificate."""
    file = tmp_path / "scheduler.json"
    with start("cluster", "start", file, "--tls", tls, "--host", "127.0.0.1") as scheduler, ended(scheduler):
        assert scheduler.stdout is not None
        assert "listens at tls://127.0.0.1:" in scheduler.stdout.readline()
        address = json.loads(file.read_text())["address"]
        port = int(address.rpartition(":")[2])
        assert _is_turned_away(port, None)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert _is_turned_away(port, context)
        context.load_cert_chain(tls / "certificate.pem", tls / "key.pem")
        assert not _is_turned_away(port, context)
        make_certificates(tmp_path / "other")
        with subprocess.Popen(
            [*PREFORK, "join", address, "--tls", str(tmp_path / "other"), "--wait", "0"],
            stderr=subprocess.PIPE,
            text=True,
        ) as stranger:
            assert stranger.wait(90) == 2
            assert stranger.stderr is not None and "another cluster's than ours" in stranger.stderr.read()
        done = run("cluster", "stop", file)
        assert done.returncode == 0, done.stderr
        assert scheduler.wait(30) == 0
    assert not file.exists()


def test_a_scheduler_that_ends_leaves_another_one_s_file(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with start("cluster", "start", file, "--host", "127.0.0.1") as scheduler, ended(scheduler):
        assert scheduler.stdout is not None
        assert "listens at" in scheduler.stdout.readline()
        write_file(file, "tcp://127.0.0.1:1", None)
        scheduler.terminate()
        assert scheduler.wait(30) == 0
    assert json.loads(file.read_text())["address"] == "tcp://127.0.0.1:1"


def list_ports(process: subprocess.Popen[str]) -> set[int]:
    """Where a process and its children listen."""
    family = [psutil.Process(process.pid), *find_children(process.pid, recursive=True)]
    return {c.laddr[1] for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


@pytest.mark.skipif(sys.platform == "darwin", reason="which lists no ports")
def test_a_scheduler_a_machine_and_a_driver_listen_with_tls_alone(
    tmp_path: Path, tls: Path, script_engine: None
) -> None:
    """At a port each, or none; Dask's web servers are not there."""
    file = tmp_path / "scheduler.json"
    write_script(tmp_path / "in", "job", *["sleep"] * 400)
    with start("cluster", "start", file, "--tls", tls, "--host", "127.0.0.1") as scheduler, ended(scheduler):
        assert scheduler.stdout is not None and "listens at" in scheduler.stdout.readline()
        with start("join", file, "--name", "machine") as machine, ended(machine):
            assert machine.stdout is not None and "has joined" in machine.stdout.readline()
            options = ["--engine", "script", "--format", "json", "--workers", "1", "--json"]
            with (
                start("align", tmp_path / "in", tmp_path / "out", *options, "--cluster", file) as driver,
                ended(driver),
            ):
                deadline = time.monotonic() + 60
                while len(find_children(machine.pid, recursive=True)) < 2:
                    assert time.monotonic() < deadline and driver.poll() is None
                    time.sleep(0.05)
                ports = [list_ports(process) for process in (scheduler, machine, driver)]
                assert [len(found) for found in ports] == [1, 1, 0], ports
                assert all(_is_turned_away(port, None) for found in ports for port in found)
        assert run("cluster", "stop", file).returncode == 0
        assert scheduler.wait(30) == 0


def test_the_scheduler_of_local_machines_listens_with_tls_alone(tls: Path) -> None:
    with connect("local:1", None) as (client, _):
        process = psutil.Process()
        ports = [c.laddr[1] for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert client.scheduler_info()["services"] == {}
        assert ports and all(_is_turned_away(port, None) for port in ports)
