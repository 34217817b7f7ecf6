"""What is wrong between two ends of a connection, by name: Dask says of all of it that a time has run out.

Before Dask connects, this does: once, with the certificates that it would use. A scheduler speaks first, in the clear
or over TLS, and its first message says what it is.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from distributed import Security

from prefork.engines.base import LoadError

_ANSWER_SECONDS = 10.0
_SILENT_SECONDS = 1.0  # a scheduler without TLS has spoken by then, if it is not busy
_GREETING = b"pickle-protocol"  # is in the first message of Dask's schedulers
_GREETING_BYTES = 4096
_TURNS = 4  # of both ends, for all messages of a handshake
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID
_ANOTHER = "something else than a scheduler listens there; give a scheduler's address"
_OWN = "give the --tls DIR that its scheduler was started with, or a copy of it"
_AGAIN = "make others: prefork cluster init DIR, and start the cluster again with them"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scheduler is, and how to talk to it."""

    address: str
    security: Security | None


class UnreachableError(LoadError):
    """There is no scheduler; there may be one later."""


def check_scheduler(place: Place) -> None:
    """Connects to a scheduler as Dask will, and says at once what is in the way. Raises UnreachableError where waiting
    may help, and LoadError where something has to be changed."""
    context: Any = None
    if place.security is not None and place.address.startswith("tls:"):
        context = place.security.get_connection_args("client").get("ssl_context")
    try:
        if _greets(place.address, context, _ANSWER_SECONDS):
            return
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:  # it may be about to end
        raise UnreachableError(_describe_silence(place.address, error)) from error
    except ssl.SSLError as error:
        raise LoadError(f"{place.address}: {_explain(place.address, error)}") from error
    raise LoadError(f"{place.address}: {_ANOTHER}")


def _greets(address: str, context: ssl.SSLContext | None, seconds: float) -> bool:
    """Whether a scheduler speaks; False if something else does. Raises UnreachableError, ssl.SSLError."""
    deadline = time.monotonic() + seconds
    with _connect(address, seconds) as plain:
        if context is None:
            plain.settimeout(_SILENT_SECONDS)
            with suppress(TimeoutError):
                return _read_greeting(plain, deadline)
            if _has_tls(address):
                raise LoadError(f"{address}: has certificates; give its address as tls://, and --tls DIR")
            plain.settimeout(seconds)
            connection = plain
        else:
            try:
                connection = context.wrap_socket(plain)
            except TimeoutError as error:
                raise UnreachableError(_describe_silence(address, error)) from error
        with connection:
            try:
                return _read_greeting(connection, deadline)
            except TimeoutError as error:
                raise UnreachableError(_describe_silence(address, error)) from error


def _connect(address: str, seconds: float) -> socket.socket:
    parts = urlsplit(address)
    try:
        return socket.create_connection((parts.hostname, parts.port), timeout=seconds)
    except OSError as error:
        raise UnreachableError(_describe_silence(address, error)) from error


def _read_greeting(connection: socket.socket, deadline: float) -> bool:
    """Whether what comes first is of a scheduler. Raises TimeoutError."""
    said = b""
    while _GREETING not in said and len(said) < _GREETING_BYTES:
        if time.monotonic() > deadline:
            raise TimeoutError("it says next to nothing")
        some = connection.recv(_GREETING_BYTES)
        if not some:
            raise ConnectionAbortedError("it closes the connection")
        said += some
    return _GREETING in said


def _has_tls(address: str) -> bool:
    """Whether what listens there understands TLS, whatever it thinks of who asks."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _connect(address, _SILENT_SECONDS) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, LoadError):
        return False


def _describe_silence(address: str, error: OSError) -> str:
    what = " ".join(str(error.strerror or error).split())
    return (
        f"{address}: the scheduler does not answer ({what}); is it running, can this machine reach it, and does "
        "nothing else listen there?"
    )


def _explain(address: str, error: ssl.SSLError) -> str:
    """What an error of TLS with a scheduler means, and the remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if dates := explain_dates(error):
            return f"its certificate {dates}"
        return f"its certificate is another cluster's than ours ({error.verify_message}); {_OWN}"
    reason = error.reason or str(error)
    if "EXPIRED" in reason:
        return f"says that our certificate has expired; compare the clocks of both machines, or {_AGAIN}"
    if "ALERT" in reason:
        return f"refuses our certificate as another cluster's ({reason.lower().replace('_', ' ')}); {_OWN}"
    plain = address.replace("tls://", "tcp://", 1)
    with suppress(OSError, LoadError):
        if _greets(plain, None, _SILENT_SECONDS):
            return (
                "is a scheduler without TLS, and certificates were given; at 127.0.0.1 leave out --tls and give "
                f"{plain}, elsewhere start it with certificates: prefork cluster start FILE --tls DIR"
            )
    return _ANOTHER


def explain_dates(error: ssl.SSLCertVerificationError) -> str:
    """Of a certificate that is not valid at this time, and the remedy; empty if something else is the matter."""
    if error.verify_code == _NOT_YET:
        return "is not valid yet; is this machine's clock right?"
    return f"has expired; is this machine's clock right? If so, {_AGAIN}" if error.verify_code == _EXPIRED else ""


def check_pair(ca: str, certificate: str, key: str) -> None:
    """Whether both ends of a connection would have the certificate, by a connection in memory. Raises ssl.SSLError,
    OSError."""
    client = ssl.create_default_context(cafile=ca)
    client.check_hostname = False
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    server.verify_mode = ssl.CERT_REQUIRED
    for context in (client, server):
        context.load_cert_chain(certificate, key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)]
    for end in ends * _TURNS:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
