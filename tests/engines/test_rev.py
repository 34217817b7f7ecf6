"""Rev.ai, played by a local HTTP server that answers as the documented API does, and by one that fails."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prefork.engines.base import InputError, Job, LoadError
from prefork.engines.rev.client import Interrupted
from prefork.engines.rev.transcriber import KEY_VARIABLE, URL_VARIABLE, Patience, RevTranscriber
from prefork.engines.rev.transcript import read_transcript
from prefork.engines.text.document import Document, Timing, Turn, Utterance, Word

pytestmark = pytest.mark.dependencies

pytest.importorskip("rev_ai", reason="needs Rev.ai's SDK, the extra [rev]")

KEY = "02-very-secret-key"
QUICK = Patience(
    first_poll=0.01, last_poll=0.04, first_retry=0.01, last_retry=0.02, longest_wait=0.3, retries=3, timeouts=(1.0, 1.0)
)
RECORDING = b"RIFF" + bytes(range(256)) * 2000
TRANSCRIPT = {
    "monologues": [
        {
            "speaker": 0,
            "elements": [
                {"type": "text", "value": "My", "ts": 0.5, "end_ts": 0.7, "confidence": 0.98},
                {"type": "punct", "value": " "},
                {"type": "text", "value": "well", "ts": 0.8, "end_ts": 1.0, "confidence": 1},
                {"type": "punct", "value": "-"},
                {"type": "text", "value": "known", "ts": 1.0, "end_ts": 1.2, "confidence": 0.9},
                {"type": "punct", "value": " "},
                {"type": "text", "value": "country", "ts": 1.2, "end_ts": 1.8, "confidence": 0.97},
                {"type": "punct", "value": "."},
                {"type": "punct", "value": " "},
                {"type": "unknown", "value": "<laugh>"},
                {"type": "punct", "value": " "},
                {"type": "unknown", "value": "<inaudible>"},
                {"type": "punct", "value": " "},
                {"type": "text", "value": "Yes", "ts": 4.0, "end_ts": 4.2, "confidence": 0.5},
                {"type": "punct", "value": "?"},
            ],
        },
        {"speaker": 1, "elements": [{"type": "text", "value": "No", "ts": 2.0, "end_ts": 2.25, "confidence": 0.75}]},
    ]
}
Fault = Callable[["_Handler"], None]


def answer(status: int, content: Any = None, **headers: str) -> Fault:
    def send(handler: _Handler) -> None:
        handler.send(status, content, {name.replace("_", "-"): value for name, value in headers.items()})

    return send


def cut_connection(handler: _Handler) -> None:
    """Without a word, and so that the other side knows at once."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut_answer(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": ')
    handler.wfile.flush()
    cut_connection(handler)


def say_nothing(handler: _Handler) -> None:
    time.sleep(1.3)
    cut_connection(handler)


def take_and_cut(handler: _Handler) -> None:
    """The job is there, but nobody is told."""
    handler.take_job()
    cut_connection(handler)


