"""Certificates of a deployment's functions, by an authority that lives in the supervisor's memory.

A certificate lasts a day and is replaced at a quarter of that; the authority lasts a week, and ends
with its supervisor: its key is never written. The next one signs everything anew. What trusts it is
written to all folders before anything that it signed, and the authorities before it stay trusted
until they expire, so functions that have read one file and not yet the other still know each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from erless.errors import ConfigError
from erless.storage.atomic import os_errors, staged_file

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["Identities", "check_cryptography"]

RENEWALS = 4  # in the time that a certificate lasts: one that fails has more to come
AUTHORITY_LIVES = 7  # as long as certificates do
BEFORE = timedelta(minutes=5)  # clocks of one machine agree; those of its containers may not
MOST = 4  # authorities that are trusted
OWNER_ONLY = 0o600


def check_cryptography() -> None:
    """Raise ConfigError where the library that makes certificates is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError(
            "security.mutual_tls needs the library cryptography: pip install 'erless[tls]'"
        ) from None


class Identities:
    """Folders below `path`, one for each function, as `erless.http.tls.Identity` reads them.

    Args:
        path: of the folders.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key: EllipticCurvePrivateKey | None = None  # of the authority
        self._authority: x509.Certificate | None = None
        self._renew: dict[str, datetime] = {}  # name → when its certificate is due

    def keep(self, uris: Mapping[str, str], lives_s: float) -> tuple[str, ...]:
        """Make the certificates that are missing or due; returns the names of those made.

        Args:
            uris: a function's name → its URI.
            lives_s: how long a certificate lasts.

        Raises:
            StorageError: the disk refused; what is there stays.
        """
        if not uris:
            return ()
        now, lives = datetime.now(UTC), timedelta(seconds=lives_s)
        if self._authority is None or self._authority.not_valid_after_utc - now < 2 * lives:
            self._renew.clear()
            self._trust(self._new_authority(now, lives))
        due = [name for name in uris if self._renew.get(name, now) <= now]
        for name in due:
            if not (self.path / name / "ca.crt").exists():
                _write(self.path / name / "ca.crt", self._trusted())
            self._sign(name, uris[name], now, lives)
            self._renew[name] = now + lives / RENEWALS
        return tuple(due)

    def _new_authority(self, now: datetime, lives: timedelta) -> x509.Certificate:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        self._key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        name = _name(f"erless {serial:x}"[:40])
        return (
            x509.CertificateBuilder(name, name, self._key.public_key(), serial)
            .not_valid_before(now - BEFORE)
            .not_valid_after(now + AUTHORITY_LIVES * lives)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )

    def _trust(self, authority: x509.Certificate) -> None:
        """Write `authority` to all folders, beside those that have not expired."""
        self._authority = authority
        text = self._trusted()
        for folder in self.path.glob("*/"):
            _write(folder / "ca.crt", text)

    def _trusted(self) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        if self._authority is None:
            raise AssertionError
        now, known = datetime.now(UTC), {self._authority}
        for file in self.path.glob("*/ca.crt"):
            try:
                known.update(x509.load_pem_x509_certificates(file.read_bytes()))
            except (OSError, ValueError):
                continue  # damaged: its function gets the new one
        valid = [each for each in known if each.not_valid_after_utc > now]
        newest = sorted(valid, key=lambda each: each.not_valid_after_utc, reverse=True)[:MOST]
        return b"".join(each.public_bytes(Encoding.PEM) for each in newest)

    def _sign(self, name: str, uri: str, now: datetime, lives: timedelta) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
        )
        from cryptography.x509.oid import ExtendedKeyUsageOID

        if self._authority is None or self._key is None:
            raise AssertionError
        key = ec.generate_private_key(ec.SECP256R1())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BEFORE)
            .not_valid_after(now + lives)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        folder = self.path / name
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(folder / "tls.key", text)
        _write(folder / "tls.crt", certificate.public_bytes(Encoding.PEM))


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates, a function its handshakes."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _write(file: Path, text: bytes) -> None:
    """Replace `file`, readable by its owner only. Raises StorageError."""
    with os_errors(file.parent):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with staged_file(file) as stage, os_errors(stage):
        descriptor = os.open(stage, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
        with os.fdopen(descriptor, "wb") as opened:
            os.fchmod(opened.fileno(), OWNER_ONLY)
            opened.write(text)
