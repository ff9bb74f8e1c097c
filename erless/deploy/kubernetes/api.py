"""Requests to the API server, through the official client: its configuration, TLS and tokens.

kubeconfig, context and in-cluster configuration are found as every Kubernetes client finds them.
Answers that say "later" (429, 5xx) and connections that break are tried again with growing pauses,
as long as `Retry-After` says where it is given; what is refused is a DeployError with the server's
own words, and an apply that meets another owner's field is a ConflictError that names the owner.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from kubernetes.dynamic import DynamicClient

from erless.deploy.kubernetes.kinds import Kind, kind_of
from erless.errors import (
    ConflictError,
    DeployError,
    ForbiddenError,
    KubeconfigError,
    UnreachableError,
    first_line,
)
from erless.outbound import ca_bundle, checked_proxy, proxy_for, proxy_headers

__all__ = ["FIELD_MANAGER", "Api", "Gone", "Missing", "connect"]

Object = dict[str, Any]
FIELD_MANAGER = "erless"
RETRY_S = 60.0  # a rolling control plane comes back within this
UNKNOWN_RETRY_S = 5.0  # a cluster that never answered is rather somewhere else
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
TIMEOUT_S = (5.0, 30.0)  # connect, read
_LATER = {429, 500, 502, 503, 504}
_OWNER = re.compile(r'conflict with "([^"]*)"')


class Missing(Exception):  # noqa: N818
    """404: there is no such object, or no such kind."""


class Gone(Exception):  # noqa: N818
    """410: the server no longer knows the resource version; list again."""


def connect(kubeconfig: Path | None = None, context: str | None = None) -> Api:
    """The cluster that kubeconfig and context name; within a pod without either, its own.

    Raises:
        KubeconfigError: no kubeconfig, no such context, or it is damaged.
    """
    settings = client.Configuration()
    settings.proxy = None  # so that what it is afterwards is the kubeconfig's own
    try:
        try:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                str(kubeconfig) if kubeconfig else None, context, client_configuration=settings
            )
        except ConfigException as absent:
            if kubeconfig or context:
                raise
            try:
                config.load_incluster_config(  # type: ignore[no-untyped-call]
                    client_configuration=settings
                )
            except ConfigException:  # not within a pod: the kubeconfig is what lacks
                raise absent from None
    except (ConfigException, OSError, ValueError) as error:
        where = kubeconfig or "KUBECONFIG or ~/.kube/config"
        raise KubeconfigError(f"no usable kubeconfig at {where}: {first_line(error)}") from error
    settings.retries = False  # retried here, where the deadline is known
    _set_proxy(settings)
    if settings.ssl_ca_cert is None:
        settings.ssl_ca_cert = ca_bundle()
    return Api(client.ApiClient(settings))


def _set_proxy(settings: client.Configuration) -> None:
    """The kubeconfig's `proxy-url` holds whatever NO_PROXY says; else the environment decides.

    Raises:
        ConfigError: the proxy speaks another protocol than HTTP.
    """
    if settings.proxy:
        settings.proxy = checked_proxy(settings.proxy, "the kubeconfig's proxy-url")
    else:
        settings.proxy = proxy_for(settings.host)
    settings.no_proxy = ""  # already considered
    if settings.proxy:
        settings.proxy_headers = proxy_headers(settings.proxy)


class Api:
    """One API server.

    Args:
        api_client: the official client, configured.
        retry_s: how long "later" and broken connections are tried again.
    """

    def __init__(self, api_client: client.ApiClient, retry_s: float = RETRY_S) -> None:
        self.host = str(api_client.configuration.host)
        self.retry_s = retry_s
        self._reached = False
        # no discovery: the paths of our few kinds are known
        self._client = DynamicClient(  # type: ignore[no-untyped-call]
            api_client, discoverer=lambda *_: None
        )

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        retry_s: float | None = None,
    ) -> Object:
        """One request; the answer's JSON.

        Raises:
            Missing: 404.
            ConflictError: 409.
            Gone: 410.
            DeployError: anything else that is not a success, or no answer.
        """
        if retry_s is None:
            retry_s = self.retry_s if self._reached else min(self.retry_s, UNKNOWN_RETRY_S)
        give_up = time.monotonic() + retry_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                answer = self._send(method, path, body, query, content_type)
                self._reached = True
                return dict(json.loads(answer.data or b"{}"))
            except ApiException as error:
                retry_after_s = _retry_after(error)
                if (
                    error.status not in _LATER
                    or time.monotonic() + (retry_after_s or pause) > give_up
                ):
                    raise self._translate(error, method, path) from error
                wait = retry_after_s or pause
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                if time.monotonic() + pause > give_up:
                    raise UnreachableError(
                        f"no answer from the cluster at {self.host}: {_why(error)}"
                    ) from error
                wait = pause
            time.sleep(wait * random.uniform(0.8, 1.0))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str] | None,
        content: str,
        timeout: tuple[float, float] = TIMEOUT_S,
    ) -> Any:
        return self._client.request(
            method.lower(),
            path,
            body=body,
            query_params=list((query or {}).items()),
            content_type=content,
            header_params={"Accept": "application/json"},
            _request_timeout=timeout,
            serialize=False,
        )

    def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """One object, or None where there is none."""
        try:
            return self.call("GET", kind.path(namespace, name))
        except Missing:
            return None

    def list(
        self, kind: Kind, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], str]:
        """All objects, and the version to watch from; none where the cluster lacks the kind."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        try:
            listed = self.call(
                "GET",
                kind.path(namespace),
                query={key: value for key, value in query.items() if value},
            )
        except Missing:
            return [], ""
        version = str(listed.get("metadata", {}).get("resourceVersion", ""))
        return [
            {"apiVersion": kind.api, "kind": kind.kind, **item} for item in listed.get("items", [])
        ], version

    def apply(self, document: Object, *, dry_run: bool = False) -> Object:
        """Server-side apply as field manager `erless`; fields of others are not taken over."""
        kind, meta = kind_of(document), document["metadata"]
        query = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        path = kind.path(meta.get("namespace"), meta["name"])
        return self.call(
            "PATCH", path, document, query=query, content_type="application/apply-patch+yaml"
        )

    def merge(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        """Change some fields of an object (JSON merge patch)."""
        return self.call(
            "PATCH",
            kind.path(namespace, name),
            patch,
            query={"fieldManager": FIELD_MANAGER},
            content_type="application/merge-patch+json",
        )

    def delete(self, kind: Kind, namespace: str | None, name: str) -> bool:
        """Remove an object and all that it owns; False where it is gone already."""
        try:
            self.call("DELETE", kind.path(namespace, name), {"propagationPolicy": "Foreground"})
        except Missing:
            return False
        return True

    def watch(
        self, kind: Kind, namespace: str, selector: str, version: str, window_s: int
    ) -> Iterator[tuple[str, Object]]:
        """Changes since resource version `version`, for at most `window_s`.

        Raises:
            Gone: the version is too old; list again.
            DeployError: refused.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "labelSelector": selector,
            "timeoutSeconds": str(window_s),
            "allowWatchBookmarks": "true",
        }
        timeout = (TIMEOUT_S[0], window_s + 5.0)
        try:
            answer = self._send(
                "GET", kind.path(namespace), None, query, "application/json", timeout
            )
        except ApiException as error:
            if error.status in _LATER:
                time.sleep(_retry_after(error) or FIRST_PAUSE_S)
                return
            raise self._translate(error, "WATCH", kind.path(namespace)) from error
        except (urllib3.exceptions.HTTPError, OSError):
            time.sleep(FIRST_PAUSE_S)
            return
        try:
            yield from _events(answer)
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            return  # dropped: the caller watches again from the last version that it saw
        finally:
            answer.close()

    def text(self, path: str, query: Mapping[str, str] | None = None, timeout_s: float = 5) -> str:
        """An answer that is no JSON: a log, a pod's own page. One attempt."""
        try:
            answer = self._send("GET", path, None, query, "application/json", (5.0, timeout_s))
            return bytes(answer.data).decode("utf-8", "replace")
        except ApiException as error:
            raise self._translate(error, "GET", path) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise DeployError(f"{path}: {first_line(error)}") from error

    def lines(self, path: str, query: Mapping[str, str]) -> Iterator[str]:
        """A log as it grows, line by line, until the server ends it.

        Raises:
            Missing: there is no such log.
            DeployError: it was refused, or nobody answers.
        """
        try:
            answer = self._send("GET", path, None, query, "application/json", (5.0, 3600.0))
        except ApiException as error:
            raise self._translate(error, "GET", path) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise DeployError(f"{path}: {first_line(error)}") from error
        partial = b""
        try:
            for chunk in answer.stream(65536):
                *whole, partial = (partial + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
        except (urllib3.exceptions.HTTPError, OSError):
            pass
        finally:
            answer.close()
        if partial:
            yield partial.decode("utf-8", "replace")

    def _translate(self, error: ApiException, method: str, path: str) -> Exception:
        """A refusal in the server's own words."""
        try:
            document = json.loads(error.body or "{}")
        except ValueError:
            document = {}
        message_text = document.get("message") or first_line(Exception(error.reason or "refused"))
        if error.status == 0:  # the official client's way to tell of TLS that failed
            why = (str(error.reason).splitlines() or [message_text])[-1]
            return UnreachableError(f"no TLS connection to the cluster at {self.host}: {why}")
        if error.status == 404:
            return Missing(f"{path}: {message_text}")
        if error.status == 410:
            return Gone(message_text)
        if error.status == 409:
            return ConflictError(_conflict(document, path, message_text))
        if error.status in (401, 403):
            return ForbiddenError(f"the cluster at {self.host} does not let you: {message_text}")
        return DeployError(f"{method} {path}: {message_text} ({error.status})")


def _why(error: Exception) -> str:
    """What a connection failed of; urllib3 puts it last, behind its own objects."""
    last = error.args[-1] if error.args else error
    return first_line(last if isinstance(last, Exception) else Exception(str(last)))


def _conflict(document: Object, path: str, message_text: str) -> str:
    """Who owns which field, where the server says so."""
    causes = document.get("details", {}).get("causes", [])
    owners = [
        f"{cause.get('field', '?')} belongs to {match[1]}"
        for cause in causes
        if (match := _OWNER.search(cause.get("message", "")))
    ]
    object_path = "/".join(path.rsplit("/", 2)[-2:])
    return f"{object_path}: {'; '.join(owners)}" if owners else f"{object_path}: {message_text}"


def _retry_after(error: ApiException) -> float | None:
    """Seconds that the server asks to wait."""
    headers = {key.lower(): value for key, value in dict(error.headers or {}).items()}
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _events(answer: Any) -> Iterator[tuple[str, Object]]:
    """The stream of a watch: type and object."""
    partial = b""
    for chunk in answer.stream(65536):
        *whole, partial = (partial + chunk).split(b"\n")
        for line in filter(None, whole):
            event = json.loads(line)
            document = event["object"]
            if event["type"] == "ERROR":
                if document.get("code") == 410:
                    raise Gone(document.get("message", ""))
                raise ValueError(document.get("message", "watch failed"))
            yield event["type"], document
