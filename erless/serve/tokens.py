"""Bearer tokens that a gateway accepts: several, kept as hashes, changed while it serves."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

from erless.errors import ConfigError
from erless.serve.settings import Settings

__all__ = ["BearerTokens", "open_tokens"]

AGAIN_S = 1.0  # between two looks at the file
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
        self, digests: tuple[str, ...], file: Path | None, clock: Callable[[], float]
    ) -> None:
        self._digests, self._file, self._clock = digests, file, clock
        self._looked, self._changed = clock(), self._time()

    def accepts(self, authorization: bytes) -> bool:
        """Whether the header `authorization` carries one of the tokens.

        One that is not known is refused only after a look at the file, and one that was taken away
        is accepted for at most `AGAIN_S` seconds.
        """
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = hashlib.sha256(token.strip()).hexdigest()
        if self._clock() - self._looked >= AGAIN_S:
            self._look()
        if self._knows(digest):
            return True
        self._look()
        return self._knows(digest)

    def _knows(self, digest: str) -> bool:
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def _time(self) -> tuple[int, int]:
        if self._file is None:
            return 0, 0
        stat = self._file.stat()
        return stat.st_mtime_ns, stat.st_ino

    def _look(self) -> None:
        """Read the file again where it has changed."""
        if self._file is None:
            return
        self._looked = self._clock()
        with contextlib.suppress(OSError, ConfigError):  # being replaced: what was known stays
            changed = self._time()
            if changed != self._changed:
                self._digests = _read(self._file)
                self._changed = changed


def open_tokens(settings: Settings, clock: Callable[[], float]) -> BearerTokens | None:
    """The tokens that the settings name; None where anybody may ask.

    Raises:
        ConfigError: the file cannot be read, or has another form.
    """
    if settings.tokens_file is not None:
        file = Path(settings.tokens_file)
        return BearerTokens(_read(file), file, clock)
    if settings.token is not None:
        digest = hashlib.sha256(settings.token.encode()).hexdigest()
        return BearerTokens((digest,), None, clock)
    return None


def _read(file: Path) -> tuple[str, ...]:
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
        digests.append(found[1])
    if not digests:
        raise ConfigError(f"ERLESS_TOKENS_FILE {file} holds no SHA-256 of a token")
    return tuple(digests)
