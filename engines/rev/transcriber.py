"""Rev.ai, a service that transcribes (https://docs.rev.ai/api/asynchronous). It has no weights here and needs no torch.

A recording is sent whole; then the service is asked, less and less often, until it is done. What fails on the way is
tried again. Each submission carries a mark made of the job, the recording's bytes and the options: before one is made,
the newest jobs are looked through for it, so that a lost answer, or a run that was killed, does not cost a second one.

Recordings are deleted there as soon as the transcript is here, and a week after they are done in any case, unless
`delete` is off. What the recording and its folder are called stays here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from prefork.engines.base import Job
from prefork.engines.errors import InputError, LoadError
from prefork.engines.rev.transcript import read_number, read_transcript
from prefork.engines.text.document import Document, Turn, Word
from prefork.engines.text.languages import get_long_code, get_short_code

KEY_VARIABLE = "REV_API_KEY"
URL_VARIABLE = "REV_API_URL"  # of another deployment, such as https://ec1.api.rev.ai

_MOST_UPLOADS = 5  # at once, and
_LARGEST = 2_000_000_000  # bytes: limits of the service
_NEWEST = 100  # jobs that are looked through for one of ours
_KEPT = 7 * 24 * 3600  # seconds that the service keeps what nobody has fetched and deleted
_BLOCK = 1 << 16  # bytes
_DONE = frozenset({"transcribed", "completed", "failed"})
_OF_ACCOUNT = frozenset({"insufficient_balance", "invoicing_limit_exceeded", "user_terminated"})

T = TypeVar("T")


class Interrupted(Exception):
    """The run was stopped; what the service has been given stays there, and is found again by the next run."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds between questions, each interval `growth` times as long as the one before. retries: of one request.
    timeouts: seconds to a connection, and of silence on it. longest_job: seconds after which a job is given up."""

    first_poll: float = 5.0
    last_poll: float = 60.0
    growth: float = 1.5
    first_retry: float = 1.0
    last_retry: float = 60.0
    longest_wait: float = 600.0  # that the service may ask for
    retries: int = 7
    timeouts: tuple[float, float] = (10.0, 120.0)
    longest_job: float = 6 * 3600.0


class RevTranscriber:
    """Words, and with `diarize` speakers, as Rev.ai hears them."""

    name = "rev"

    def __init__(
        self,
        language: str | None = None,
        diarize: bool = False,
        only_untimed: bool = False,
        delete: bool = True,
        in_flight: int = _MOST_UPLOADS,
        url: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        """language: ISO 639-1 or 639-3; by default the transcript's, else English. only_untimed: transcripts in which
        every utterance has times are left alone. delete: the recording, there, once it is done. in_flight: most jobs at
        once. url: of the service, by default that of REV_API_URL, else the one in the USA."""
        if not 1 <= in_flight <= _MOST_UPLOADS:
            raise LoadError(f"rev: in_flight must be 1 to {_MOST_UPLOADS}, which Rev.ai allows, not {in_flight}")
        self.language = language
        self.diarize = diarize
        self.only_untimed = only_untimed
        self.delete = delete
        self.in_flight = in_flight
        self._url = url
        self._patience = patience or Patience()
        self._client: Any = None

    def setup(self) -> None:
        """Raises LoadError if the SDK or the key is missing, or if the service does not take the key."""
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise LoadError(
                f"Rev.ai needs an access token: {KEY_VARIABLE} is not set; make one at https://www.rev.ai/access-token "
                "and put it there"
            )
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise LoadError(f"{KEY_VARIABLE} has characters that no access token has; copy it again")
        url = (self._url or os.environ.get(URL_VARIABLE, "")).strip().rstrip("/")
        if url and not re.match(r"https?://[^/\s]+", url):
            raise LoadError(f"{URL_VARIABLE} is no address of a service: {url!r}; it is like https://api.rev.ai")
        self._client = _make_client(key, url or None, self._patience.timeouts)
        try:  # someone waits for this one
            self._call(
                "rev", "the account", threading.Event(), self._client.get_account, min(self._patience.retries, 2)
            )
        except InputError as error:
            raise LoadError(str(error)) from None

    def transcribe(self, job: Job, document: Document, stopped: threading.Event) -> Document:
        """The document with `heard` and, with diarize, `turns`. Blocks; called from several threads at once.

        Raises InputError for this job, LoadError for all jobs, Interrupted soon after `stopped` is set (a request that
        waits for its answer is not cut off).
        """
        if self.only_untimed and all(u.start is not None and u.end is not None for u in document.utterances if u.words):
            return document
        language = self.language or (document.languages[0] if document.languages else "eng")
        media = _check_media(job)
        submitted = self._submit(job, media, language, stopped)
        details = self._wait(job, submitted, stopped)
        failure = _get(details, "failure") or "failed"
        if _get(details, "status") == "failed":
            self._delete(job, submitted, stopped)
            reason = (
                f"Rev.ai could not transcribe it: {_get(details, 'failure_detail') or 'no reason given'} ({failure})"
            )
            if failure in _OF_ACCOUNT:
                raise LoadError(f"{reason}; look at the account, then start again: what is done stays done")
            raise InputError(f"{job.id}: {reason}; check that {media.name} plays and has speech")
        words, turns = self._fetch(job, submitted, stopped)
        warnings = self._delete(job, submitted, stopped)
        seconds = job.seconds or read_number(details.get("duration_seconds"))
        return replace(
            document,
            heard=words,
            turns=turns if self.diarize else document.turns,
            languages=document.languages or (get_long_code(language),),
            seconds=document.seconds or seconds or None,
            warnings=(*document.warnings, *warnings),
        )

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "engine": self.name,
            "version": version("prefork"),
            "service": "rev.ai speechtotext v1",
            "language": self.language,
            "diarize": self.diarize,
            "only_untimed": self.only_untimed,
        }

    def _submit(self, job: Job, media: Path, language: str, stopped: threading.Event) -> str:
        """The service's name for the job."""
        options = {
            "language": _spell_language(language),
            "skip_diarization": not self.diarize,
            "remove_atmospherics": True,
            **({"delete_after_seconds": _KEPT} if self.delete else {}),
        }
        options = {name: value for name, value in options.items() if value is not False}
        mark = _make_mark(job, media, options, stopped)
        file_name = f"recording{media.suffix.lower()}"

        def find_or_submit() -> str:
            known = self._client.list_jobs(_NEWEST)
            if ours := [entry for entry in known if entry.get("metadata") == mark and entry.get("status") != "failed"]:
                return str(ours[0]["id"])
            with _open(job, media) as file:
                return str(self._client.submit(file, file_name, {**options, "metadata": mark}, stopped)["id"])

        return self._call(job.id, f"the upload of {media.name}", stopped, find_or_submit)

    def _wait(self, job: Job, submitted: str, stopped: threading.Event) -> Mapping[str, Any]:
        """What the service says of the job once it is done."""
        patience = self._patience
        interval = patience.first_poll
        until = time.monotonic() + patience.longest_job
        while True:
            details: Mapping[str, Any]
            details = self._call(job.id, "its state", stopped, lambda: self._client.describe_job(submitted))
            if _get(details, "status") in _DONE:
                return details
            if time.monotonic() > until:
                raise InputError(
                    f"{job.id}: Rev.ai has not finished it after {patience.longest_job / 3600:.1f} h (its job "
                    f"{submitted}); start again later, it is not sent a second time"
                )
            _pause(stopped, interval)
            interval = min(interval * patience.growth, patience.last_poll)

    def _fetch(self, job: Job, submitted: str, stopped: threading.Event) -> tuple[tuple[Word, ...], tuple[Turn, ...]]:
        return self._call(
            job.id, "its transcript", stopped, lambda: read_transcript(self._client.get_transcript_json(submitted))
        )

    def _delete(self, job: Job, submitted: str, stopped: threading.Event) -> tuple[str, ...]:
        """A warning if it stays there."""
        if not self.delete:
            return ()
        try:
            self._call(job.id, "its deletion", stopped, lambda: self._client.delete_job(submitted))
        except (InputError, Interrupted):
            days = _KEPT // 86_400
            return (f"Rev.ai keeps the recording for up to {days} days: its job {submitted} could not be deleted",)
        return ()

    def _call(
        self, who: str, what: str, stopped: threading.Event, request: Callable[[], T], retries: int | None = None
    ) -> T:
        """The answer, after as many tries as it takes. Raises InputError, LoadError, Interrupted."""
        from requests import HTTPError, RequestException

        for attempt in itertools.count():
            if stopped.is_set():
                raise Interrupted
            asked = None
            try:
                return request()
            except HTTPError as error:
                response = error.response
                assert response is not None  # raise_for_status has put it there
                status = response.status_code
                reason = f"{status} {_explain(response)}".strip()
                if status in (401, 403):
                    raise LoadError(_refuse(status, reason)) from None
                if status not in (408, 425, 429) and status < 500:
                    raise InputError(f"{who}: Rev.ai refused {what}: {reason}; mend what it says") from None
                asked = _read_retry_after(response.headers.get("Retry-After"))
            except RequestException as error:
                reason = _name_problem(error)
            except (KeyError, TypeError, ValueError, AttributeError):
                reason = "an answer that is not as documented"
            if attempt >= (self._patience.retries if retries is None else retries):
                raise InputError(
                    f"{who}: no answer from Rev.ai about {what} after {attempt + 1} tries: {reason}; check the "
                    "connection and https://status.rev.ai, then start again"
                ) from None
            backoff = min(self._patience.first_retry * 2**attempt, self._patience.last_retry)
            jittered = backoff * random.uniform(0.5, 1.0)  # jobs that failed together do not come back together
            _pause(stopped, jittered if asked is None else min(max(asked, jittered), self._patience.longest_wait))
        raise AssertionError("unreachable")


