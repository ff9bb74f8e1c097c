"""Who may talk to whom: names of a deployment's functions, for mutual TLS between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from erless.errors import ConfigError
from erless.http.client.endpoint import PeerTls
from erless.http.server.server import HttpServer
from erless.http.tls import Fault, TlsIdentity, peer_identity, server_contexts
from erless.serve.settings import Settings

__all__ = ["function_name", "peers", "secure_server"]

GATEWAY = "gateway"
DIGITS = 16  # of a digest, in a name


def function_name(kind: str, digest: str) -> str:
    """The end of a function's URI.

    >>> function_name("sparse", "0123456789abcdef0123"), function_name("gateway", "0123")
    ('sparse-0123456789abcdef', 'gateway')
    """
    return kind if kind == GATEWAY else f"{kind}-{digest[:DIGITS]}"


def peers(settings: Settings, fault: Fault) -> Callable[[str, str, str], PeerTls | None]:
    """TLS of a gateway to a function, by its URL, kind and digest; None where the URL is of http.

    Raises:
        ConfigError: a function is at https and this process has no identity.
    """
    identity = TlsIdentity(Path(settings.identity), fault) if settings.identity else None

    def peer(url: str, kind: str, digest: str) -> PeerTls | None:
        if not url.startswith("https:"):
            return None
        if identity is None:
            raise ConfigError(f"{url}: ERLESS_IDENTITY names no folder with a certificate")
        return PeerTls(identity.client, settings.identity_prefix + function_name(kind, digest))

    return peer


def secure_server(server: HttpServer, settings: Settings, fault: Fault) -> None:
    """Let `server` speak TLS where the settings say so: a gateway to clients, others to gateways.

    Raises:
        ConfigError: the certificate cannot be read, or does not fit its key.
    """
    if settings.kind == GATEWAY:
        if settings.tls_certificate is None:
            return
        if settings.tls_key is None:
            raise ConfigError("ERLESS_TLS_KEY is absent: expected the certificate's key")
        files = Path(settings.tls_certificate), Path(settings.tls_key)
        server.secure(server_contexts(*files, fault, http2=settings.grpc))
    elif settings.identity is not None:
        gateway = settings.identity_prefix + GATEWAY

        def admits(transport: asyncio.BaseTransport) -> bool:
            return peer_identity(transport.get_extra_info("ssl_object")) == gateway

        strangers = settings.open_reads
        own = TlsIdentity(Path(settings.identity), fault, strangers=strangers)
        server.secure(own.server, admits, strangers=strangers)
