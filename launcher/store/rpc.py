"""The one module that imports grpc and the protocol of etcd that ``etcd3aio`` brings along.

It tames two habits of theirs. grpc logs handshake failures and forks to stderr, and takes its settings from the
environment, where ours must not stay for the user's script to inherit. ``etcd3aio`` puts a folder with top-level
modules named ``etcd`` and ``google`` on ``sys.path`` for good, where they could hide the user's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Let grpc see ``GRPC_VERBOSITY=NONE`` unless the user has set it, and undo what the imports leave behind."""
    path = list(sys.path)
    ours = "GRPC_VERBOSITY" not in os.environ
    if ours:
        os.environ["GRPC_VERBOSITY"] = "NONE"
    try:
        yield
    finally:
        if ours:
            del os.environ["GRPC_VERBOSITY"]
        sys.path[:] = path


with _quiet_import():
    import grpc  # type: ignore[import-untyped]
    import grpc.aio  # type: ignore[import-untyped]
    from etcd3aio import _protobuf as pb

# grpc and the generated protocol carry no types.
Channel: TypeAlias = Any
Message: TypeAlias = Any
RpcError = grpc.aio.AioRpcError
StatusCode = grpc.StatusCode
Connectivity = grpc.ChannelConnectivity

_OPTIONS = (
    # A member that comes back has to be noticed within about a second; grpc's own limits are 20 s and 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # despite its name the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Only we know what may be sent twice.
    ("grpc.enable_retries", 0),
    # A listing may be larger than grpc's 4 MiB; etcd limits requests itself.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # grpc would measure the connection by pings, a tenth of what the start of an agent costs. Without that, what
    # may be on its way to us is a matter of this setting: 64 KiB would make a listing of 5 MB three times as slow where
    # an answer takes 0.1 s.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    # Other stores in this process may have other credentials or may be closed before this one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(target: str, server_name: str, tls: tuple[bytes | None, bytes | None, bytes | None] | None) -> Channel:
    """Make a channel to one address; it connects when it is first used.

    ``tls`` holds the CA, our key and our certificate as PEM, each of which may be missing. The certificate of the
    server must be valid for ``server_name``, whatever the address is.
    """
    if tls is None:
        return grpc.aio.insecure_channel(target, options=list(_OPTIONS))
    credentials = grpc.ssl_channel_credentials(*tls)
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", server_name)]
    return grpc.aio.secure_channel(target, credentials, options=options)


__all__ = ["Channel", "Connectivity", "Message", "RpcError", "StatusCode", "grpc", "open_channel", "pb"]
