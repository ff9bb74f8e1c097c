"""What an apply would change: the live object against what the server would make of ours."""

from __future__ import annotations

from collections.abc import Iterator

from erless.deploy.knative.gateway_record import read_record, with_traffic
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.differences import compared
from erless.deploy.kubernetes.dry_run import DryRun
from erless.deploy.kubernetes.kinds import KSERVICE, REVISION, kind_of
from erless.deploy.kubernetes.releases import called_services
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.target import Change

__all__ = ["compare"]


def compare(api: Api, rendered: Rendered, scope: names.Scope, trial: DryRun) -> tuple[Change, ...]:
    """One change per object, and those that go away once no kept release needs them."""
    changes = []
    running = _running(api, scope)
    for document in rendered.objects:
        meta = document["metadata"]
        subject = meta["annotations"].get(names.FUNCTION) or f"{document['kind']} {meta['name']}"
        live = api.get(kind_of(document), meta.get("namespace"), meta["name"])
        if live is None:
            trial.apply(document)
            old = running.get(subject)
            changes.append(
                Change("create", subject)
                if old is None
                else Change(
                    "update", subject, f"{old} stays until it is pruned; new {meta['name']}"
                )
            )
            continue
        changes.append(compared(subject, live, _tried(trial, document, live)))
    return (*changes, *_orphans(api, rendered, scope))


def _running(api: Api, scope: names.Scope) -> dict[str, str]:
    """Function name → Service, of the current release."""
    namespace = scope.namespace
    record = read_record(api.get(KSERVICE, namespace, scope.gateway))
    revision = api.get(REVISION, namespace, record.revision) if record.revision else None
    service_of = {}
    for service in called_services(revision["spec"]) if revision else ():
        live = api.get(KSERVICE, namespace, service)
        if live is not None:
            service_of[live["metadata"]["annotations"].get(names.FUNCTION, service)] = service
    return service_of


def _tried(trial: DryRun, document: Object, live: Object) -> Object:
    """`document` as the server would store it, beside the live record of kept releases."""
    is_gateway = document["metadata"]["name"] == names.scope_of(document).gateway
    if is_gateway and document["apiVersion"] == KSERVICE.api:
        record = read_record(live)
        lines = read_record(document).traffic
        document = with_traffic(document, lines, record.history, None)
        if _same_revision(document, live):
            document["spec"]["template"] = live["spec"]["template"]
    return trial.apply(document)


def _same_revision(document: Object, live: Object) -> bool:
    return _revision_name(document) == _revision_name(live)


def _revision_name(service: Object) -> str:
    return str(service["spec"]["template"]["metadata"].get("name"))


def _orphans(api: Api, rendered: Rendered, scope: names.Scope) -> Iterator[Change]:
    """Functions that neither this release nor one to be kept calls."""
    services, _ = api.list(KSERVICE, scope.namespace, scope.selector)
    record = read_record(
        next(
            (service for service in services if service["metadata"]["name"] == scope.gateway), None
        )
    )
    needed = {document["metadata"]["name"] for document in rendered.functions} | {scope.gateway}
    for kept in record.history:
        revision = api.get(REVISION, scope.namespace, kept.revision)
        needed |= called_services(revision["spec"]) if revision else set()
    for service in services:
        name = service["metadata"]["name"]
        if name not in needed:
            yield Change("remove", name, "no kept release calls it")
