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
    """Try what we are about to do, and if that fails the opposite."""
    try:
        async with asyncio.timeout(timeout):
            if not endpoints.secure:
                speaks_tls = await _speaks_tls(host)
                return (
                    f"etcd at {host} speaks TLS: expected https://{host} and its CA certificate" if speaks_tls else None
                )
            try:
                await _exchange(host, _context(endpoints))
                return None
            except ssl.SSLCertVerificationError as error:
                return _distrust(endpoints, host, error)
            except ssl.SSLError as error:
                if _is_alert(error):
                    return _rejection(endpoints, host, error)
            except OSError:
                pass
            if (await _exchange(host, None, b"GET /version HTTP/1.0\r\n\r\n")).startswith(b"HTTP/"):
                return f"etcd at {host} speaks no TLS: expected http://{host} and no certificates"
    except (OSError, TimeoutError):
        pass
    return None


async def _exchange(host: str, context: ssl.SSLContext | None, request: bytes = b"") -> bytes:
    """Connect, say something, and return the beginning of the answer. Raises ``OSError``, of which TLS's are a kind."""
    name, port = split_host(host)
    reader, writer = await asyncio.open_connection(name, port, ssl=context, server_hostname=context and name)
    try:
        writer.write(request)
        # In TLS 1.3 a server objects to our certificate only after we think that all is well.
        return await reader.read(16)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _speaks_tls(host: str) -> bool:
    """Find out by a handshake that checks nothing; nothing is ever sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load the authorities that a default one trusts takes 0.04 s
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        await _exchange(host, context)
    except ssl.SSLError as error:
        return _is_alert(error)
    return True


def _is_alert(error: ssl.SSLError) -> bool:
    """Whether it is the other side that has refused, in TLS."""
    return "ALERT" in (error.reason or "")


def _distrust(endpoints: Endpoints, host: str, error: ssl.SSLCertVerificationError) -> str:
    """Say why we do not trust the member."""
    if "mismatch" in error.verify_message:
        return f"etcd at {host}: {error.verify_message.rstrip('.')}; expected a certificate for the host as given"
    authority = endpoints.ca or "any known authority: give its CA certificate"
    return f"etcd at {host}: its certificate is not signed by {authority} ({error.verify_message})"


def _rejection(endpoints: Endpoints, host: str, error: ssl.SSLError) -> str:
    """Say why the member does not trust us."""
    if not any(alert in (error.reason or "") for alert in _CLIENT_CERTIFICATE_ALERTS):
        return f"etcd at {host} refuses the TLS handshake ({error.reason})"
    if endpoints.cert is None:
        return f"etcd at {host} wants a client certificate: give --etcd-cert and --etcd-key"
    return f"etcd at {host} refuses the client certificate {endpoints.cert}; expected one signed by the cluster's CA"


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


def _brief(error: OSError) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or error.strerror or str(error)


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
