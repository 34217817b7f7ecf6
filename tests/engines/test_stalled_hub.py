"""A hub that takes connections and says nothing, or stops in the middle of a file: one reason, and nothing hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = [pytest.mark.dependencies, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0" * 40
FETCH = """
import sys
from prefork.engines.checkpoints.hub import NotAvailable, fetch
try:
    print(fetch("somebody/something", ["*.json"], file=sys.argv[1]))
except NotAvailable as error:
    print("not available:", error)
"""
FETCH_STANZA = """
from prefork.engines.stanza.models import MissingModel, StanzaPackage
try:
    print(StanzaPackage.find("eng", "default"))
except MissingModel as error:
    print("missing:", error)
"""
ENOUGH = threading.Event()  # for those who wait


class Hub(BaseHTTPRequestHandler):
    """says: nothing at all, or all but the second half of each file."""

    says = True
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self.says:
            ENOUGH.wait()
        elif "/tree/" in self.path:
            self._answer([{"type": "file", "path": "config.json", "size": 1000, "oid": "abc"}])
        elif self.path.startswith("/api/models"):
            self._answer({"id": "somebody/something", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]})
        else:
            self._begin(1000)
            if self.command == "GET":
                self.wfile.write(bytes(500))
                self.wfile.flush()
                ENOUGH.wait()

    def _answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self._begin(len(data))
        self.wfile.write(data)

    def _begin(self, size: int) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class SilentHub(Hub):
    says = False


@pytest.fixture(params=[Hub, SilentHub], ids=["stops in the middle", "silent"])
def hub(request: pytest.FixtureRequest) -> Iterator[str]:
    ENOUGH.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    ENOUGH.set()
    server.shutdown()
    server.server_close()


def ask(code: str, folder: Path, hub: str, *arguments: str) -> str:
    """What a process says that asks it, and waits for a byte of a file for one second and not for ten."""
    settings = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }
    stanza = {"STANZA_RESOURCES_DIR": str(folder / "stanza"), "STANZA_RESOURCES_URL": hub}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        stanza[name] = str(folder / "hub" / "hub")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **settings, **stanza},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=100,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("file", ["", "config.json"], ids=["folder", "file"])
def test_a_hub_that_stalls_is_given_up(hub: str, file: str, tmp_path: Path) -> None:
    said = ask(FETCH, tmp_path, hub, file)
    assert said.startswith("not available: the hub cannot be reached; download it on a machine with network access")
    assert "it does not answer, or has stopped in the middle of it" in said


def test_where_stanza_gets_its_models_from_is_given_up(hub: str, tmp_path: Path) -> None:
    said = ask(FETCH_STANZA, tmp_path, hub)
    assert said.startswith("missing: stanza's models are not in") and "cannot be downloaded (127.0.0.1" in said
