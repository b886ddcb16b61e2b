"""What the user may write for an etcd cluster, and what is said about everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlaunch.errors import InputError
from tlaunch.launcher.store.endpoints import Endpoints, split_host


@pytest.mark.parametrize(
    ("text", "hosts", "secure"),
    [
        ("a:2379", ("a:2379",), False),
        (" a:2379 , b:1,", ("a:2379", "b:1"), False),
        ("a:1,a:1", ("a:1",), False),
        ("http://a:2379/", ("a:2379",), False),
        ("HTTPS://a.b-c.de:2379,https://10.0.0.1:65535", ("a.b-c.de:2379", "10.0.0.1:65535"), True),
        ("[::1]:2379,http://[fe80::1]:1".replace("http://", ""), ("[::1]:2379", "[fe80::1]:1"), False),
    ],
)
def test_endpoints_are_understood(text: str, hosts: tuple[str, ...], secure: bool) -> None:
    endpoints = Endpoints.parse(text, env={})
    assert endpoints.hosts == hosts
    assert endpoints.secure is secure


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no etcd endpoint given"),
        (" , ", "no etcd endpoint given"),
        ("a", "bad etcd endpoint 'a'"),
        ("a:", "bad port"),
        (":2379", "bad etcd endpoint"),
        ("::1:2379", "bad etcd endpoint"),
        ("a:0", "bad port"),
        ("a:65536", "bad port"),
        ("a:x", "bad port"),
        ("a:²", "bad port"),
        ("http://a:1/v3", "bad port"),
        ("http://a/v3:1", "bad etcd endpoint"),
        ("a b:1", "bad etcd endpoint"),
        ("ftp://a:1", "cannot be reached by 'ftp'"),
        ("http://a:1,https://b:1", "mix"),
        ("http://a:1,b:1", "mix"),
        ("http://root:secret@a:1", "cannot hold a user"),
    ],
)
def test_bad_endpoints_are_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        Endpoints.parse(text, env={})
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert "secret" not in message


def test_flags_win_over_the_environment(tmp_path: Path) -> None:
    for name in ("env", "flag"):
        (tmp_path / name).write_text("PEM")
    env = {
        "TLAUNCH_ETCD": "env:1",
        "TLAUNCH_ETCD_USER": "env-user:env-password",
        "TLAUNCH_ETCD_CACERT": str(tmp_path / "env"),
    }
    from_env = Endpoints.given(env=env)
    assert from_env is not None
    assert (from_env.hosts, from_env.user, from_env.password) == (("env:1",), "env-user", "env-password")
    assert (from_env.ca, from_env.secure) == (tmp_path / "env", True)
    from_flags = Endpoints.given("flag:1", env=env, user="me:pass:word", cacert=str(tmp_path / "flag"))
    assert from_flags is not None
    assert (from_flags.hosts, from_flags.user, from_flags.password) == (("flag:1",), "me", "pass:word")
    assert from_flags.ca == tmp_path / "flag"
    assert Endpoints.given(env={}) is None


def test_the_password_may_stand_alone_in_the_environment() -> None:
    endpoints = Endpoints.parse("a:1", env={"TLAUNCH_ETCD_PASSWORD": "p"}, user="me")
    assert (endpoints.user, endpoints.password) == ("me", "p")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"TLAUNCH_ETCD_USER": "me"}, "no password for etcd user 'me': set TLAUNCH_ETCD_PASSWORD"),
        ({"TLAUNCH_ETCD_USER": ":secret"}, "no user"),
        ({"TLAUNCH_ETCD_PASSWORD": "secret"}, "no user"),
        ({"TLAUNCH_ETCD_CACERT": "/no/such/ca"}, "TLAUNCH_ETCD_CACERT: no such file /no/such/ca"),
        ({"TLAUNCH_ETCD_CERT": __file__}, "give both"),
        ({"TLAUNCH_ETCD_KEY": __file__}, "give both"),
    ],
)
def test_bad_credentials_are_one_clear_line(env: dict[str, str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        Endpoints.parse("a:1", env=env)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_certificates_for_http_are_refused() -> None:
    with pytest.raises(InputError, match="expected https"):
        Endpoints.parse("http://a:1", env={}, cacert=__file__)


def test_a_password_is_never_shown() -> None:
    endpoints = Endpoints.parse("a:1", env={"TLAUNCH_ETCD_USER": "me:secret"})
    assert "secret" not in f"{endpoints} {endpoints!r}"


def test_a_child_finds_the_same_cluster_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("PEM")
    mine = Endpoints.parse("https://a:1,https://[::1]:2", env={}, user="me:p:w", cacert="ca", cert="cert", key="key")
    environment = mine.environment()
    assert all(Path(environment[name]).is_absolute() for name in environment if name.endswith(("CERT", "KEY")))
    theirs = Endpoints.given(env=environment)
    assert theirs is not None
    assert (theirs.hosts, theirs.secure, theirs.user, theirs.password) == (mine.hosts, True, "me", "p:w")
    assert Endpoints.given(env=Endpoints(("a:1",)).environment()) == Endpoints(("a:1",))


def test_hosts_are_split() -> None:
    assert split_host("a:1") == ("a", 1)
    assert split_host("[::1]:2379") == ("::1", 2379)
