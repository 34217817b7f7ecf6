"""Services for libraries_to_check.py to talk to: says its port on stdout, and ends when its stdin does.

python library_services.py http|redis|grpc
"""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_seen: set[str] = set()


class _HTTP(http.server.BaseHTTPRequestHandler):
    """`/bucket/key` is the key; `/seen/id` whether an event with this id was posted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        body = name if not self.path.startswith("/seen/") else "yes" if name in _seen else "no"
        self._answer(body.encode())

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/envelope/" in self.path:
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            _seen.add(json.loads(data.partition(b"\n")[0]).get("event_id", ""))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Redis(socketserver.StreamRequestHandler):
    """ECHO, and OK to everything else: redis.io/docs/latest/develop/reference/protocol-spec."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            parts = []
            for _ in range(int(line[1:])):
                parts.append(self.rfile.read(int(self.rfile.readline()[1:])))
                self.rfile.readline()
            echo = parts[0].upper() == b"ECHO"
            self.wfile.write(b"$%d\r\n%s\r\n" % (len(parts[1]), parts[1]) if echo else b"+OK\r\n")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


def _serve_grpc() -> tuple[object, int]:
    """The server, which serves as long as somebody has it, and its port."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(8))
    echo = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("words", {"Echo": echo}),))
    port: int = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main(service: str) -> None:
    if service == "grpc":
        _kept, port = _serve_grpc()
    else:
        server = _Server(("127.0.0.1", 0), _HTTP if service == "http" else _Redis)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
    print(port, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