class Service(ThreadingHTTPServer):
    """faults: what goes wrong, in turn, by the beginning of a request such as `POST jobs`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.uploads: list[bytes] = []
        self.requests: list[str] = []
        self.times: list[float] = []
        self.deleted: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.polls = 2  # until a job is done
        self.ending: dict[str, Any] = {"status": "transcribed", "duration_seconds": 5.0}
        self.transcript: Any = TRANSCRIPT
        self.uploading = self.most_uploading = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections are cut here on purpose."""

    def count(self, request: str) -> int:
        return sum(entry.startswith(request) for entry in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = self.path.removeprefix("/speechtotext/v1/")
        request = f"{self.command} {path}"
        with self.server.lock:
            self.server.requests.append(request)
            self.server.times.append(time.monotonic())
            faults = next((f for begin, f in self.server.faults.items() if f and request.startswith(begin)), None)
            fault = faults.pop(0) if faults else None
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.send(401, {"title": "Authorization has been denied for this request.", "detail": KEY, "status": 401})
        elif fault is not None:
            fault(self)
        else:
            self.route(request)

    do_GET = do_POST = do_DELETE = handle_any

    def route(self, request: str) -> None:
        if request == "GET account":
            self.send(200, {"email": "a@b.c", "balance_seconds": 3600})
        elif request == "POST jobs":
            with self.server.lock:
                self.server.uploading += 1
                self.server.most_uploading = max(self.server.most_uploading, self.server.uploading)
            job = self.take_job()
            with self.server.lock:
                self.server.uploading -= 1
            self.send(200, job)
        elif request.startswith("GET jobs?limit="):
            self.send(200, list(reversed(self.server.jobs.values())))
        elif re.fullmatch(r"GET jobs/(\w+)/transcript\??", request):
            assert self.headers["Accept"] == "application/vnd.rev.transcript.v1.0+json"
            self.send(200, self.server.transcript)
        elif found := re.fullmatch(r"(GET|DELETE) jobs/(\w+)", request):
            self.answer_about(found[1], found[2])
        else:
            self.send(404, {"title": "not found"})

    def take_job(self) -> dict[str, Any]:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        options = re.search(rb'name="options".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL)
        assert options is not None and self.headers["Content-Type"].startswith("multipart/form-data; boundary=")
        with self.server.lock:
            self.server.uploads.append(body)
            id_ = f"job{len(self.server.uploads)}"
            job = {"id": id_, "created_on": "2026-01-01T00:00:00Z", "status": "in_progress", "polls": 0}
            self.server.jobs[id_] = {**job, **json.loads(options[1])}
            return self.server.jobs[id_]

    def answer_about(self, method: str, id_: str) -> None:
        job = self.server.jobs.get(id_)
        if job is None:
            self.send(404, {"title": "could not find job"})
        elif method == "DELETE":
            self.server.deleted.append(id_)
            del self.server.jobs[id_]
            self.send(204)
        else:
            job["polls"] += 1
            if job["polls"] > self.server.polls:
                job.update(self.server.ending)
            self.send(200, job)

    def send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        if self.command == "POST" and status >= 400:
            self.rfile.read(int(self.headers["Content-Length"]))
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv(URL_VARIABLE, server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    media = tmp_path / "Jane Doe.wav"
    media.write_bytes(RECORDING)
    return Job("in/Jane Doe.wav", media, media, seconds=5.0)


def start(**options: Any) -> RevTranscriber:
    transcriber = RevTranscriber(**{"patience": QUICK, **options})
    transcriber.setup()
    return transcriber


def run(transcriber: RevTranscriber, job: Job, document: Document | None = None) -> Document:
    known = document or Document((), media="talk")
    return transcriber.transcribe(job, known, threading.Event())


def get_options(service: Service) -> dict[str, Any]:
    found = re.search(rb'name="options".*?\r\n\r\n(.*?)\r\n--', service.uploads[-1], re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_a_recording_is_sent_waited_for_fetched_and_deleted(service: Service, job: Job) -> None:
    document = run(start(diarize=True), job)
    assert [(w.text, w.start, w.end, w.score) for w in document.heard] == [
        ("My", 0.5, 0.7, 0.98), ("well-known", 0.8, 1.2, 1.0), ("country.", 1.2, 1.8, 0.97),
        ("xxx", None, None, None), ("Yes?", 4.0, 4.2, 0.5), ("No", 2.0, 2.25, 0.75),
    ]  # fmt: skip
    assert [w.timing for w in document.heard[:4]] == [Timing.SERVICE] * 3 + [Timing.NONE]
    assert document.turns == (Turn("PAR0", 0.5, 1.8), Turn("PAR1", 2.0, 2.25), Turn("PAR0", 4.0, 4.2))
    assert (document.languages, document.seconds, document.media, document.warnings) == (("eng",), 5.0, "talk", ())
    assert RECORDING in service.uploads[0]
    assert service.deleted == ["job1"] and service.count("POST") == 1 and service.count("GET jobs/job1") == 4


def test_what_the_recording_is_called_is_not_told(service: Service, job: Job) -> None:
    run(start(), job)
    assert b"Jane" not in service.uploads[0] and b"recording.wav" in service.uploads[0]


@pytest.mark.parametrize(
    ("options", "languages", "sent"),
    [
        ({}, (), {"language": "en", "skip_diarization": True}),
        ({"diarize": True}, ("deu", "eng"), {"language": "de"}),
        ({"language": "zho", "delete": False}, ("eng",), {"language": "cmn", "skip_diarization": True}),
    ],
)
def test_options_are_passed_on(
    service: Service, job: Job, options: dict[str, Any], languages: tuple[str, ...], sent: dict[str, Any]
) -> None:
    document = run(start(**options), job, Document((), languages=languages))
    got = get_options(service)
    got.pop("metadata")
    kept = {} if options.get("delete") is False else {"delete_after_seconds": 604_800}
    assert got == {**sent, **kept, "remove_atmospherics": True}
    assert service.deleted == ([] if options.get("delete") is False else ["job1"])
    assert bool(document.turns) is bool(options.get("diarize"))


def test_a_transcript_that_has_its_times_is_not_sent(service: Service, job: Job) -> None:
    timed = Utterance("hi", (Word("hi"),), "CHI", 0.5, 1.0)
    transcriber = start(only_untimed=True)
    document = Document((timed, Utterance("0 .", ())))
    assert run(transcriber, job, document) is document and not service.uploads
    run(transcriber, job, Document((timed, Utterance("ho", (Word("ho"),)))))
    assert len(service.uploads) == 1


@pytest.mark.slow
@pytest.mark.parametrize("request_", ["POST jobs", "GET jobs?", "GET jobs/job1", "GET jobs/job1/transcript", "DELETE"])
@pytest.mark.parametrize(
    "fault",
    [
        answer(429, {"title": "slow down"}),
        answer(429, None, Retry_After="0"),
        answer(500),
        answer(503, b"<html>"),
        answer(200, b"{not json"),
        answer(200, {"unexpected": []}),
        cut_connection,
        cut_answer,
    ],
    ids=["429", "429 retry-after", "500", "503", "no json", "other json", "cut", "cut answer"],
)
def test_what_fails_once_or_twice_is_tried_again_and_nothing_is_sent_twice(
    service: Service, job: Job, request_: str, fault: Fault
) -> None:
    transcriber = start()
    service.faults[request_] = [fault, fault]
    document = run(transcriber, job)
    assert len(document.heard) == 6
    assert len(service.uploads) == 1


def test_a_job_whose_answer_was_lost_is_found_again(service: Service, job: Job) -> None:
    transcriber = start()
    service.faults["POST"] = [take_and_cut]
    assert len(run(transcriber, job).heard) == 6
    assert len(service.uploads) == 1 and service.count("POST") == 1


def test_a_job_of_a_run_that_was_killed_is_found_again_but_not_one_that_failed(service: Service, job: Job) -> None:
    transcriber = start(delete=False)
    run(transcriber, job)
    run(start(delete=False), job)
    assert len(service.uploads) == 1
    run(start(delete=False, diarize=True), job)  # other options
    run(start(delete=False), dataclasses.replace(job, id="other.wav"))
    assert len(service.uploads) == 3
    service.jobs["job1"]["status"] = "failed"
    run(start(delete=False), job)
    assert len(service.uploads) == 4


def test_a_service_that_says_when_to_come_back_is_obeyed(service: Service, job: Job) -> None:
    transcriber = start()
    later = email.utils.format_datetime(email.utils.localtime())
    service.faults["GET jobs?"] = [answer(429, None, Retry_After="0.2"), answer(503, None, Retry_After=later)]
    run(transcriber, job)
    times = [t for t, request in zip(service.times, service.requests, strict=True) if request.startswith("GET jobs?")]
    assert len(times) == 3 and times[1] - times[0] >= 0.2


def test_a_service_that_is_silent_is_given_up_after_its_tries(service: Service, job: Job) -> None:
    patience = dataclasses.replace(QUICK, timeouts=(1.0, 0.1), retries=1)
    transcriber = start(patience=patience)
    service.faults["GET jobs?"] = [say_nothing] * 2
    with pytest.raises(
        InputError,
        match=r"Jane Doe.wav: Rev.ai gave no valid answer .* after 2 tries: the request timed out; check the conn",
    ):
        run(transcriber, job)


@pytest.mark.parametrize(
    ("request_", "fault", "reason"),
    [
        ("POST jobs", answer(500), "gave no valid answer .* the upload of Jane Doe.wav after 4 tries: 500"),
        ("GET jobs/job1", cut_connection, "on its state after 4 tries: the connection failed or was interrupted"),
        ("GET jobs/job1/transcript", answer(200, b"{"), "its transcript after 4 tries: the answer is not JSON"),
        ("GET jobs/job1/transcript", answer(200, {"monologues": 3}), "the answer does not match the documentation"),
        ("POST jobs", answer(400, {"title": "bad", "detail": "no such language"}), "refused .*: 400 bad no such lang"),
        ("GET jobs/job1", answer(404, {"title": "could not find job"}), "refused its state: 404 could not find job"),
    ],
)
def test_what_fails_again_and_again_costs_its_own_job_and_names_reason_and_remedy(
    service: Service, job: Job, request_: str, fault: Fault, reason: str
) -> None:
    transcriber = start()
    service.faults[request_] = [fault] * 20
    with pytest.raises(InputError, match=f"^in/Jane Doe.wav: .*{reason}") as error:
        run(transcriber, job)
    assert KEY not in str(error.value)


def test_a_job_that_fails_says_why(service: Service, job: Job) -> None:
    service.ending = {"status": "failed", "failure": "empty_media", "failure_detail": "No speech was found"}
    with pytest.raises(
        InputError, match=r"^in/Jane.*No speech was found \(empty_media\); check that Jane Doe.wav plays"
    ):
        run(start(), job)
    assert service.deleted == ["job1"]


def test_an_account_without_money_ends_the_run(service: Service, job: Job) -> None:
    service.ending = {"status": "failed", "failure": "insufficient_balance", "failure_detail": "Balance is 0"}
    with pytest.raises(LoadError, match="Balance is 0"):
        run(start(), job)
    service.faults["POST"] = [answer(403, {"title": "forbidden", "detail": "insufficient credits"})]
    with pytest.raises(LoadError, match="insufficient credits"):
        run(start(), job)


def test_a_key_that_is_withdrawn_ends_the_run_and_is_not_told(
    service: Service, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = start()
    service.faults["GET jobs?"] = [answer(401, {"title": "denied", "detail": f"no access for {KEY}"})]
    with pytest.raises(LoadError, match=rf"{KEY_VARIABLE} \(401 denied no access for \*\*\*\)") as error:
        run(transcriber, job)
    assert error.value.__suppress_context__


def test_a_job_that_is_never_done_is_given_up(service: Service, job: Job) -> None:
    service.polls = 1_000_000
    with pytest.raises(InputError, match=r"has not finished it after .* h \(its job job1\)"):
        run(start(patience=dataclasses.replace(QUICK, longest_job=0.1)), job)


def test_questions_become_rarer(service: Service, job: Job) -> None:
    service.polls = 6
    run(start(patience=dataclasses.replace(QUICK, growth=2.0)), job)
    asked = [t for t, r in zip(service.times, service.requests, strict=True) if r == "GET jobs/job1"]
    gaps = [b - a for a, b in pairwise(asked)]
    assert len(gaps) == 6
    assert all(gap >= least for gap, least in zip(gaps, [0.01, 0.02, 0.04, 0.04, 0.04, 0.04], strict=True))


def test_a_recording_that_cannot_be_deleted_there_is_reported(service: Service, job: Job) -> None:
    transcriber = start()
    service.faults["DELETE"] = [answer(500)] * 9
    document = run(transcriber, job)
    assert len(document.heard) == 6 and "its job job1 could not be deleted" in document.warnings[0]


def test_stopping_ends_the_waiting_at_once(service: Service, job: Job) -> None:
    service.polls = 1_000_000
    transcriber = start(patience=dataclasses.replace(QUICK, first_poll=60.0))
    stopped = threading.Event()
    timer = threading.Timer(0.2, stopped.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        transcriber.transcribe(job, Document(()), stopped)
    assert time.monotonic() - begun < 2
    timer.join()


def test_stopping_ends_an_upload(service: Service, job: Job) -> None:
    transcriber = start()
    stopped = threading.Event()

    def stop(handler: _Handler) -> None:
        stopped.set()
        time.sleep(0.1)
        handler.rfile.read(1000)
        time.sleep(0.1)

    assert job.media is not None
    job.media.write_bytes(bytes(50_000_000))  # more than sockets hold
    service.faults["POST"] = [stop]
    with pytest.raises(Interrupted):
        transcriber.transcribe(job, Document(()), stopped)
    assert not service.uploads


def test_a_connection_that_is_cut_in_the_middle_of_an_upload_is_made_again(service: Service, job: Job) -> None:
    assert job.media is not None
    job.media.write_bytes(bytes(20_000_000))

    def cut(handler: _Handler) -> None:
        handler.rfile.read(1_000_000)
        cut_connection(handler)

    transcriber = start()
    service.faults["POST"] = [cut, cut]
    assert len(run(transcriber, job).heard) == 6
    assert len(service.uploads) == 1 and service.count("POST") == 3


def test_an_upload_does_not_hold_the_recording_in_memory(service: Service, job: Job) -> None:
    assert job.media is not None
    with job.media.open("wb") as file:
        file.truncate(100_000_000)
    transcriber = start()

    def refuse(handler: _Handler) -> None:
        left = int(handler.headers["Content-Length"])
        while left:
            left -= len(handler.rfile.read(min(left, 1 << 16)))
        handler.command = "DONE"  # the body is read
        handler.send(413, {"title": "too large"})

    service.faults["POST"] = [refuse]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="413 too large"):
            run(transcriber, job)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_several_jobs_at_once_get_their_own_transcripts(service: Service, tmp_path: Path) -> None:
    transcriber = start()
    jobs = []
    for index in range(12):
        media = tmp_path / f"{index}.wav"
        media.write_bytes(b"%d" % index * 1000)
        jobs.append(Job(media.name, media, media))
    with ThreadPoolExecutor(transcriber.in_flight) as pool:
        documents = list(pool.map(lambda job: run(transcriber, job), jobs))
    assert all(len(document.heard) == 6 for document in documents)
    assert len(service.uploads) == 12 and len(service.deleted) == 12 and service.most_uploading <= 5


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (KEY_VARIABLE, None, "REV_API_KEY is not set"),
        (KEY_VARIABLE, "  ", "REV_API_KEY is not set"),
        (KEY_VARIABLE, "wrong-key", r"rejects the access token in REV_API_KEY \(401"),
        (KEY_VARIABLE, "two\nlines", "REV_API_KEY contains characters that no access token has"),
        (URL_VARIABLE, "rev.ai", "REV_API_URL is not the address of a service: 'rev.ai'"),
        (
            URL_VARIABLE,
            "http://127.0.0.1:9",
            "Rev.ai gave no valid answer on the account after 3 tries: the connection",
        ),
    ],
)
def test_a_service_that_cannot_be_used_is_said_before_anything_is_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, message: str
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(LoadError, match=message) as error:
        start()
    assert value is None or variable == URL_VARIABLE or not value.strip() or value not in str(error.value)


def test_a_missing_sdk_is_named_with_what_to_type(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rev_ai.apiclient", None)
    with pytest.raises(LoadError, match=r'pip install "rev-ai'):
        start()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda media: media.unlink(), "cannot be read: No such file"),
        (lambda media: media.write_bytes(b""), "is empty"),
        (
            lambda media: media.open("wb").truncate(2_000_000_001),
            "has 2.0 GB, but Rev.ai takes at most 2 GB; compress it",
        ),
    ],
)
def test_a_recording_that_cannot_be_sent_is_refused_here(
    service: Service, job: Job, change: Callable[[Path], Any], reason: str
) -> None:
    transcriber = start()
    assert job.media is not None
    change(job.media)
    with pytest.raises(InputError, match=reason):
        run(transcriber, job)
    assert not service.uploads


def test_more_uploads_than_the_service_allows_are_refused() -> None:
    with pytest.raises(LoadError, match="in_flight must be 1 to 5"):
        RevTranscriber(in_flight=6)


def test_settings_are_in_the_fingerprint_and_the_key_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    prints = [
        json.dumps(RevTranscriber(**options).fingerprint()) for options in ({}, {"language": "de"}, {"diarize": True})
    ]
    assert len(set(prints)) == 3 and KEY not in "".join(prints)


def test_odd_transcripts_are_read_as_far_as_they_go() -> None:
    elements = [
        {"type": "punct", "value": "."},
        {"type": "text", "value": "<affirmative>", "ts": 0.0, "end_ts": 0.1, "confidence": 1.0},
        {"type": "text", "value": "reversed", "ts": 2.0, "end_ts": 1.0, "confidence": 7},
        {"type": "punct", "value": "-"},
        {"type": "punct", "value": " "},
        {"type": "text", "value": "untimed", "ts": None},
        {"type": "unknown", "value": "?", "ts": 3.0, "end_ts": 3.5},
    ]
    words, turns = read_transcript(
        {"monologues": [{"speaker": 3, "elements": elements}, {"speaker": 0, "elements": []}]}
    )
    assert [(w.text, w.start, w.end, w.score) for w in words] == [
        ("reversed-", 2.0, 2.0, 1.0), ("untimed", None, None, None), ("xxx", 3.0, 3.5, None)
    ]  # fmt: skip
    assert turns == (Turn("PAR3", 2.0, 3.5),)
    assert read_transcript({"monologues": []}) == ((), ())


def test_torch_stays_out_of_the_supervisor() -> None:
    script = (
        "import sys, prefork.engines.rev.transcriber, prefork.engines.rev.client as rev; "
        "rev.make_client('key', 'http://127.0.0.1', (1, 1)); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
