"""What a cluster's Knative would refuse, told before anything is applied: host names, timeouts.

Only a public gateway has a name that the cluster's templates make; what is cluster-local is called
`NAME.NAMESPACE.svc.cluster.local` whatever they say (knative/serving pkg/reconciler/route/domains).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from erless.deploy.knative.gateway_record import NEXT
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import CONFIG_MAP
from erless.deploy.kubernetes.names import CLUSTER_LOCAL
from erless.errors import DeployError, ForbiddenError

__all__ = [
    "allowed_timeout_s",
    "check_limits",
    "needed_timeout_s",
    "public_domains",
    "refused_hosts",
]

Object = Mapping[str, Any]
SERVING = "knative-serving"  # the namespace of its settings
DOMAIN_TEMPLATE, TAG_TEMPLATE = "{{.Name}}.{{.Namespace}}.{{.Domain}}", "{{.Tag}}-{{.Name}}"
LABEL_LENGTH, HOST_LENGTH = 63, 253  # RFC 1035
TIMEOUT_S = 600  # Knative's own maximum
ACTION = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")


def public_domains(config_domain: Mapping[str, str]) -> list[str]:
    """The domains of Knative's `config-domain` that lead in from outside.

    A domain with a selector is for the Services that it selects; none of ours carries its label.
    """
    return [
        domain
        for domain, selector in config_domain.items()
        if not domain.startswith("_")
        and not domain.endswith(CLUSTER_LOCAL)
        and "selector" not in selector
    ]


def refused_hosts(
    service: str, namespace: str, network: Mapping[str, str], domains: Iterable[str]
) -> Iterator[str]:
    """Why a public gateway cannot have its host names; nothing where it can.

    A template with more than plain fields is not judged: Knative itself will.

    Args:
        service: the gateway's.
        namespace: its.
        network: Knative's `config-network`.
        domains: under which public names are made.
    """
    template = network.get("domain-template", DOMAIN_TEMPLATE)
    tags = network.get("tag-template", TAG_TEMPLATE)
    for domain in domains:
        fields = {"Name": service, "Namespace": namespace, "Domain": domain, "Tag": NEXT}
        for name in (service, _filled(tags, fields)):
            host = _filled(template, fields | {"Name": name})
            if "{{" in host:
                continue
            if len(host) > HOST_LENGTH:
                yield f"{host} has {len(host)} characters, {HOST_LENGTH} are allowed"
            for label in host.split("."):
                if len(label) > LABEL_LENGTH:
                    yield (
                        f"{label} of {host} has {len(label)} characters, {LABEL_LENGTH} are "
                        f"allowed (domain-template {template}, tag-template {tags})"
                    )


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """`template` with its plain fields.

    >>> _filled("{{.Tag}}-{{ .Name }}", {"Tag": "next", "Name": "gateway"})
    'next-gateway'
    """
    return ACTION.sub(lambda action: fields.get(action[1], action[0]), template)


def allowed_timeout_s(defaults: Mapping[str, str]) -> int:
    """The longest answer that the cluster allows, by its `config-defaults`, in s."""
    return int(defaults.get("max-revision-timeout-seconds", TIMEOUT_S))


def needed_timeout_s(services: Sequence[Object]) -> int:
    """The longest answer among Knative's `services`, in s."""
    return max(
        (service["spec"]["template"]["spec"]["timeoutSeconds"] for service in services), default=0
    )


def check_limits(api: Api, services: Sequence[Object], *, public: bool) -> None:
    """Refuse what the cluster's Knative would, as far as its settings may be read.

    Args:
        api: the cluster.
        services: Knative's, the gateway last.
        public: whether the gateway shall be.

    Raises:
        DeployError: a cold start is longer than an answer may be, or a host name too long.
    """
    needed_s, allowed_s = needed_timeout_s(services), allowed_timeout_s(_config(api, "defaults"))
    if needed_s > allowed_s:
        raise DeployError(
            f"functions need {needed_s} s for an answer, a cold start included, and the cluster "
            f"allows {allowed_s} s (max-revision-timeout-seconds in config-defaults)"
        )
    if not public:
        return
    gateway, domains = services[-1]["metadata"], public_domains(_config(api, "domain"))
    network = _config(api, "network")
    for fact in refused_hosts(gateway["name"], gateway["namespace"], network, domains):
        raise DeployError(f"{fact}; a shorter namespace or other templates mend it")


def _config(api: Api, name: str) -> Mapping[str, str]:
    """Knative's ConfigMap `config-NAME`; empty where it may not be read."""
    try:
        document = api.get(CONFIG_MAP, SERVING, f"config-{name}") or {}
    except ForbiddenError:
        return {}
    return document.get("data") or {}
