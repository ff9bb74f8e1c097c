"""Bearer tokens that a gateway accepts: several, kept as hashes, changed while it serves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from erless.errors import ConfigError
from erless.serve.known_values import KnownValues
from erless.serve.settings import Settings

__all__ = ["BearerTokens", "open_tokens"]

_LINE = re.compile(r"([0-9a-f]{64})(\s.*)?")


class BearerTokens:
    """The tokens of clients, by their SHA-256.

    A token is long and random, so a hash without salt tells nothing about it.

    Args:
        digests: of the tokens, hexadecimal.
        file: where they come from; None: they stay.
        clock: seconds, monotonic.
    """

    def __init__(
        self, digests: tuple[bytes, ...], file: Path | None, clock: Callable[[], float]
    ) -> None:
        self._known = KnownValues(digests, file, _read, clock)

    def accepts(self, authorization: bytes) -> bool:
        """Whether the header `authorization` carries one of the tokens; see `KnownValues`."""
        scheme, _, token = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and self._known.accepts(_digest(token.strip()))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).hexdigest().encode()


def open_tokens(settings: Settings, clock: Callable[[], float]) -> BearerTokens | None:
    """The tokens that the settings name; None where anybody may ask.

    Raises:
        ConfigError: the file cannot be read, or has another form.
    """
    if settings.tokens_file is not None:
        file = Path(settings.tokens_file)
        return BearerTokens(_read(file), file, clock)
    if settings.token is not None:
        return BearerTokens((_digest(settings.token.encode()),), None, clock)
    return None


def _read(file: Path) -> tuple[bytes, ...]:
    """The digests in `file`, one a line; what follows on the line is its name."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ERLESS_TOKENS_FILE is {file}: cannot be read: {error}") from error
    digests = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ConfigError(
                f"ERLESS_TOKENS_FILE {file}, line {number}: not a SHA-256 as sha256sum prints it"
            )
        digests.append(found[1].encode())
    if not digests:
        raise ConfigError(f"ERLESS_TOKENS_FILE {file} holds no SHA-256 of a token")
    return tuple(digests)
