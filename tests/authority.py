"""A certificate authority of our own, and a server certificate for 127.0.0.1 that it signed."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Authority", "private_authority"]


@dataclass(frozen=True)
class Authority:
    """`certificate`: of the authority. `server`: key and certificate of a server on loopback."""

    certificate: Path
    server: Path

    def context(self) -> ssl.SSLContext:
        """What a server on 127.0.0.1 wraps its socket with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context


def private_authority(folder: Path) -> Authority:
    """Make both, valid for a day."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        for text in ("private authority", "127.0.0.1")
    )
    now = datetime.datetime.now(datetime.UTC)

    def certify(subject: x509.Name, public: ec.EllipticCurvePublicKey, is_root: bool) -> bytes:
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = (
            x509.CertificateBuilder(root_name, subject, public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(names, critical=False)
        )
        signed = builder.sign(root_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    certificate, server = folder / "authority.pem", folder / "server.pem"
    certificate.write_bytes(certify(root_name, root_key.public_key(), True))
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    server.write_bytes(secret + certify(name, key.public_key(), False))
    return Authority(certificate, server)
