"""Who may ask a function: other functions of the deployment by its secret, clients by a token."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from erless.errors import ServeError
from erless.http.messages import Request
from erless.serve.secrets import SECRET, open_secret
from erless.serve.settings import Settings
from erless.serve.tokens import open_tokens

__all__ = ["Guard"]

GUARDED = {"sparse", "dense"}


class Guard:
    """Asks every request for what the deployment demands.

    Args:
        settings: of the function.
        clock: the loop's time.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._tokens = open_tokens(settings, clock)
        # A gateway shows the secret; sparse and dense functions want to see it.
        self._secret = open_secret(settings, clock) if settings.kind in GUARDED else None
        self.wants_token = self._tokens is not None
        self.closed_reads = self.wants_token and not settings.open_reads

    def admit(self, request: Request) -> None:
        """Raise ServeError where the request lacks the certificate, secret or token needed."""
        if request.private:
            return
        if request.stranger:
            raise ServeError("the certificate of this deployment's gateway is needed", 401, "query")
        if self._secret is not None and not self._secret.accepts(request.headers.get(SECRET, b"")):
            raise ServeError("the deployment's secret is needed", 401, "query")
        if self._tokens is None:
            return
        if not self._tokens.accepts(request.headers.get(b"authorization", b"")):
            raise ServeError("a bearer token is needed", 401, "query")

    def admits_head(self, buffer: bytearray, begin: int, now: float, prefix: bytes) -> bool:
        """Whether a request of the known form shows our secret behind `prefix`, if there is one.

        Compared in constant time, before the kernels compare the whole head, which they do not.
        """
        if self._secret is None:
            return True
        if not buffer.startswith(prefix, begin):
            return False
        self._secret.refresh(now)
        begin += len(prefix)
        secret = self._secret.shown
        return hmac.compare_digest(buffer[begin : begin + len(secret)], secret)
