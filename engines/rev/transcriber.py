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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from prefork.engines.base import Job
from prefork.engines.errors import InputError, LoadError
from prefork.engines.rev.client import Interrupted, explain, make_client, name_problem, read_retry_after
from prefork.engines.rev.transcript import read_number, read_transcript
from prefork.engines.text.document import Document, Turn, Word
from prefork.engines.text.languages import get_long_code, get_short_code

KEY_VARIABLE = "REV_API_KEY"
URL_VARIABLE = "REV_API_URL"  # of another deployment, such as https://ec1.api.rev.ai

_MOST_UPLOADS = 5  # at once, and
_LARGEST = 2_000_000_000  # bytes: limits of the service
_NEWEST = 100  # jobs that are looked through for one of ours
_KEPT = 7 * 24 * 3600  # seconds that the service keeps what nobody has fetched and deleted
_HASHED = 1 << 20  # bytes of a recording at a time
_DONE = frozenset({"transcribed", "completed", "failed"})
_OF_ACCOUNT = frozenset({"insufficient_balance", "invoicing_limit_exceeded", "user_terminated"})

T = TypeVar("T")


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
            raise LoadError(f"rev: in_flight must be 1 to {_MOST_UPLOADS}, Rev.ai's limit, not {in_flight}")
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
                f"Rev.ai needs an access token: {KEY_VARIABLE} is not set; create one at "
                "https://www.rev.ai/access-token and set the variable"
            )
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise LoadError(f"{KEY_VARIABLE} contains characters that no access token has; copy it again")
        url = (self._url or os.environ.get(URL_VARIABLE, "")).strip().rstrip("/")
        if url and not re.match(r"https?://[^/\s]+", url):
            raise LoadError(f"{URL_VARIABLE} is not the address of a service: {url!r}; use one like https://api.rev.ai")
        self._client = make_client(key, url or None, self._patience.timeouts)
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
                raise LoadError(f"{reason}; check the account, then start again; finished files are kept")
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
                    f"{submitted}); start again later: it is not uploaded again"
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
                reason = f"{status} {explain(response)}".strip()
                if status in (401, 403):
                    raise LoadError(_refuse(status, reason)) from None
                if status not in (408, 425, 429) and status < 500:
                    raise InputError(f"{who}: Rev.ai refused {what}: {reason}; correct what it names") from None
                asked = read_retry_after(response.headers.get("Retry-After"))
            except RequestException as error:
                reason = name_problem(error)
            except (KeyError, TypeError, ValueError, AttributeError):
                reason = "the answer does not match the documentation"
            if attempt >= (self._patience.retries if retries is None else retries):
                raise InputError(
                    f"{who}: Rev.ai gave no valid answer on {what} after {attempt + 1} tries: {reason}; check the "
                    "connection and https://status.rev.ai, then start again"
                ) from None
            backoff = min(self._patience.first_retry * 2**attempt, self._patience.last_retry)
            jittered = backoff * random.uniform(0.5, 1.0)  # jobs that failed together do not come back together
            _pause(stopped, jittered if asked is None else min(max(asked, jittered), self._patience.longest_wait))
        raise AssertionError("unreachable")


def _check_media(job: Job) -> Path:
    """Raises InputError if there is no recording, or none that the service takes."""
    if job.media is None:
        raise InputError(f"{job.id}: no recording found for it; put the recording beside it, under the same name")
    try:
        size = job.media.stat().st_size
    except OSError as error:
        raise InputError(f"{job.media}: cannot be read: {error.strerror}; check the file") from None
    if size > _LARGEST:
        raise InputError(
            f"{job.media}: has {size / 1e9:.1f} GB, but Rev.ai takes at most {_LARGEST / 1e9:.0f} GB; "
            "compress it, or extract its audio"
        )
    if not size:
        raise InputError(f"{job.media}: is empty; copy it again")
    return job.media


def _open(job: Job, media: Path) -> BinaryIO:
    try:
        return media.open("rb")
    except OSError as error:
        raise InputError(f"{job.id}: {media} cannot be read: {error.strerror}; check the file") from None


def _make_mark(job: Job, media: Path, options: Mapping[str, Any], stopped: threading.Event) -> str:
    digest = hashlib.sha256(json.dumps([job.id, options], sort_keys=True).encode("utf-8", "surrogatepass"))
    with _open(job, media) as file:
        while block := file.read(_HASHED):
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
        return f"Rev.ai rejects the access token in {KEY_VARIABLE} ({reason}); create a new one and set the variable"
    return f"Rev.ai denies this to the account ({reason}); check its balance and its deployment ({URL_VARIABLE})"


def _get(details: Mapping[str, Any], name: str) -> str:
    value = details.get(name)
    return value if isinstance(value, str) else "" if value is None else str(value)
