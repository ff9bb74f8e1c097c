"""TLS: certificates that are replaced while they are in use, and the names that peers must have.

A context is made of files, which are looked at before every handshake: whoever connects next meets
the new certificate, and connections that are open stay as they are. Files that are being replaced,
or do not fit together, leave the context before them in use.

Functions of one deployment know each other by the URI in their certificates, as SPIFFE has it
(github.com/spiffe/spiffe, standards/X509-SVID.md): exactly one, compared as a whole. Names of hosts
and addresses, which change as replicas come and go, play no part then.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from erless.errors import ConfigError

__all__ = ["HANDSHAKE_S", "ReloadedContext", "TlsIdentity", "peer_identity", "server_contexts"]

HANDSHAKE_S = 10.0  # of a client that has connected
# As cert-manager and Kubernetes name them in a Secret of type kubernetes.io/tls.
CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"
HTTP1, HTTP2 = "http/1.1", "h2"

Fault = Callable[[str], None]
_Stamp = tuple[tuple[int, int, int], ...]


class ReloadedContext:
    """A context of files that may be replaced.

    Args:
        files: that it is made of.
        make: makes it.
        fault: told why a changed file cannot be used; once for each change.

    Raises:
        ConfigError: the files cannot be read, or do not fit together.
    """

    def __init__(
        self, files: Sequence[Path], make: Callable[[], ssl.SSLContext], fault: Fault
    ) -> None:
        self._files, self._make, self._fault = tuple(files), make, fault
        try:
            self._stamp = self._look()
            self._context = make()
        except (OSError, ValueError) as error:
            raise ConfigError(self._words(error)) from error

    def __call__(self) -> ssl.SSLContext:
        """The context of the files as they are now."""
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._context = self._make()
        except (OSError, ValueError) as error:  # being replaced: what was known stays
            self._fault(self._words(error))
        return self._context

    def _look(self) -> _Stamp:
        stats = [file.stat() for file in self._files]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def _words(self, error: Exception) -> str:
        return f"{', '.join(map(str, self._files))}: not a certificate and its key: {error}"


def server_contexts(
    certificate: Path, key: Path, fault: Fault, *, http2: bool = False
) -> ReloadedContext:
    """Contexts of a server that anybody may connect to. Raises ConfigError."""

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER, certificate, key)
        context.set_alpn_protocols([HTTP2, HTTP1] if http2 else [HTTP1])
        return context

    return ReloadedContext((certificate, key), make, fault)


class TlsIdentity:
    """Who a function is: a folder with its certificate, its key and the authorities of its peers.

    Args:
        folder: `tls.crt`, `tls.key`, `ca.crt`.
        fault: see `ReloadedContext`.
        strangers: clients without a certificate may connect to its server.

    Raises:
        ConfigError: the files cannot be read, or do not fit together.
    """

    def __init__(self, folder: Path, fault: Fault, *, strangers: bool = False) -> None:
        certificate, key, authorities = (folder / n for n in (CERTIFICATE, KEY, AUTHORITIES))
        files = (certificate, key, authorities)

        def make(side: int) -> ssl.SSLContext:
            context = _context(side, certificate, key)
            context.check_hostname = False  # its URI says who a peer is
            optional = strangers and side == ssl.PROTOCOL_TLS_SERVER
            context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
            context.load_verify_locations(authorities)
            if side == ssl.PROTOCOL_TLS_SERVER:
                context.num_tickets = 0  # nobody resumes a session: our clients show certificates
            return context

        self.server = ReloadedContext(files, lambda: make(ssl.PROTOCOL_TLS_SERVER), fault)
        self.client = ReloadedContext(files, lambda: make(ssl.PROTOCOL_TLS_CLIENT), fault)


def _context(side: int, certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, _no_password)
    return context


def _no_password() -> str:
    """Refuse a key that is encrypted; without this OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted")


def peer_identity(connection: Any) -> str:
    """The URI of a peer's verified certificate; "" where it has none, or several.

    Args:
        connection: the transport's `ssl_object`.
    """
    certificate = connection.getpeercert() if connection is not None else None
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    return uris[0] if len(uris) == 1 else ""
