"""Decoys among the objects: nothing that is applied tells them from shards that may sleep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from erless.deploy.knative.render import Rendered, render
from erless.deploy.knative.render.scaling import INITIAL_SCALE
from erless.deploy.kubernetes.releases import called_services
from erless.deploy.target import Desired
from erless.specs.decoys import DecoyShard, decoy_name
from erless.specs.plan import Tier
from tests.deploy.desired import cluster_settings, desired, digest_of


def with_decoys(count: int) -> Desired:
    real = desired()
    like = next(shard for shard in real.release.remote if shard.tier is Tier.COLD)
    decoys = []
    for number in range(count):
        digest = digest_of(f"decoy {number}")
        size = {"size_bytes": like.size_bytes * 2, "row_bytes": like.row_bytes * 2}
        shard = like.model_copy(
            update={"name": decoy_name("cold", digest), "digest": digest, **size}
        )
        decoys.append(DecoyShard(shard=shard, like=like.digest, scale=2.0))
    return replace(real, decoys=tuple(decoys))


def shape(value: Any) -> Any:
    """A document without its values: what is there, but not what it says."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in sorted(value.items())}
    if isinstance(value, list):
        named = all(isinstance(part, dict) and "name" in part for part in value)
        return [(part["name"], shape(part)) if named else shape(part) for part in value]
    return type(value).__name__


def sleepers(rendered: Rendered) -> list[dict[str, Any]]:
    return [
        service
        for service in rendered.functions
        if service["spec"]["template"]["metadata"]["annotations"][INITIAL_SCALE] == "0"
    ]


def test_a_decoy_is_rendered_as_a_shard_that_may_sleep() -> None:
    rendered = render(with_decoys(2), cluster_settings())
    asleep = sleepers(rendered)
    names = [service["metadata"]["name"] for service in asleep]
    assert len(rendered.decoys) == 2
    assert rendered.decoys < set(names)
    assert names == sorted(names)  # by digest, not decoys last
    shapes = [shape(service) for service in asleep]
    assert all(each == shapes[0] for each in shapes)
    for service in asleep:
        meta, annotations = service["metadata"], service["metadata"]["annotations"]
        assert annotations["erless.dev/function"] == decoy_name(
            meta["labels"]["erless.dev/tier"], annotations["erless.dev/digest"]
        )
    labels = [set(service["metadata"]["labels"]) for service in asleep]
    assert all(each == labels[0] for each in labels)


def test_releases_own_them_through_the_gateway_and_nothing_else_changes() -> None:
    plain, guarded = (render(with_decoys(count), cluster_settings()) for count in (0, 2))
    assert plain.decoys == frozenset()
    assert sleepers(plain) == []
    called = called_services(guarded.gateway["spec"]["template"]["spec"])
    assert guarded.decoys < called  # rollback and settle go by these
    assert [d["metadata"]["name"] for d in plain.base] == [
        d["metadata"]["name"] for d in guarded.base
    ]
    assert plain.revision != guarded.revision
