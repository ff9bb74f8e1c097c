"""Certificates of the functions, by cert-manager: how gateway and functions know each other.

An authority of the deployment's own signs one certificate for each function, with one URI, as
the functions want it (erless/serve/identity.py). A certificate lasts a day and is made anew, with
another key, every six hours; the pod sees it as files of a Secret that is mounted, and looks at
them before every handshake. Secrets carry our labels: cert-manager leaves them behind when a
Certificate goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.kinds import CERTIFICATE, ISSUER
from erless.deploy.kubernetes.render.cluster_function import ClusterFunction
from erless.deploy.kubernetes.render.rendered import Object

__all__ = ["certificates"]

AUTHORITY_H = 87_600  # ten years: what trusts it is in every pod
LASTS_H, RENEWED_H = 24, 18  # of a function's; so many hours before its end it is made anew
KEY = {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}


def certificates(
    functions: Sequence[ClusterFunction], release: str, settings: ClusterSettings
) -> tuple[Object, ...]:
    """The authority, and a certificate for each of `functions`, gateway included; in that order."""
    scope = settings.scope
    root, authority = scope.name("erless-root"), scope.name("erless-authority")

    def certificate(name: str, spec: Object) -> Object:
        labels = {names.MANAGED: names.MANAGER} | scope.labels
        template = {"secretTemplate": {"labels": labels}, "privateKey": dict(KEY)}
        return _object(CERTIFICATE.kind, name, release, settings, spec | template)

    def signed(function: ClusterFunction) -> Object:
        return certificate(
            function.service,
            {
                "secretName": function.identity_secret,
                "duration": f"{LASTS_H}h",
                "renewBefore": f"{RENEWED_H}h",
                "uris": [settings.identity_prefix + function.identity],
                "usages": ["digital signature", "server auth", "client auth"],
                "issuerRef": {"name": authority, "kind": ISSUER.kind},
            },
        )

    return (
        _object(ISSUER.kind, root, release, settings, {"selfSigned": {}}),
        certificate(
            authority,
            {
                "isCA": True,
                "commonName": authority,
                "secretName": authority,
                "duration": f"{AUTHORITY_H}h",
                "issuerRef": {"name": root, "kind": ISSUER.kind},
            },
        ),
        _object(ISSUER.kind, authority, release, settings, {"ca": {"secretName": authority}}),
        *(signed(function) for function in functions),
    )


def _object(kind: str, name: str, release: str, settings: ClusterSettings, spec: Object) -> Object:
    scope = settings.scope
    return {
        "apiVersion": CERTIFICATE.api,
        "kind": kind,
        "metadata": names.metadata(
            name, release, namespace=scope.namespace, labels=dict(scope.labels)
        ),
        "spec": spec,
    }
