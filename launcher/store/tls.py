"""Certificates: read before they reach grpc, and looked at again when a connection fails.

grpc says of every failed handshake only that it could not connect. Python's own ``ssl`` says why, so when a cluster
does not answer we shake hands with each member once ourselves and turn the outcome into one clear line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from tlaunch.errors import InputError
from tlaunch.launcher.store.endpoints import Endpoints, split_host

_CLIENT_CERTIFICATE_ALERTS = ("BAD_CERTIFICATE", "CERTIFICATE_REQUIRED", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN")


@dataclass(frozen=True, slots=True)
class Pem:
    """The contents of the files that ``Endpoints`` names."""

    ca: bytes | None
    key: bytes | None
    cert: bytes | None


def read(endpoints: Endpoints) -> Pem | None:
    """Read and check the certificates; ``None`` when the cluster speaks no TLS. Raises ``InputError``."""
    if not endpoints.secure:
        return None
    _context(endpoints)
    return Pem(_bytes(endpoints.ca), _bytes(endpoints.key), _bytes(endpoints.cert))


async def why_refused(endpoints: Endpoints, timeout: float) -> str | None:
    """Shake hands with every member and return the first reason why TLS cannot work, or ``None``.

    A member that cannot be reached within ``timeout`` seconds tells nothing: that is not a matter of certificates.
    """
    reasons = await asyncio.gather(*(_try_member(endpoints, host, timeout) for host in endpoints.hosts))
    return next(filter(None, reasons), None)


async def _try_member(endpoints: Endpoints, host: str, timeout: float) -> str | None:
    context = _context(endpoints) if endpoints.secure else _trusting_context()
    name, port = split_host(host)
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(name, port, ssl=context, server_hostname=name)
            try:
                # In TLS 1.3 a server objects to our certificate only after we think that all is well.
                await reader.read(1)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except ssl.SSLError as error:
        return _reason(endpoints, host, error) if endpoints.secure else None
    except (OSError, TimeoutError):
        return None
    return None if endpoints.secure else f"etcd at {host} speaks TLS: expected https://{host} and its CA certificate"


def _reason(endpoints: Endpoints, host: str, error: ssl.SSLError) -> str:
    what = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        if "mismatch" in error.verify_message:
            return f"etcd at {host}: {error.verify_message.rstrip('.')}; expected a certificate for the host as given"
        authority = endpoints.ca or "any known authority: give its CA certificate"
        return f"etcd at {host}: its certificate is not signed by {authority} ({error.verify_message})"
    if any(alert in what for alert in _CLIENT_CERTIFICATE_ALERTS):
        if endpoints.cert is None:
            return f"etcd at {host} wants a client certificate: give --etcd-cert and --etcd-key"
        return (
            f"etcd at {host} refuses the client certificate {endpoints.cert}; expected one signed by the cluster's CA"
        )
    if what in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return f"etcd at {host} speaks no TLS: expected http://{host} and no certificates"
    return f"etcd at {host}: the TLS handshake failed ({what})"


def _context(endpoints: Endpoints) -> ssl.SSLContext:
    """Make a context that checks as grpc does, or raise ``InputError`` for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=endpoints.ca)
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"{endpoints.ca}: not a CA certificate ({_brief(error)}); expected a PEM file") from error
    context.set_alpn_protocols(["h2"])
    if endpoints.cert and endpoints.key:
        try:
            # An empty password, because without one a protected key would ask for it on the terminal.
            context.load_cert_chain(endpoints.cert, endpoints.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise InputError(
                f"{endpoints.cert} and {endpoints.key}: not a certificate with its key ({_brief(error)}); "
                "expected PEM files, the key without a password"
            ) from error
    return context


def _trusting_context() -> ssl.SSLContext:
    """Make a context to find out whether the other side speaks TLS at all; nothing is ever sent over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _brief(error: OSError) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or error.strerror or str(error)


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
