"""What an apply would change, and which functions go away."""

from __future__ import annotations

from collections.abc import Iterator

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.differences import compared
from erless.deploy.kubernetes.dry_run import DryRun
from erless.deploy.kubernetes.kinds import DEPLOYMENT, SERVICE, kind_of
from erless.deploy.kubernetes.releases import GatewayRecord, called_services
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.kubernetes.status import function_name
from erless.deploy.plain_kubernetes.gateway_record import read_record, with_history
from erless.deploy.target import Change

__all__ = ["compare"]


def compare(api: Api, rendered: Rendered, scope: names.Scope, trial: DryRun) -> tuple[Change, ...]:
    """One change per object, and those that go away once no kept release needs them."""
    record = read_record(api.get(SERVICE, scope.namespace, scope.gateway))
    deployments, _ = api.list(DEPLOYMENT, scope.namespace, scope.selector)
    live = {deployment["metadata"]["name"]: deployment for deployment in deployments}
    running = _running(live, record)
    changes = [_change(api, document, running, record, trial) for document in rendered.objects]
    return (*changes, *_orphans(live, rendered, record))


def _change(
    api: Api, document: Object, running: dict[str, str], record: GatewayRecord, trial: DryRun
) -> Change:
    meta = document["metadata"]
    subject = meta["annotations"].get(names.FUNCTION) or f"{document['kind']} {meta['name']}"
    live = api.get(kind_of(document), meta.get("namespace"), meta["name"])
    if live is not None:
        if document["kind"] == SERVICE.kind and record.keeps(meta["name"]):
            document = with_history(document, record.history)
        return compared(subject, live, trial.apply(document))
    trial.apply(document)
    old = running.get(subject)
    if old is None:
        return Change("create", subject)
    return Change("update", subject, f"{old} stays until it is pruned; new {meta['name']}")


def _running(live: dict[str, Object], record: GatewayRecord) -> dict[str, str]:
    """Function name → Deployment, of the current release."""
    gateway = live.get(record.revision)
    if gateway is None:
        return {}
    called = called_services(gateway["spec"]["template"]["spec"]) | {record.revision}
    return {function_name(live[name]): name for name in called & live.keys()}


def _orphans(
    live: dict[str, Object], rendered: Rendered, record: GatewayRecord
) -> Iterator[Change]:
    """Functions that neither this release nor one to be kept calls."""
    needed = {document["metadata"]["name"] for document in rendered.functions}
    needed |= {rendered.revision}
    for kept in record.history:
        gateway = live.get(kept.revision)
        if gateway is not None:
            needed |= called_services(gateway["spec"]["template"]["spec"]) | {kept.revision}
    for name in sorted(live.keys() - needed):
        yield Change("remove", name, "no kept release calls it")