def _make_client(key: str, url: str | None, timeouts: tuple[float, float]) -> Any:
    """The SDK's client, with timeouts, and with an upload that does not read the whole recording into memory."""
    try:
        import requests
        from rev_ai.apiclient import RevAiAPIClient
    except ImportError:
        raise LoadError("engine rev needs Rev.ai's SDK, rev_ai, which is not installed; install prefork[rev]") from None

    class Client(RevAiAPIClient):  # type: ignore[misc]
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

    return Client(key, url)


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


def _check_media(job: Job) -> Path:
    """Raises InputError if there is no recording, or none that the service takes."""
    if job.media is None:
        raise InputError(f"{job.id}: no recording belongs to it; put it beside it, with the same name")
    try:
        size = job.media.stat().st_size
    except OSError as error:
        raise InputError(f"{job.media}: cannot be read: {error.strerror}; check the file") from None
    if size > _LARGEST:
        raise InputError(
            f"{job.media}: has {size / 1e9:.1f} GB, and Rev.ai takes {_LARGEST / 1e9:.0f} GB; "
            "compress it, or leave the pictures out"
        )
    if not size:
        raise InputError(f"{job.media}: is empty; get it again")
    return job.media


def _open(job: Job, media: Path) -> BinaryIO:
    try:
        return media.open("rb")
    except OSError as error:
        raise InputError(f"{job.id}: {media} cannot be read: {error.strerror}; check the file") from None


