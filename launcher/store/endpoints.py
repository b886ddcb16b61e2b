"""Where an etcd cluster is and how to be let in, as the user gives it: flags first, then the environment.

The variables are ``TLAUNCH_ETCD``, ``TLAUNCH_ETCD_USER``, ``TLAUNCH_ETCD_PASSWORD``, ``TLAUNCH_ETCD_CACERT``,
``TLAUNCH_ETCD_CERT`` and ``TLAUNCH_ETCD_KEY``. A password has no flag of its own, because every user of a machine can
read the arguments of its processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tlaunch.errors import InputError

ETCD = "TLAUNCH_ETCD"
USER = "TLAUNCH_ETCD_USER"
PASSWORD = "TLAUNCH_ETCD_PASSWORD"  # noqa: S105  the name of a variable, not a password
CACERT = "TLAUNCH_ETCD_CACERT"
CERT = "TLAUNCH_ETCD_CERT"
KEY = "TLAUNCH_ETCD_KEY"
VARIABLES = frozenset({ETCD, USER, PASSWORD, CACERT, CERT, KEY})

_EXPECTED = "expected host:port, http://host:port or https://host:port, separated by commas"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The members of one etcd cluster. ``hosts`` are ``host:port``, an IPv6 address in brackets.

    ``ca`` is the file of certificates that a member's must be signed by, grpc's own list when ``None``; ``cert`` and
    ``key`` are our own, for clusters that ask for one. With ``secure`` the certificate of each member must be valid for
    the host as written in ``hosts``. All files are PEM.
    """

    hosts: tuple[str, ...]
    secure: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        return ", ".join(self.hosts)

    @classmethod
    def given(
        cls,
        text: str | None = None,
        *,
        env: Mapping[str, str],
        user: str | None = None,
        cacert: str | None = None,
        cert: str | None = None,
        key: str | None = None,
    ) -> Endpoints | None:
        """Combine flags and environment; ``None`` when neither ``--etcd`` nor ``TLAUNCH_ETCD`` names a cluster."""
        text = text or env.get(ETCD)
        return cls.parse(text, env=env, user=user, cacert=cacert, cert=cert, key=key) if text else None

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        env: Mapping[str, str],
        user: str | None = None,
        cacert: str | None = None,
        cert: str | None = None,
        key: str | None = None,
    ) -> Endpoints:
        """Read ``text``, the value of ``--etcd``. The other arguments are flags, which win over ``env``.

        Raises:
            InputError: what is wrong, where it was given, and what was expected; never with a password in it.

        """
        ca_file = _file("--etcd-cacert", cacert, CACERT, env)
        cert_file = _file("--etcd-cert", cert, CERT, env)
        key_file = _file("--etcd-key", key, KEY, env)
        if (cert_file is None) != (key_file is None):
            raise InputError("a client certificate needs its key: give both --etcd-cert and --etcd-key")
        scheme, hosts = _hosts(text)
        if scheme == "http" and (ca_file or cert_file):
            raise InputError("the etcd endpoints say http:// but certificates are given; expected https://")
        name, password = _user(user, env)
        return cls(
            hosts=hosts,
            secure=scheme == "https" or ca_file is not None or cert_file is not None,
            user=name,
            password=password,
            ca=ca_file,
            cert=cert_file,
            key=key_file,
        )

    def environment(self) -> dict[str, str]:
        """Return the variables with which a child process finds the same cluster. They hold the password."""
        scheme = "https://" if self.secure else "http://"
        values: dict[str, str | None] = {
            ETCD: ",".join(scheme + host for host in self.hosts),
            USER: self.user,
            PASSWORD: self.password,
            CACERT: str(self.ca.absolute()) if self.ca else None,
            CERT: str(self.cert.absolute()) if self.cert else None,
            KEY: str(self.key.absolute()) if self.key else None,
        }
        return {name: value for name, value in values.items() if value is not None}


def split_host(host: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[address]:port`` into the bare host and the port."""
    name, _, port = host.rpartition(":")
    return name.removeprefix("[").removesuffix("]"), int(port)


def _hosts(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the scheme that all endpoints share (``None``: none was written) and the hosts without it."""
    schemes: set[str | None] = set()
    hosts: dict[str, None] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        scheme, separator, rest = part.rpartition("://")
        host = _host(rest, part)
        schemes.add(scheme.lower() if separator else None)
        hosts[host] = None
    if not hosts:
        raise InputError(f"no etcd endpoint given; {_EXPECTED}")
    if len(schemes) > 1:
        raise InputError("the etcd endpoints mix http, https and none; expected the same for all of them")
    scheme_found = schemes.pop()
    if scheme_found not in {None, "http", "https"}:
        raise InputError(f"etcd endpoints cannot be reached by {scheme_found!r}; {_EXPECTED}")
    return scheme_found, tuple(hosts)


def _host(rest: str, part: str) -> str:
    """Check one ``host:port``; ``part`` is the whole as it was given."""
    if "@" in rest:
        raise InputError(f"an etcd endpoint cannot hold a user or password: use --etcd-user or {USER} and {PASSWORD}")
    rest = rest.removesuffix("/")
    name, separator, port = rest.rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]")
    if not separator or not name.strip("[]") or (":" in name and not bracketed) or any(c in "/ ?#" for c in name):
        raise InputError(f"bad etcd endpoint {part!r}; {_EXPECTED}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise InputError(f"bad port in etcd endpoint {part!r}; expected a number from 1 to 65535")
    return rest


def _user(flag: str | None, env: Mapping[str, str]) -> tuple[str | None, str | None]:
    given = flag or env.get(USER) or ""
    name, separator, inline = given.partition(":")
    password = inline if separator else env.get(PASSWORD)
    if not name and (separator or password):
        raise InputError(f"an etcd password is given but no user: use --etcd-user or {USER}")
    if name and not password:
        raise InputError(f"no password for etcd user {name!r}: set {PASSWORD}")
    return (name, password) if name else (None, None)


def _file(flag: str, value: str | None, variable: str, env: Mapping[str, str]) -> Path | None:
    source, text = (flag, value) if value else (variable, env.get(variable))
    if not text:
        return None
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{source}: no such file {text}; expected a PEM file")
    return path
