"""Who may connect: Dask runs whatever it is sent, so that whoever can connect to a cluster has its machines.

A cluster has a certificate authority of its own, which signs one certificate and is forgotten. Who has that certificate
and its key is a machine, a scheduler or a driver of the cluster; both ends of each connection ask for it.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

from distributed import Security

from prefork.cluster.handshake import check_pair, explain_dates
from prefork.engines.base import LoadError
from prefork.platform_matrix.systems import SYSTEM

_NAMES = ("ca.pem", "certificate.pem", "key.pem")
_DAYS = 3650


def make_certificates(folder: Path) -> list[Path]:
    """Makes the folder and its three files, which this user alone can read. Raises LoadError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def describe(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.datetime.now(datetime.UTC)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    common = (
        x509.CertificateBuilder()
        .issuer_name(describe("prefork cluster authority"))
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )
    root = (
        common.subject_name(describe("prefork cluster authority"))
        .public_key(authority.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    leaf = (
        common.subject_name(describe("prefork cluster"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    contents = dict(zip(_NAMES, (root.public_bytes(pem), leaf.public_bytes(pem), private), strict=True))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if there := [name for name in _NAMES if (folder / name).exists()]:
            raise LoadError(f"{folder / there[0]}: is there already; give another DIR, or remove it")
        folder.chmod(0o700)
        for name, content in contents.items():
            fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SYSTEM.no_link, 0o600)
            with open(fd, "wb") as file:
                file.write(content)
    except OSError as error:
        raise LoadError(f"{folder}: cannot be written: {error.strerror or error}; give another DIR") from error
    return [folder / name for name in _NAMES]


def read_certificates(folder: Path) -> Security:
    """Raises LoadError if there are none, if they are damaged, have expired or do not belong together, or if others
    can read the key."""
    paths = [folder / name for name in _NAMES]
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise LoadError(
                f"{path}: {error.strerror or error}; make certificates: prefork cluster init DIR, and give --tls DIR"
            ) from error
        if path.name == "key.pem" and (SYSTEM.is_other_user(status) or status.st_mode & 0o077):
            raise LoadError(f"{path}: others can read it, and so can connect; make it yours alone: chmod 600 {path}")
    ca, certificate, key = map(str, paths)
    try:
        check_pair(ca, certificate, key)
    except ssl.SSLCertVerificationError as error:
        other = "is not signed by its ca.pem; take all files of one prefork cluster init DIR"
        raise LoadError(f"{folder}: its certificate {explain_dates(error) or other}") from error
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{folder}: its files are no certificates ({error}); make others: prefork cluster init DIR"
        ) from error
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        **{f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")},
        **{f"tls_{role}_key": key for role in ("client", "scheduler", "worker")},
    )


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine can connect to."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(address: str, security: Security | None) -> None:
    """Raises LoadError for a scheduler that anybody could connect to, and for what we cannot talk to."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("tls", "tcp") or not parts.hostname or not port:
        raise LoadError(f"{address}: is no address of a scheduler, such as tls://10.0.0.1:8786")
    if parts.scheme == "tls":
        if security is None:
            raise LoadError(f"{address}: asks for certificates; give --tls DIR, which prefork cluster init has made")
        return
    if not is_loopback(parts.hostname):
        raise LoadError(
            f"{address}: whoever reaches this address can run anything on the cluster, as it has no TLS; start it with "
            "certificates: prefork cluster init DIR, then prefork cluster start FILE --tls DIR"
        )
    if security is not None and security.require_encryption:
        raise LoadError(
            f"{address}: is an address without TLS, and certificates were given; leave out --tls, or if its scheduler "
            "has certificates give its address as tls://"
        )


def check_trust(path: Path) -> None:
    """Raises LoadError if others could have written a file that says whom we are to trust."""
    status = path.stat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if (SYSTEM.is_other_user(status) and status.st_uid) or writable:
        raise LoadError(
            f"{path}: others can write it, and so say where to connect; make it yours alone: chmod 600 {path}"
        )
