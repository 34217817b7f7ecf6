"""Rev.ai's SDK, made to upload without reading a recording into memory, and what its answers and failures mean."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from prefork.engines.errors import LoadError
from prefork.platform_matrix.versions import find_requirement

_BLOCK = 1 << 16  # bytes


class Interrupted(Exception):
    """The run was stopped; what the service has been given stays there, and is found again by the next run."""


def make_client(key: str, url: str | None, timeouts: tuple[float, float]) -> Any:
    """The SDK's client, with timeouts, and with an upload that does not read the whole recording into memory."""
    try:
        import requests
        from rev_ai.apiclient import RevAiAPIClient
    except ImportError:
        remedy = f"pip install {find_requirement('rev-ai')}"
        raise LoadError(f"engine rev needs Rev.ai's SDK, rev_ai, which is not installed; {remedy}") from None

    class RevClient(RevAiAPIClient):  # type: ignore[misc]
        def _make_http_request(
            self, method: str, url: str, headers: Mapping[str, str] | None = None, **options: Any
        ) -> Any:
            """As the SDK does it, but for the body of a refusal, which it puts into the error as it comes."""
            with requests.Session() as session:
                everything = {**self.default_headers, **(headers or {})}
                response = session.request(method, url, headers=everything, timeout=timeouts, **options)
            response.raise_for_status()
            return response

        def list_jobs(self, limit: int) -> list[dict[str, Any]]:
            found = self._make_http_request("GET", f"{self.base_url}jobs", params={"limit": limit}).json()
            return [entry for entry in found if entry["id"]]

        def describe_job(self, id_: str) -> dict[str, Any]:
            """As the service says it; `get_job_details` fails on a state that the SDK does not know."""
            return dict(self._make_http_request("GET", f"{self.base_url}jobs/{id_}").json())

        def submit(
            self, file: BinaryIO, name: str, options: Mapping[str, Any], stopped: threading.Event
        ) -> dict[str, Any]:
            body = _Multipart(file, name, options, stopped)
            headers = {"Content-Type": f"multipart/form-data; boundary={body.boundary}"}
            return dict(self._make_http_request("POST", f"{self.base_url}jobs", data=body, headers=headers).json())

    return RevClient(key, url)


class _Multipart:
    """The body of an upload, read a block at a time. Raises Interrupted from `read`."""

    def __init__(self, file: BinaryIO, name: str, options: Mapping[str, Any], stopped: threading.Event) -> None:
        self.boundary = os.urandom(16).hex()
        described = json.dumps(options, sort_keys=True)
        line = f"--{self.boundary}\r\nContent-Disposition: form-data; name="
        head = (
            f'{line}"options"\r\nContent-Type: application/json\r\n\r\n{described}\r\n'
            f'{line}"media"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        ).encode()
        tail = f"\r\n--{self.boundary}--\r\n".encode()
        size = os.fstat(file.fileno()).st_size
        self._length = len(head) + size + len(tail)
        self._blocks = _read_blocks(head, file, size, tail)
        self._stopped = stopped

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._blocks)

    def read(self, size: int = -1) -> bytes:  # noqa: ARG002  a block is as good as what was asked for
        if self._stopped.is_set():
            raise Interrupted
        return next(self._blocks, b"")


def _read_blocks(head: bytes, file: BinaryIO, size: int, tail: bytes) -> Iterator[bytes]:
    yield head
    while size and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block
    yield bytes(size) + tail  # of a file that has shrunk, what was announced


def explain(response: Any) -> str:
    """What a problem document (RFC 7807) says, in short, and never the access token."""
    try:
        problem = response.json()
        text = " ".join(str(problem[part]) for part in ("title", "detail") if problem.get(part))
    except (ValueError, AttributeError, TypeError):
        text = ""
    token = str(response.request.headers.get("Authorization", "")).removeprefix("Bearer ")
    text = text.replace(token, "***") if token else text
    return " ".join((text or str(response.reason or "")).split())[:300]


def name_problem(error: Exception) -> str:
    from requests import ConnectionError, JSONDecodeError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, JSONDecodeError):
        return "the answer is not JSON"
    if isinstance(error, Timeout):
        return "the request timed out"
    cut = isinstance(error, (ConnectionError, ChunkedEncodingError))
    return "the connection failed or was interrupted" if cut else type(error).__name__


def read_retry_after(value: str | None) -> float | None:
    """Seconds; the header has these, or a date."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
