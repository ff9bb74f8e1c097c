"""A registry's HTTP API (OCI distribution specification 1.1): pull a base, push an image.

Registries on loopback are spoken to in plain HTTP, all others in HTTPS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from erless.deploy.image.credentials import find_credentials
from erless.deploy.image.reference import ImageReference
from erless.errors import ImageError, first_line
from erless.outbound import open_pool
from erless.specs.planning import Architecture
from erless.storage.atomic import os_errors

__all__ = ["Registry", "resolve_digest"]

TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 4 << 20  # the distribution specification asks registries to take that much
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Registry:
    """One repository of a registry.

    Args:
        reference: names host and repository.

    Raises:
        ConfigError: the environment's proxy or certificate file cannot be used.
    """

    def __init__(self, reference: ImageReference) -> None:
        self.reference = reference
        scheme = "http" if reference.loopback else "https"
        self._root = f"{scheme}://{reference.host}/v2/{reference.name}"
        self._pool = open_pool(self._root, TIMEOUT_S)
        self._authorization: str | None = None

    def manifest(
        self, version: str, architecture: Architecture = "amd64"
    ) -> tuple[str, dict[str, Any]]:
        """Digest and document of a manifest; of an index, the one for Linux on `architecture`.

        Raises:
            ImageError: absent, refused, not what its digest says, or for other platforms only.
        """
        data = self._read_manifest(version)
        try:
            document = json.loads(data)
        except ValueError as error:
            raise ImageError(f"{version} of {self._repository} is no manifest: {error}") from error
        if document.get("mediaType") in INDEX_TYPES or "manifests" in document:
            for entry in document["manifests"]:
                platform = entry.get("platform", {})
                if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
                    return self.manifest(entry["digest"], architecture)
            raise ImageError(f"{self._repository} has no image for linux/{architecture}")
        return _sha256(data), document

    def digest(self, version: str) -> str:
        """The digest that a tag stands for now: of the manifest, or of the index."""
        return _sha256(self._read_manifest(version))

    def pull(self, digest: str, target: Path) -> None:
        """Fetch a blob to a file.

        Raises:
            ImageError: absent, refused, or its content has another digest.
            StorageError: the disk refused.
        """
        actual = hashlib.sha256()
        with self._errors(f"pull {digest} of"):
            answer = self._request("GET", f"{self._root}/blobs/{digest}", preload_content=False)
            with os_errors(target), target.open("wb") as file:
                for chunk in answer.stream(CHUNK_BYTES):
                    actual.update(chunk)
                    file.write(chunk)
            answer.release_conn()
        if f"sha256:{actual.hexdigest()}" != digest:
            raise ImageError(
                f"{self._repository}: expected digest {digest}, got sha256:{actual.hexdigest()}"
            )

    def push(self, path: Path, digest: str) -> bool:
        """Send a blob unless it is there; returns whether it was sent."""
        with self._errors(f"push {digest} to"):
            if self._request("HEAD", f"{self._root}/blobs/{digest}", absent=True).status == 200:
                return False
            begun = self._request("POST", f"{self._root}/blobs/uploads/")
            place = urljoin(f"{self._root}/", begun.headers["Location"])
            place += ("&" if urlsplit(place).query else "?") + urlencode({"digest": digest})
            with path.open("rb") as file:
                headers = {
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(path.stat().st_size),
                }
                self._request("PUT", place, body=file, headers=headers)
        return True

    def tag(self, manifest: str, version: str) -> None:
        """Name a manifest whose blobs are there."""
        media_type = json.loads(manifest).get("mediaType", MANIFEST_TYPES[0])
        with self._errors(f"tag {version} in"):
            self._request(
                "PUT",
                f"{self._root}/manifests/{version}",
                body=manifest.encode(),
                headers={"Content-Type": media_type},
            )

    def _read_manifest(self, version: str) -> bytes:
        """A manifest's bytes, compared with its digest where it is asked for by digest."""
        with self._errors(f"read {version} of"):
            answer = self._request(
                "GET",
                f"{self._root}/manifests/{version}",
                headers={"Accept": ", ".join([*MANIFEST_TYPES, *INDEX_TYPES])},
                preload_content=False,
            )
            data = answer.read(MAX_DOCUMENT_BYTES + 1)
            answer.release_conn()
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ImageError(
                f"{version} of {self._repository} is larger than {MAX_DOCUMENT_BYTES:,} B"
            )
        if version.startswith("sha256:") and _sha256(data) != version:
            raise ImageError(f"{self._repository}: expected digest {version}, got {_sha256(data)}")
        return data

    @property
    def _repository(self) -> str:
        return f"{self.reference.host}/{self.reference.name}"

    def _request(
        self,
        method: str,
        url: str,
        *,
        absent: bool = False,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> urllib3.BaseHTTPResponse:
        """One request, sent again with credentials where the registry asks for them.

        Args:
            method: of HTTP.
            url: absolute.
            absent: whether 404 is an answer like any other.
            headers: beside the credentials.
            more: what urllib3 takes besides.

        Raises:
            _RefusedError: the status is no success.
        """
        retries = urllib3.Retry(5, connect=0, status=3, backoff_factor=0.2)
        while True:
            # credentials are the registry's: an upload or a blob may lie on another host
            ours = urlsplit(url).netloc == urlsplit(self._root).netloc
            credentials = (
                {"Authorization": self._authorization} if ours and self._authorization else {}
            )
            answer = self._pool.request(
                method, url, headers=(headers or {}) | credentials, retries=retries, **more
            )
            if answer.status == 401 and ours and not credentials:
                challenge = answer.headers.get("WWW-Authenticate", "")
                answer.drain_conn()
                self._authorization = self._authorize(challenge)
                if self._authorization is not None:
                    if hasattr(more.get("body"), "seek"):
                        more["body"].seek(0)
                    continue
            if answer.status >= 400 and not (absent and answer.status == 404):
                answer.drain_conn()
                raise _RefusedError(answer.status)
            return answer

    def _authorize(self, challenge: str) -> str | None:
        """The header that answers a registry's challenge; None where there is nothing to send."""
        user, password = find_credentials(self.reference.host)
        basic = None
        if user is not None:
            pair = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            basic = f"Basic {pair}"
        scheme, _, parameters = challenge.partition(" ")
        if scheme.lower() != "bearer":
            return basic
        fields = dict(_CHALLENGE.findall(parameters))
        realm = fields.pop("realm", "")
        if urlsplit(realm).scheme != "https" and not self.reference.loopback:
            raise ImageError(
                f"{self._repository}: credentials would go to {realm or 'nowhere'} in clear"
            )
        fields["scope"] = (
            f"repository:{self.reference.name}:pull,push"
            if basic
            else (fields.get("scope") or f"repository:{self.reference.name}:pull")
        )
        sent = {"Authorization": basic} if basic else {}
        answer = open_pool(realm, TIMEOUT_S).request(
            "GET", f"{realm}?{urlencode(fields)}", headers=sent
        )
        if answer.status >= 400:
            raise _RefusedError(answer.status)
        document = json.loads(answer.data)
        return f"Bearer {document.get('token') or document['access_token']}"

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Translate what a registry or the way to it answered."""
        try:
            yield
        except _RefusedError as error:
            words = {401: "not permitted", 403: "not permitted", 404: "not there"}
            reason_text = words.get(error.status, "refused")
            raise ImageError(
                f"cannot {doing} {self._repository}: {reason_text} ({error.status})"
            ) from error
        except urllib3.exceptions.HTTPError as error:
            reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
            raise ImageError(
                f"cannot {doing} {self._repository}: {first_line(reason or error)}"
            ) from error
        except (ValueError, KeyError) as error:
            raise ImageError(
                f"cannot {doing} {self._repository}: the answer is damaged ({error})"
            ) from error


class _RefusedError(Exception):
    """A registry's answer with an error's status."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


def resolve_digest(reference: ImageReference) -> str:
    """The image by digest; a tag is asked for.

    Raises:
        ImageError: the registry does not know it, or does not answer.
    """
    return reference.at(reference.digest or Registry(reference).digest(reference.tag))


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