def _make_mark(job: Job, media: Path, options: Mapping[str, Any], stopped: threading.Event) -> str:
    digest = hashlib.sha256(json.dumps([job.id, options], sort_keys=True).encode("utf-8", "surrogatepass"))
    with _open(job, media) as file:
        while block := file.read(_BLOCK << 4):
            if stopped.is_set():
                raise Interrupted
            digest.update(block)
    return f"prefork {digest.hexdigest()[:40]}"


def _spell_language(language: str) -> str:
    """As the service writes it, which tells Mandarin from other Chinese."""
    short = get_short_code(language)
    return "cmn" if short == "zh" else short


def _pause(stopped: threading.Event, seconds: float) -> None:
    if stopped.wait(seconds):
        raise Interrupted


def _refuse(status: int, reason: str) -> str:
    if status == 401:
        return f"Rev.ai does not take the access token in {KEY_VARIABLE} ({reason}); make another one there"
    return f"Rev.ai does not let this account do it ({reason}); look at its balance and its deployment ({URL_VARIABLE})"


def _explain(response: Any) -> str:
    """What a problem document (RFC 7807) says, in short, and never the access token."""
    try:
        problem = response.json()
        said = " ".join(str(problem[part]) for part in ("title", "detail") if problem.get(part))
    except (ValueError, AttributeError, TypeError):
        said = ""
    token = str(response.request.headers.get("Authorization", "")).removeprefix("Bearer ")
    said = said.replace(token, "***") if token else said
    return " ".join((said or str(response.reason or "")).split())[:300]


def _name_problem(error: Exception) -> str:
    from requests import ConnectionError, JSONDecodeError, Timeout
    from requests.exceptions import ChunkedEncodingError

    if isinstance(error, JSONDecodeError):
        return "an answer that is no JSON"
    if isinstance(error, Timeout):
        return "it took too long"
    cut = isinstance(error, (ConnectionError, ChunkedEncodingError))
    return "the connection failed or was cut" if cut else type(error).__name__


def _read_retry_after(value: str | None) -> float | None:
    """Seconds; the header has these, or a date."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _get(details: Mapping[str, Any], name: str) -> str:
    value = details.get(name)
    return value if isinstance(value, str) else "" if value is None else str(value)
