"""What a cluster without Knative has to drain and to scale with."""

from __future__ import annotations

from collections.abc import Iterator

from erless.deploy.cluster.checks.examination import Examination, Finding
from erless.deploy.cluster.checks.knative import version_number
from erless.deploy.kubernetes.kinds import CERTIFICATES, CRD
from erless.deploy.plain_kubernetes.scaling_apis import CUSTOM_METRIC, discover

__all__ = ["check_certificates", "check_drain", "check_scaling"]

SLEEPS = (1, 30)  # KEP-3960: a hook that waits without a program in the image, on by default


def check_drain(examination: Examination) -> Iterator[Finding]:
    """Whether a pod may wait, before it drains, until nobody is sent to it any more."""
    version = examination.version.get("gitVersion", "?")
    if (version_number(version) or SLEEPS) < SLEEPS:
        fact = f"{version} knows no sleeping preStop hook, which 1.30 does: deploy is refused"
        yield Finding("fail", "drain", fact, "a newer Kubernetes, or target knative")
    else:
        yield Finding("pass", "drain", "preStop hooks may sleep")


def check_certificates(examination: Examination) -> Iterator[Finding]:
    """Whether cert-manager is there, where gateway and functions shall have certificates."""
    if not examination.settings.mutual_tls:
        return
    if examination.api.get(CRD, None, CERTIFICATES) is None:
        mend = "install cert-manager: https://cert-manager.io/docs/installation"
        yield Finding("fail", "cert-manager", "not installed; needed for security.mutual_tls", mend)
    else:
        yield Finding("pass", "cert-manager", "installed")


def check_scaling(examination: Examination) -> Iterator[Finding]:
    """What autoscalers go by, and whether functions may rest at zero."""
    apis = discover(examination.api, examination.settings.plain)
    if apis.custom:
        yield Finding("pass", "autoscaling", f"by the pods' metric {CUSTOM_METRIC}")
    elif apis.measured:
        yield Finding("pass", "autoscaling", f"by CPU: no custom metric {CUSTOM_METRIC}")
    else:
        fact = "no metrics API answers: replicas stay as they are"
        yield Finding("warn", "autoscaling", fact, "install metrics-server")
    if apis.zero:
        yield Finding("pass", "scale to zero", "by KEDA's HTTP add-on")
    else:
        fact = "no HTTP add-on of KEDA: every function keeps a replica"
        mend = "helm install http-add-on kedacore/keda-add-ons-http -n keda"
        yield Finding("warn", "scale to zero", fact, mend)
