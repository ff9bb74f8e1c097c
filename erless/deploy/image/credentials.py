"""Credentials for a registry: Docker's own configuration and helpers, and AWS's chain for ECR."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

from erless.deploy.image.reference import HUB_API
from erless.deploy.programs import run_program
from erless.errors import ImageError, first_line

__all__ = ["find_credentials"]

TIMEOUT_S = 60.0
Credentials = tuple[str | None, str | None]
_ECR = re.compile(r"^\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com")


def find_credentials(host: str) -> Credentials:
    """User and password for the registry at `host`; (None, None) means anonymous.

    Raises:
        ImageError: a credential helper or AWS failed, or Docker's configuration holds credentials
            that cannot be read.
    """
    path = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json"
    try:
        config = _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        config = {}
    helpers, logins = _mapping(config.get("credHelpers")), _mapping(config.get("auths"))
    keys = [host, f"https://{host}"]
    if host == HUB_API:
        keys.append("https://index.docker.io/v1/")
    for key in keys:
        helper = helpers.get(key) or (config.get("credsStore") if key in logins else None)
        if helper:
            return _from_helper(helper, key)
        text = _mapping(logins.get(key)).get("auth")
        if text:
            return _decoded(text, f"{path}: auth of {key}")
    region = _ECR.match(host)
    return _from_ecr(region[1]) if region else (None, None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _decoded(text: Any, where: str) -> Credentials:
    try:
        user, _, password = base64.b64decode(text).decode().partition(":")
    except (ValueError, TypeError) as error:
        raise ImageError(f"{where}: not user:password in base64; log in again") from error
    return user, password


def _from_helper(helper: str, key: str) -> Credentials:
    """Ask Docker's credential helper."""
    done = run_program([f"docker-credential-{helper}", "get"], TIMEOUT_S, ImageError, key)
    if done.returncode:
        return None, None
    try:
        answer = json.loads(done.stdout)
        return answer["Username"], answer["Secret"]
    except (ValueError, TypeError, KeyError) as error:
        raise ImageError(f"docker-credential-{helper} gave no user and secret for {key}") from error


def _from_ecr(region: str) -> Credentials:
    """A token from AWS, valid for longer than a push takes."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    from erless.outbound import ca_bundle

    try:
        client = boto3.client("ecr", region_name=region, verify=ca_bundle())
        answer = client.get_authorization_token()
    except (BotoCoreError, ClientError) as error:
        raise ImageError(f"no token for ECR in {region}: {first_line(error)}") from error
    token = answer["authorizationData"][0]["authorizationToken"]
    return _decoded(token, f"token for ECR in {region}")
