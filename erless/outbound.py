"""Outgoing HTTPS: which proxy and which certificate authorities the environment asks for.

Every client of the control plane uses the same rules: Kubernetes, registries, downloads and S3.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from erless.errors import ConfigError

if TYPE_CHECKING:
    import urllib3

__all__ = [
    "CA_VARIABLES",
    "ca_bundle",
    "checked_proxy",
    "open_pool",
    "proxy_for",
    "proxy_headers",
]

CA_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def ca_bundle() -> str | None:
    """The file of certificate authorities to trust, or None for the system's own.

    The variables of AWS's tools, OpenSSL, requests and curl are all read, so that a private
    authority has to be named only once.

    Raises:
        ConfigError: the variable names something that is no file.
    """
    for variable in CA_VARIABLES:
        path = os.environ.get(variable)
        if path:
            if not Path(path).is_file():
                raise ConfigError(f"{variable} is {path}, which is no file of certificates")
            return path
    return None


def proxy_for(url: str) -> str | None:
    """The proxy through which `url` is reached, from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

    Raises:
        ConfigError: the proxy speaks SOCKS or another protocol than HTTP.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return checked_proxy(proxy, "the environment's proxy")


def checked_proxy(proxy: str, source: str) -> str:
    """`proxy` as a URL, where it is one that erless can use.

    Raises:
        ConfigError: it speaks SOCKS or another protocol than HTTP; says where it comes from.
    """
    url = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = urlunsplit(_without_credentials(parts))
        raise ConfigError(f"{source} is {shown}: only http:// and https:// proxies are supported")
    return url


def proxy_headers(proxy: str) -> dict[str, str]:
    """The headers that carry the user and password of a proxy's URL; none without them."""
    import urllib3

    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return dict(urllib3.make_headers(proxy_basic_auth=credentials))


def open_pool(url: str, timeout_s: float) -> urllib3.PoolManager:
    """Connections to `url` and to where it redirects; nothing is tried twice by itself.

    Raises:
        ConfigError: the environment's proxy or certificate file cannot be used.
    """
    import urllib3

    timeout = urllib3.Timeout(connect=min(timeout_s, 10.0), read=timeout_s)
    proxy, authorities = proxy_for(url), ca_bundle()
    if proxy is None:
        return urllib3.PoolManager(timeout=timeout, ca_certs=authorities)
    return urllib3.ProxyManager(
        proxy, proxy_headers=proxy_headers(proxy), timeout=timeout, ca_certs=authorities
    )


def _without_credentials(parts: SplitResult) -> SplitResult:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2])
