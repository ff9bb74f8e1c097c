"""A registry's HTTP API (OCI distribution), through python-dxf: pull a base, push an image.

Credentials are Docker's own: `~/.docker/config.json` with its credential helpers, and for ECR what
AWS's standard chain gives. Registries on loopback are spoken to in plain HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import requests
from dxf import DXF, DXFBase
from dxf.exceptions import DXFError

from erless.deploy.image.reference import HUB_API, Reference
from erless.errors import ImageError, first_line

__all__ = ["Registry", "resolve_digest"]

TIMEOUT_S = 60.0
PLATFORM = ("linux", "amd64")
_ECR = re.compile(r"^\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com")
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}


class Registry:
    """One repository of a registry.

    Args:
        reference: names host and repository.
        insecure: plain HTTP; None: only on loopback.
    """

    def __init__(self, reference: Reference, *, insecure: bool | None = None) -> None:
        self.reference = reference
        plain = reference.loopback if insecure is None else insecure
        self._dxf = DXF(
            reference.host, reference.name, self._authenticate, insecure=plain, timeout=TIMEOUT_S
        )

    def manifest(self, version: str) -> tuple[str, dict[str, Any]]:
        """Digest and document of a manifest; of an index, the one for this platform."""
        with self._errors(f"read {version} of"):
            text, _ = self._dxf.get_manifest_and_response(version)
        document = json.loads(text)
        if document.get("mediaType") in _INDEXES:
            for each in document["manifests"]:
                found = each.get("platform", {})
                if (found.get("os"), found.get("architecture")) == PLATFORM:
                    return self.manifest(each["digest"])
            raise ImageError(f"{self._what} has no image for {'/'.join(PLATFORM)}")
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}", document

    def digest(self, version: str) -> str:
        """The digest that a tag stands for now."""
        with self._errors(f"resolve {version} of"):
            text, answer = self._dxf.get_manifest_and_response(version)
        named = answer.headers.get("Docker-Content-Digest")
        return str(named or f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")

    def pull(self, digest: str, target: Path) -> None:
        """Fetch a blob to a file; python-dxf compares it with its digest."""
        with self._errors(f"pull {digest} of"), target.open("wb") as file:
            chunks = cast(Iterator[bytes], self._dxf.pull_blob(digest, chunk_size=1 << 20))
            for chunk in chunks:
                file.write(chunk)

    def push(self, path: Path, digest: str) -> bool:
        """Send a blob unless it is there; says whether it was sent."""
        with self._errors(f"push {digest} to"):
            try:
                self._dxf.blob_size(digest)
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code != 404:
                    raise
            else:
                return False
            with path.open("rb") as file:
                self._dxf.push_blob(
                    data=iter(lambda: file.read(1 << 20), b""), digest=digest, check_exists=False
                )
        return True

    def tag(self, manifest: str, version: str) -> None:
        """Name a manifest whose blobs are there."""
        with self._errors(f"tag {version} in"):
            self._dxf.set_manifest(version, manifest)

    @property
    def _what(self) -> str:
        return f"{self.reference.host}/{self.reference.name}"

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else "?"
            said = "not there" if code == 404 else "refused"
            if code in (401, 403):
                said = "not permitted"
            raise ImageError(f"cannot {doing} {self._what}: {said} ({code})") from error
        except (requests.RequestException, DXFError) as error:
            raise ImageError(f"cannot {doing} {self._what}: {first_line(error)}") from error

    def _authenticate(self, dxf: DXFBase, response: requests.Response) -> None:
        username, password = _credentials(self.reference.host)
        dxf.authenticate(username, password, response=response)


def resolve_digest(reference: Reference) -> str:
    """The image by digest; a tag is asked for.

    Raises:
        ImageError: the registry does not know it, or does not answer.
    """
    return reference.at(reference.digest or Registry(reference).digest(reference.tag))


def _credentials(host: str) -> tuple[str | None, str | None]:
    """User and password for a registry; none: anonymous."""
    folder = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    keys = [host, f"https://{host}"]
    if host == HUB_API:
        keys.append("https://index.docker.io/v1/")
    for key in keys:
        helper = config.get("credHelpers", {}).get(key) or (
            config.get("credsStore") if key in config.get("auths", {}) else None
        )
        if helper:
            return _from_helper(helper, key)
        text = config.get("auths", {}).get(key, {}).get("auth")
        if text:
            user, _, password = base64.b64decode(text).decode().partition(":")
            return user, password
    region = _ECR.match(host)
    return _from_ecr(region[1]) if region else (None, None)


def _from_helper(helper: str, key: str) -> tuple[str | None, str | None]:
    """Ask Docker's credential helper."""
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=key,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"docker-credential-{helper} failed: {first_line(error)}") from error
    if done.returncode:
        return None, None
    found = json.loads(done.stdout)
    return found.get("Username"), found.get("Secret")


def _from_ecr(region: str) -> tuple[str | None, str | None]:
    """A token from AWS, for as long as a push takes."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.client("ecr", region_name=region).get_authorization_token()
    except (BotoCoreError, ClientError) as error:
        raise ImageError(f"no token for ECR in {region}: {first_line(error)}") from error
    token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
    user, _, password = token.partition(":")
    return user, password
