"""The canary token of `erless.yaml`, as functions get it: its SHA-256."""

from __future__ import annotations

import hashlib
import os

from erless.errors import ConfigError
from erless.specs.config import GatewayConfig

__all__ = ["canary_digest"]


def canary_digest(gateway: GatewayConfig, *, guarded: bool) -> str | None:
    """The SHA-256 of the token that opens nothing; None where there is none.

    Args:
        gateway: names the variables.
        guarded: whether clients need a token at all.

    Raises:
        ConfigError: the variable is not set, clients need no token, or it is theirs.
    """
    name = gateway.canary_token_env
    if name is None:
        return None
    token = os.environ.get(name, "")
    if not token:
        raise ConfigError(f"gateway.canary_token_env: the environment has no variable {name}")
    if not guarded:
        raise ConfigError(
            "gateway.canary_token_env: anybody may ask without a token, so a canary would answer; "
            "set gateway.token_env or gateway.tokens_file (targets.knative.token_secret) first"
        )
    if gateway.token_env and os.environ.get(gateway.token_env) == token:
        raise ConfigError(
            f"gateway.canary_token_env: {name} holds the token of {gateway.token_env}, which opens"
        )
    return hashlib.sha256(token.encode()).hexdigest()
