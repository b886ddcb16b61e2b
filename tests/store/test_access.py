"""Who is let in: users and passwords, certificates, and what is said to those who are not."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.certs import Authority, Pair
from tests.store.members import DEADLINE, Member, ctl, free_ports, single, until_healthy
from tlaunch.errors import InputError
from tlaunch.launcher.store import EtcdStore, Mirror, connect, connect_and_get, tls
from tlaunch.launcher.store.endpoints import Endpoints
from tlaunch.launcher.store.protocol import Change, StoreRefused, StoreUnavailable

WITHIN = 10.0
EXPIRED = 2.5  # a token of one second lives up to two, as etcd looks once a second


async def refusal(endpoints: Endpoints, timeout: float = WITHIN) -> str:
    """The one line with which a cluster does not let us in."""
    began = time.monotonic()
    with pytest.raises(StoreRefused) as caught:
        await connect(endpoints, timeout=timeout)
    # What cannot get better is not waited for.
    assert time.monotonic() - began < timeout / 2
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


async def works(endpoints: Endpoints) -> str:
    """Write and read, and return the member that did it."""
    store = await connect(endpoints)
    try:
        await store.put("k", b"v")
        again, found = await connect_and_get(endpoints, "k")
        await again.close()
        assert found is not None
        assert found.value == b"v"
        return store.member
    finally:
        await store.close()


# --- users and passwords ---


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """An etcd with users, whose tokens expire within about two seconds."""
    flags = ("--auth-token", "simple", "--auth-token-ttl", "1", "--bcrypt-cost", "4")
    with single(tmp_path_factory.mktemp("guarded"), flags=flags) as member:
        until_healthy([member])
        for command in (
            "user add root:secret",
            "user add small:secret2",
            "role add few",
            "role grant-permission few --prefix=true readwrite few/",
            "user grant-role small few",
            "user grant-role root root",
            "auth enable",
        ):
            ctl([member], *command.split())
        yield member


def login(member: Member, **env: str) -> Endpoints:
    return Endpoints.parse(member.host, env={f"TLAUNCH_ETCD_{name}": value for name, value in env.items()})


async def test_the_right_password_opens(guarded: Member) -> None:
    await works(login(guarded, USER="root:secret"))
    await works(login(guarded, USER="root", PASSWORD="secret"))


@pytest.mark.parametrize("user", ["root:wrong-secret", "nobody:secret"])
async def test_a_wrong_password_is_refused(guarded: Member, user: str) -> None:
    message = await refusal(login(guarded, USER=user))
    assert f"etcd at {guarded.host} refuses user {user.partition(':')[0]!r}" in message
    assert "expected the right password" in message


async def test_no_password_is_refused(guarded: Member) -> None:
    assert "wants a user and password: give --etcd-user" in await refusal(login(guarded))


async def test_a_user_with_few_rights_has_those(guarded: Member) -> None:
    store = await connect(login(guarded, USER="small:secret2"))
    await store.put("few/k", b"v")
    lease = await store.lease(5)
    async with Mirror(store, "few/") as mirror:
        assert set(mirror.items) == {"few/k"}
    for call in (store.put("other/k", b"v"), store.list(""), store.delete("other/k")):
        with pytest.raises(StoreRefused, match="permission denied; expected a user whose role allows it"):
            await call
    async with aclosing(store.watch("other/", 1)) as stream:
        with pytest.raises(StoreRefused, match="refuses a watch of 'other/'"):
            await anext(stream)
    await lease.revoke()
    await store.close()


async def test_a_token_that_expires_is_replaced(guarded: Member) -> None:
    calling, watching = [await connect(login(guarded, USER="root:secret")) for _ in range(2)]
    start = await calling.put("token/k", b"1")
    lease = await calling.lease(5)
    old = {store: store._session.token for store in (calling, watching)}
    await asyncio.sleep(EXPIRED)
    # Many calls at once, for which one new token is enough.
    logins: list[object] = []
    member = calling._session.cluster.first
    authenticate = member.auth.Authenticate

    def counting(*args: object, **kwargs: object) -> object:
        logins.append(args)
        return authenticate(*args, **kwargs)

    member.auth.Authenticate = counting
    await asyncio.gather(*(calling.put("token/k", b"2") for _ in range(10)))
    assert len(logins) == 1
    # A watch, which etcd 3.5 refuses as if a permission were missing.
    async with asyncio.timeout(WITHIN), aclosing(watching.watch("token/", start)) as stream:
        found: list[Change] = []
        async for changes in stream:
            found += changes.changes
            if len(found) == 10:
                break
    assert all(store._session.token not in {token, None} for store, token in old.items())
    assert lease.valid
    await lease.revoke()
    for store in (calling, watching):
        await store.close()


async def test_a_password_is_not_needed_where_nobody_asks(tmp_path: Path) -> None:
    with single(tmp_path) as member:
        await works(login(member, USER="root:secret"))


# --- certificates ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "stranger")


def tls_flags(server: Pair, authority: Authority | None = None) -> tuple[str, ...]:
    """What makes an etcd speak TLS, and ask for certificates if there is an authority to check them with."""
    flags = ("--cert-file", str(server.cert), "--key-file", str(server.key))
    return flags if authority is None else (*flags, "--client-cert-auth", "--trusted-ca-file", str(authority.cert))


@pytest.fixture(scope="module")
def secured(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """An etcd that wants certificates, and has one for the name ``localhost`` but for no address."""
    server = authority.issue("server", dns=("localhost",))
    listen = [f"https://127.0.0.1:{port}" for port in free_ports(2)]
    with single(tmp_path_factory.mktemp("secured"), listen=listen, flags=tls_flags(server, authority)) as member:
        yield member


@pytest.fixture(scope="module")
def mine(authority: Authority) -> Pair:
    return authority.issue("client")


def ports(member: Member) -> list[str]:
    return [url.rpartition(":")[2] for url in member.urls]


def certified(hosts: str, authority: Authority, pair: Pair | None = None) -> Endpoints:
    files: Mapping[str, str] = {"cert": str(pair.cert), "key": str(pair.key)} if pair else {}
    return Endpoints.parse(hosts, env={}, cacert=str(authority.cert), **files)


async def test_the_right_certificates_open(secured: Member, authority: Authority, mine: Pair) -> None:
    await works(certified(f"https://localhost:{ports(secured)[0]}", authority, mine))
    await works(certified(f"localhost:{ports(secured)[0]}", authority, mine))


async def test_the_name_is_checked_at_each_of_several_endpoints(
    secured: Member, authority: Authority, mine: Pair
) -> None:
    good, bad = (port for port in ports(secured))
    both = certified(f"127.0.0.1:{bad},localhost:{good}", authority, mine)
    for _ in range(4):  # whichever of the two is asked first
        assert await works(both) == f"localhost:{good}"


async def test_a_certificate_for_another_host_is_refused(secured: Member, authority: Authority, mine: Pair) -> None:
    host = f"127.0.0.1:{ports(secured)[0]}"
    message = await refusal(certified(host, authority, mine))
    assert f"etcd at {host}" in message
    assert "mismatch" in message
    assert "expected a certificate for the host as given" in message


async def test_a_wrong_authority_is_refused(secured: Member, stranger: Authority, mine: Pair) -> None:
    message = await refusal(certified(f"localhost:{ports(secured)[0]}", stranger, mine))
    assert f"its certificate is not signed by {stranger.cert}" in message


async def test_an_unknown_authority_is_refused(secured: Member) -> None:
    message = await refusal(Endpoints.parse(f"https://localhost:{ports(secured)[0]}", env={}))
    assert "not signed by any known authority: give its CA certificate" in message


async def test_a_missing_client_certificate_is_refused(secured: Member, authority: Authority) -> None:
    message = await refusal(certified(f"localhost:{ports(secured)[0]}", authority))
    assert "wants a client certificate: give --etcd-cert and --etcd-key" in message


async def test_a_wrong_client_certificate_is_refused(
    secured: Member, authority: Authority, stranger: Authority
) -> None:
    pair = stranger.issue("client")
    message = await refusal(certified(f"localhost:{ports(secured)[0]}", authority, pair))
    assert f"refuses the client certificate {pair.cert}" in message


async def test_tls_is_missing_on_our_side(secured: Member) -> None:
    host = f"localhost:{ports(secured)[0]}"
    assert f"etcd at {host} speaks TLS: expected https://{host}" in await refusal(Endpoints.parse(host, env={}))


async def test_tls_is_missing_on_their_side(guarded: Member, authority: Authority) -> None:
    message = await refusal(certified(guarded.host, authority))
    assert f"etcd at {guarded.host} speaks no TLS: expected http://{guarded.host}" in message


async def test_where_tls_works_nothing_is_blamed_on_it(secured: Member, authority: Authority, mine: Pair) -> None:
    assert await tls.why_refused(certified(f"localhost:{ports(secured)[0]}", authority, mine), WITHIN) is None


async def test_files_that_are_no_certificates_are_named(authority: Authority, mine: Pair, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    for endpoints in (
        Endpoints.parse("a:1", env={}, cacert=str(junk)),
        Endpoints.parse("a:1", env={}, cacert=str(authority.cert), cert=str(junk), key=str(mine.key)),
        Endpoints.parse("a:1", env={}, cacert=str(authority.cert), cert=str(mine.cert), key=str(authority.cert)),
    ):
        with pytest.raises(InputError, match=r"expected .*PEM") as caught:
            await connect(endpoints)
        assert str(tmp_path) in str(caught.value) or str(mine.cert) in str(caught.value)


# --- names and addresses ---


async def test_names_are_resolved(guarded: Member) -> None:
    endpoints = login(guarded, USER="root:secret")
    by_name = replace(endpoints, hosts=(guarded.host.replace("127.0.0.1", "localhost"),))
    assert await works(by_name) == by_name.hosts[0]
    # The rest of the names do not matter as long as one is good.
    assert await works(replace(by_name, hosts=("no-such-host.invalid:2379", *by_name.hosts))) == by_name.hosts[0]


async def test_a_name_that_nobody_knows_is_said() -> None:
    with pytest.raises(StoreUnavailable, match=r"cannot find the etcd host no-such-host\.invalid:2379"):
        await connect(Endpoints(("no-such-host.invalid:2379",)), timeout=5.0)


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
async def test_addresses_may_be_of_version_6(authority: Authority, tmp_path: Path) -> None:
    server = authority.issue("six", ips=("::1",))
    host = f"[::1]:{free_ports(1)[0]}"
    with single(tmp_path, listen=[f"https://{host}"], flags=tls_flags(server)):
        assert await works(certified(host, authority)) == host


async def test_nobody_at_home_is_one_clear_line() -> None:
    host = f"127.0.0.1:{free_ports(1)[0]}"
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await connect(Endpoints((host,)), timeout=1.0)
    assert time.monotonic() - began < 1.5
    assert f"no etcd member of {host} answered" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_somebody_else_at_home_is_one_clear_line() -> None:
    """A server that is no etcd: it takes every connection and says nothing."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        host = f"127.0.0.1:{sock.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer"):
            await connect(Endpoints((host,)), timeout=0.6)
        assert time.monotonic() - began < 2.5


async def test_a_cluster_that_is_still_starting_is_waited_for(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    connecting = asyncio.create_task(connect(Endpoints((f"127.0.0.1:{port}",)), timeout=DEADLINE))
    done, _ = await asyncio.wait({connecting}, timeout=0.7)  # longer than the first try
    assert not done
    with single(tmp_path, listen=[f"http://127.0.0.1:{port}"]):
        store: EtcdStore = await connecting
        await store.put("k", b"")
        await store.close()


def test_failures_make_no_noise(secured: Member, stranger: Authority) -> None:
    code = f"""
import asyncio
from tlaunch.errors import TlaunchError
from tlaunch.launcher.store import Endpoints, connect
try:
    asyncio.run(connect(Endpoints.parse("localhost:{ports(secured)[0]}", env={{}}, cacert={str(stranger.cert)!r})))
except TlaunchError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
