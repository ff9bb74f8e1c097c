"""Image references, as people write them: [HOST[:PORT]/]NAME[:TAG][@sha256:…]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from erless.errors import ImageError

__all__ = ["ImageReference", "parse_reference"]

_PATTERN = re.compile(
    r"^(?:(?P<host>localhost(?::\d+)?|\[[0-9a-fA-F:.]+\](?::\d+)?|[A-Za-z0-9.-]+(?:\.[A-Za-z0-9-]+|:\d+)(?::\d+)?)/)?"
    r"(?P<name>[a-z0-9._-]+(?:/[a-z0-9._-]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
HUB, HUB_API = "docker.io", "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image in a registry; `host` is where its API is."""

    host: str
    name: str
    tag: str = "latest"
    digest: str = ""

    @property
    def version(self) -> str:
        """What names the manifest: the digest where there is one."""
        return self.digest or self.tag

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP is customary."""
        host = urlsplit(f"//{self.host}").hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def at(self, digest: str) -> str:
        """The image by digest."""
        return f"{self.host}/{self.name}@{digest}"


def parse_reference(text: str) -> ImageReference:
    """Read a reference.

    >>> parse_reference("127.0.0.1:5000/erless/sparse:1")
    ImageReference(host='127.0.0.1:5000', name='erless/sparse', tag='1', digest='')
    >>> parse_reference("[::1]:5000/erless/sparse:1").loopback
    True
    >>> parse_reference("python:3.11-slim").name
    'library/python'

    Raises:
        ImageError: not a reference.
    """
    match = _PATTERN.match(text)
    if match is None:
        raise ImageError(f"{text!r} is not an image reference: [HOST[:PORT]/]NAME[:TAG][@sha256:…]")
    host, name = match["host"] or HUB, match["name"]
    if host in (HUB, "index.docker.io"):
        host, name = HUB_API, name if "/" in name else f"library/{name}"
    return ImageReference(host, name, match["tag"] or "latest", match["digest"] or "")
