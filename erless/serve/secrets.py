"""The secret of a deployment, which its functions show each other.

A gateway sends it with every call, and sparse and dense functions answer nobody else. Where it
comes from a file, the file is looked at once a second: a new secret can be put in front of the old
one, and the old one be taken away, while functions run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from erless.errors import ConfigError
from erless.serve.known_values import KnownValues
from erless.serve.settings import Settings

__all__ = ["SECRET", "DeploymentSecret", "open_secret"]

SECRET = b"erless-secret"  # the header
_FORM = re.compile(r"[A-Za-z0-9_\-]{16,128}")


class DeploymentSecret(KnownValues):
    """The secret that a gateway shows, and those that the other functions accept.

    Args:
        texts: at least one; the first is shown, all are accepted.
        file: where they come from; None: they stay.
        clock: seconds, monotonic.
    """

    def __init__(
        self, texts: tuple[str, ...], file: Path | None, clock: Callable[[], float]
    ) -> None:
        super().__init__(_encoded(texts), file, lambda path: _encoded(_read(path)), clock)

    @property
    def shown(self) -> bytes:
        """The secret that a gateway sends."""
        return self.values[0]


def open_secret(settings: Settings, clock: Callable[[], float]) -> DeploymentSecret | None:
    """The secret that the settings name, if any.

    Raises:
        ConfigError: the file cannot be read, or a secret has another form.
    """
    if settings.secret_file is not None:
        file = Path(settings.secret_file)
        return DeploymentSecret(_read(file), file, clock)
    if settings.secret is not None:
        return DeploymentSecret(_checked((settings.secret,), "ERLESS_SECRET"), None, clock)
    return None


def _read(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ERLESS_SECRET_FILE is {file}: cannot be read: {error}") from error
    return _checked(tuple(text.split()), f"ERLESS_SECRET_FILE {file}")


def _checked(texts: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not texts or not all(_FORM.fullmatch(text) for text in texts):
        raise ConfigError(f"{where}: expected secrets of 16 to 128 characters A-Z a-z 0-9 _ -")
    return texts


def _encoded(texts: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)
